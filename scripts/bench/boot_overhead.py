"""`kbridge boot --single-user` against the same boot with its command line preset and the loader's time-out at 0.

    .venv/bin/python scripts/bench/boot_overhead.py [--quick] [--firmware bios|efi|uboot] [--by-stub]

Preset: the machine is reset by its monitor and a plain reader of its console waits until the root shell answers.  Ours:
the whole command, from its start to its end, which comes when the shell answered; the loader counts 5 s down, or with
--by-stub waits for nobody, and the debug stub changes the command line.  The same disk, in pairs, each in turn first.
The figure is the median of the differences; each pair is printed when it is done.  The guest is `disk`
(`scripts/guest build disk`), the smallest that a loader boots.  Each boot has a new machine: where a kernel ran before,
an emulated processor keeps what it made of its code, and takes up to 10 s more, at random, to write the next one over
it.  The parts of the difference are printed too: to where the loader starts the kernel, which is where the tool works,
and those behind.  U-Boot's time-out is its own, of 2 s, in both.

A boot that takes more than --deadline seconds ends the benchmark, with what was seen last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console_lab import verdict
from gdb_session import ROOT, interval

if TYPE_CHECKING:
    from collections.abc import Sequence

GOAL_SECONDS = 1.5
BOOT_SECONDS = 120.0
READY_SECONDS = 60.0
WORDS = "single systemd.setenv=SYSTEMD_SULOGIN_FORCE=1"
KBRIDGE = str(Path(sys.executable).with_name("kbridge"))
STARTS = re.compile(rb"Booting `|\x08 0 \r|EFI stub: ")
"""The first that a preset boot shows of its loader being done with waiting."""


@dataclass
class Took:
    """Seconds from the beginning; `parts` is up to each of what was seen."""

    seconds: float
    parts: dict[str, float] = field(default_factory=dict)


class Failed(Exception):
    """A boot did not come to its end."""


def guest(stack: contextlib.ExitStack, *arguments: str) -> dict[str, Any]:
    """Start a guest that waits before its first instruction and ends with the stack."""
    process = subprocess.Popen(
        [str(ROOT / "scripts/guest"), "run", "disk", "--stopped", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], READY_SECONDS)[0]:
        raise Failed(f"scripts/guest says nothing within {READY_SECONDS:g} s")
    line = process.stdout.readline()
    if not line:
        raise Failed("scripts/guest started no guest: see above")
    told: dict[str, Any] = json.loads(line)
    return told


class Preset:
    """A guest that boots by itself, its console and its monitor."""

    def __init__(self, stack: contextlib.ExitStack, said: dict[str, Any]) -> None:
        self._console = stack.enter_context(socket.socket(socket.AF_UNIX))
        self._console.connect(said["console"].removeprefix("unix:"))
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.settimeout(READY_SECONDS)
        connection.connect(said["qmp"].removeprefix("unix:"))
        self._monitor = stack.enter_context(connection.makefile("rwb"))
        self._monitor.readline()
        self._do("qmp_capabilities")

    def _do(self, command: str) -> None:
        self._monitor.write(json.dumps({"execute": command}).encode() + b"\n")
        self._monitor.flush()
        while b'"return"' not in (line := self._monitor.readline()):
            if not line or b'"error"' in line:
                raise Failed(f"the monitor does not do {command}: {line!r}")

    def boot(self, deadline: float) -> Took:
        """Boot until the shell answers."""
        begin = time.perf_counter()
        self._do("stop")
        # What the boot before this one still had to say, its prompt above all, is no answer of this one.
        while select.select([self._console], [], [], 0)[0] and self._console.recv(65536):
            pass
        self._do("system_reset")
        self._do("cont")
        took = Took(0.0)
        heard = b""
        for part, mark, answer in (
            ("loader", STARTS, b""),
            ("kernel", re.compile(rb"Linux version "), b""),
            ("prompt", re.compile(rb"/root # "), b"echo he''re\r"),
            ("answer", re.compile(rb"\nhere\r\n"), b""),
        ):
            while (found := mark.search(heard)) is None:
                left = begin + deadline - time.perf_counter()
                if not select.select([self._console], [], [], max(left, 0))[0]:
                    raise Failed(f"no {mark.pattern!r} within {deadline:g} s, after {heard[-300:]!r}")
                data = self._console.recv(65536)
                if not data:
                    raise Failed(f"the console was closed after {heard[-300:]!r}")
                heard += data
            took.parts[part] = time.perf_counter() - begin
            heard = heard[found.end() :]
            self._console.sendall(answer)
        took.seconds = took.parts["answer"]
        return took


class Ours:
    """A guest that is booted by kbridge."""

    def __init__(self, config: Path, way: str) -> None:
        self._command = [
            KBRIDGE,
            "boot",
            "--config",
            str(config),
            "vm",
            "--single-user",
            "--json",
            "--way",
            way,
        ]

    def boot(self, deadline: float) -> Took:
        """Boot until the command ends."""
        begin = time.perf_counter()
        with subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                said, errors = process.communicate(timeout=deadline)
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
                last = "\n".join(said.splitlines()[-5:])
                raise Failed(
                    f"`kbridge boot` did not end within {deadline:g} s; its last lines:\n{last}"
                ) from None
        seconds = time.perf_counter() - begin
        if process.returncode:
            raise Failed(said + errors)
        took = Took(seconds)
        entries = [json.loads(line) for line in said.splitlines()]
        # What the command takes before the relay begins, and a little after it ended: counted as before.
        outside = seconds - entries[-1]["elapsed"]
        for entry in entries:
            at = entry["elapsed"] + outside
            kind, state = entry["kind"], entry["state"]
            if kind == "sent" and entry["keys"] in ("Ctrl-X", "Enter") and "kernel" not in took.parts:
                took.parts["loader"] = at
            elif kind == "state" and state in ("kernel", "shell"):
                took.parts.setdefault("prompt" if state == "shell" else "kernel", at)
            elif kind == "end":
                took.parts["answer"] = at
        return took


def relay(stack: contextlib.ExitStack, folder: Path, said: dict[str, Any]) -> Path:
    """Start a relay for the guest; return its configuration."""
    config = folder / "kbridge.toml"
    config.write_text(
        f'[relay]\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n'
        f'[guests.vm]\nqmp = "{said["qmp"]}"\nconsole = "{said["console"]}"\n'
    )
    process = subprocess.Popen([KBRIDGE, "up", "--config", str(config)], stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    deadline = time.monotonic() + READY_SECONDS
    while (
        "paused"
        not in subprocess.run(
            [KBRIDGE, "ls", "--config", str(config)], capture_output=True, text=True, check=False
        ).stdout
    ):
        if time.monotonic() > deadline:
            raise Failed("the relay does not see the guest")
        time.sleep(0.1)
    return config


def row(name: str, values: Sequence[float]) -> str:
    """Return a row of the table: median, least and most."""
    return f"  {name:22} {statistics.median(values):7.2f} {min(values):7.2f} {max(values):7.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs, for a first look")
    parser.add_argument("--pairs", type=int, help="that many")
    parser.add_argument("--firmware", default="bios", choices=["bios", "efi", "uboot"])
    parser.add_argument("--by-stub", action="store_true", help="by the debug stub instead of the boot loader")
    parser.add_argument(
        "--deadline", type=float, default=BOOT_SECONDS, help="seconds of a boot (default: 120)"
    )
    options = parser.parse_args()
    pairs = options.pairs or (3 if options.quick else 11)
    took: dict[str, list[Took]] = {"preset": [], "kbridge boot": []}
    try:
        for number in range(pairs):
            for name in list(took)[:: 1 if number % 2 else -1]:
                took[name].append(boot(name, options))
            one, two = (each[-1].seconds for each in took.values())
            print(
                f"pair {number + 1} of {pairs}: preset {one:.2f}, kbridge boot {two:.2f}, more {two - one:.2f}"
            )
            sys.stdout.flush()
    except Failed as error:
        sys.exit(f"boot_overhead: {error}")
    report(took, options.firmware)


def boot(name: str, options: argparse.Namespace) -> Took:
    """Boot a new guest in that way."""
    firmware = ("--firmware", options.firmware)
    with contextlib.ExitStack() as stack:
        if name == "preset":
            said = guest(stack, *firmware, "--menu", "none", "--append", WORDS)
            return Preset(stack, said).boot(options.deadline)
        folder = Path(tempfile.mkdtemp(prefix="kb-boot-"))
        stack.callback(shutil.rmtree, folder)
        said = guest(stack, *firmware, *(("--menu", "none") if options.by_stub else ()))
        return Ours(relay(stack, folder, said), "stub" if options.by_stub else "loader").boot(
            options.deadline
        )


def report(took: dict[str, list[Took]], firmware: str) -> None:
    """Print the table and the verdict; the exit status is 1 where the goal is missed."""
    preset, ours = took["preset"], took["kbridge boot"]
    more = [two.seconds - one.seconds for one, two in zip(preset, ours, strict=True)]
    print(f"{len(more)} pairs, {firmware}, seconds      median   least    most")
    for name, values in took.items():
        print(row(name, [each.seconds for each in values]))
    print(row("more", more))
    before = ""
    for part in preset[0].parts:
        if not all(part in each.parts for each in preset + ours):
            continue
        spans = [
            [each.parts[part] - each.parts.get(before, 0.0) for each in each_way]
            for each_way in took.values()
        ]
        apart = [two - one for one, two in zip(*spans, strict=True)]
        print(row(f"more, {before or 'start'} to {part}", apart))
        before = part
    low, high = interval(more)
    print(f"  95 % interval of the median of more: {low:.2f} .. {high:.2f}")
    middle = statistics.median(more)
    sys.exit(not verdict("kbridge boot - preset, s", middle, GOAL_SECONDS, most=True))


if __name__ == "__main__":
    main()
