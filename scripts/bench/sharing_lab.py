"""What the benchmarks of shared debugging have in common: a guest, a relay, and debuggers written in C.

The relay has the first core, the guest the last.  Where there are two only, debuggers share one: on their way straight
to the stub they may have either.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from console_lab import HERE, LOAD_CORE, READY_SECONDS, SERVER_CORE, Child, wait_until
from rsp_latency import qemu, running

if TYPE_CHECKING:
    from collections.abc import Iterator

RELAY_CORE = LOAD_CORE
GUEST_CORE = SERVER_CORE
BARE_MEMORY = 0x100000
"""Memory of a machine before its first instruction; what lies there is asked of the stub each time."""
DIRECT_MAP = 0xFFFF888001000000
"""The same of a kernel's guest without KASLR: all its memory, outside of its image."""


@dataclass(frozen=True)
class Bench:
    """A guest with a relay, and how each is reached."""

    folder: Path
    straight: Path
    relayed: Path
    memory: int

    def debuggers(self, core: int, what: str, path: Path, *arguments: int | str) -> Child:
        """Start debuggers on a core and wait until all are attached."""
        child = Child(core, [str(self.folder / "load"), what, str(path), *map(str, arguments)])
        try:
            if child.line() != "ready":
                raise RuntimeError(f"the debuggers did not reach {path}")
        except BaseException:
            child.end()
            raise
        return child


def compile_load(folder: Path) -> None:
    """Compile the debuggers to ``folder/load``."""
    subprocess.run(["cc", "-O2", "-o", str(folder / "load"), str(HERE / "sharing_load.c")], check=True)


@contextlib.contextmanager
def bench(*, cloud: bool = False) -> Iterator[Bench]:
    """Yield a guest that nobody debugs, and a relay for it.

    It is a machine that stands before its first instruction, or with ``cloud`` the guest of that name, booted.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="kb-share-"))
        stack.callback(shutil.rmtree, folder)
        compile_load(folder)
        if cloud:
            told = stack.enter_context(_cloud())
            straight = Path(told["stub"].removeprefix("unix:"))
            ends = f'qmp = "{told["qmp"]}"\nstub = "{told["stub"]}"\nconsole = "{told["console"]}"\n'
        else:
            command = ["taskset", "-c", str(GUEST_CORE), *qemu(folder, "bare")]
            stack.enter_context(running(*command))
            straight = folder / "bare.gdb"
            wait_until(straight.exists, "the guest's stub")
            ends = f'qmp = "unix:{folder}/bare.qmp"\nstub = "unix:{straight}"\n'
        config = folder / "kbridge.toml"
        config.write_text(
            f'[relay]\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n[guests.bench]\n{ends}'
        )
        kbridge = str(Path(sys.executable).with_name("kbridge"))
        log = stack.enter_context((folder / "relay.log").open("wb"))
        relay = subprocess.Popen(
            ["taskset", "-c", str(RELAY_CORE), kbridge, "up", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        stack.callback(_end, relay)
        relayed = folder / "run" / "bench" / "gdb"
        wait_until(relayed.exists, "the relay's socket")
        if cloud:
            ring = folder / "state/guests/bench/console.ring"
            wait_until(ring.exists, "the guest's console")
            wait_until(lambda: b"kbridge-guest: ready" in ring.read_bytes(), "the guest to boot")
            # Its last words are not the last of its work.
            time.sleep(2)
        yield Bench(folder, straight, relayed, DIRECT_MAP if cloud else BARE_MEMORY)


@contextlib.contextmanager
def _cloud() -> Iterator[dict[str, str]]:
    guest = subprocess.Popen(
        [
            "taskset",
            "-c",
            str(GUEST_CORE),
            str(HERE.parent / "guest"),
            *["run", "cloud", "--no-kaslr", "--stub"],
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert guest.stdout is not None
        told: dict[str, str] = json.loads(guest.stdout.readline())
        yield told
    finally:
        _end(guest)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(READY_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
