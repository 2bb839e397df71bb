"""The first prompt of a gdb that was told nothing, against one that is told everything by hand under ``nokaslr``.

    .venv/bin/python scripts/bench/gdb_first_prompt.py [--quick]

By hand: vmlinux named, the stub reached straight, each module added at its address (`add-symbol-file`).  Told nothing:
`target remote` through the relay, with KASLR on and the same folder for debug files, so that both read the same DWARF.
Two guests with the same modules, pairs in turn; the time is that of the whole gdb, with a backtrace.  The figure is the
median of the pairs' ratios with its 95 % interval.  Beside it: with no file anywhere, which nobody can do by hand.
Needs the `cloud` guest (`scripts/guest build`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from console_lab import verdict
from gdb_session import ROOT, interval, wait_for

GOAL = 1.3
ALL = ("--append", "kbridge.modules=all")
"""More than 50 modules."""


def gdb(*commands: str) -> tuple[float, str]:
    """Run a gdb to its end; return how long it took, in seconds, and what it said."""
    arguments = [word for one in commands for word in ("-ex", one)]
    begin = time.perf_counter()
    done = subprocess.run(
        ["gdb", "-nx", "-batch", "-iex", "set confirm off", *arguments],
        capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "DEBUGINFOD_URLS": ""},
    )  # fmt: skip
    return time.perf_counter() - begin, done.stdout + done.stderr


def guest(stack: contextlib.ExitStack, *arguments: str) -> dict[str, Any]:
    """Start a guest that ends with the stack."""
    process = subprocess.Popen(
        [str(ROOT / "scripts/guest"), "run", "cloud", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    assert process.stdout is not None
    told: dict[str, Any] = json.loads(process.stdout.readline())
    return told


def relay(stack: contextlib.ExitStack, folder: Path, guests: dict[str, str]) -> Path:
    """Start a relay for guests, each with its lines of configuration; return the folder of its sockets."""
    config = folder / "kbridge.toml"
    text = f'[relay]\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\ndebug_dirs = []\n'
    config.write_text(text + "".join(f"[guests.{name}]\n{lines}" for name, lines in guests.items()))
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("kbridge")), "up", "--config", str(config)],
        stderr=subprocess.DEVNULL,
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    for name in guests:
        wait_for(folder / "run" / name / "gdb", process)
    return folder / "run"


def booted(ring: Path) -> None:
    """Wait until a guest has booted, by the record of its console."""
    deadline = time.monotonic() + 120
    while not (ring.exists() and b"kbridge-guest: ready" in ring.read_bytes()):
        if time.monotonic() > deadline:
            raise SystemExit(f"no guest has booted that writes to {ring}")
        time.sleep(0.2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs, for a first look")
    pairs = 5 if parser.parse_args().quick else 21
    folder = Path(tempfile.mkdtemp(prefix="kb-first-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        plain, moved = guest(stack, "--no-kaslr", "--stub", *ALL), guest(stack, *ALL)
        files = f'vmlinux = "{moved["vmlinux"]}"\ndebug_dirs = ["{moved["debug_dir"]}"]\n'
        run = relay(
            stack,
            folder,
            {
                "plain": f'qmp = "{plain["qmp"]}"\nconsole = "{plain["console"]}"\nstub = "{plain["stub"]}"\n',
                "moved": f'qmp = "{moved["qmp"]}"\nconsole = "{moved["console"]}"\n{files}',
            },
        )
        for name in ("plain", "moved"):
            booted(folder / "state/guests" / name / "console.ring")
        # Where the modules are, the relay tells; from here on it leaves that guest's stub to the gdb by hand.
        _, said = gdb(f"target remote {run / 'plain' / 'gdb'}", "monitor modules")
        modules = re.findall(r"(?m)^(\w+) +(0x[0-9a-f]{16}) +\d+ ", said)
        debug = Path(moved["debug_dir"])
        by_name = {path.name.partition(".")[0].replace("-", "_"): path for path in debug.glob("*.ko")}
        by_hand = [
            f"file {plain['vmlinux']}",
            f"target remote {plain['stub'].removeprefix('unix:')}",
            *(f"add-symbol-file {by_name[name]} {address}" for name, address in modules if name in by_name),
            "backtrace",
        ]
        links = folder / "state/guests/moved/debug"
        told_nothing = [
            f"set debug-file-directory {debug}:{links}",
            f"target remote {run / 'moved' / 'gdb'}",
            "backtrace",
        ]
        ways = {"by hand": by_hand, "told nothing": told_nothing}
        took: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(-1, pairs):
            for name, commands in list(ways.items())[:: 1 if number % 2 else -1]:
                seconds, said = gdb(*commands)
                if "start_kernel" not in said and "start_secondary" not in said and "entry_" not in said:
                    raise SystemExit(f"{name}: no backtrace in {said[-2000:]}")
                if number >= 0:
                    took[name].append(seconds)
        other = guest(stack, *ALL)
        (folder / "bare").mkdir()
        lines = f'qmp = "{other["qmp"]}"\nconsole = "{other["console"]}"\n'
        sockets = relay(stack, folder / "bare", {"bare": lines})
        booted(folder / "bare/state/guests/bare/console.ring")
        bare, _ = gdb(f"target remote {sockets / 'bare' / 'gdb'}", "backtrace")
    ratios = [one / two for one, two in zip(took["told nothing"], took["by hand"], strict=True)]
    low, high = interval(ratios)
    print(f"{pairs} pairs, {len(modules)} modules, seconds (medians)")
    for name, values in took.items():
        print(f"  {name:14} {statistics.median(values):.2f}")
    print(f"  {'no file at all':14} {bare:.2f}")
    print(f"  ratio {statistics.median(ratios):.2f} ({low:.2f} .. {high:.2f})")
    sys.exit(not verdict("told nothing : by hand", statistics.median(ratios), GOAL, most=True))


if __name__ == "__main__":
    main()
