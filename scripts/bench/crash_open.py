"""`kbridge crash open` to gdb's first backtrace, against `gdb vmlinux` that is asked about the same places.

    .venv/bin/python scripts/bench/crash_open.py [--quick]

A `cloud` guest panics (sysrq c) and its memory is taken.  By itself, `gdb vmlinux` as its user starts it: it reads
vmlinux and tells the source line of each frame of that backtrace, the addresses given by hand as linked, so that both
read the same DWARF, then ends.  On the image gdb's `bt` also prints arguments, modules are read, KASLR is on.  Pairs,
the order changing; the time is that of the whole command, from nothing to its end.  The figure is the median of the
pairs' ratios with its 95 % interval.

kbridge keeps what it made of a kernel before, gdb's own index of its DWARF too (`docs/crash-images.md`): the figure is
of a kernel that was opened once.  Beside it: the first time, with nothing kept; gdb by itself when its user has turned
its index cache on (`set index-cache enabled on`); drgn and crash on the same image.

Needs the `cloud` guest, crash and the extra `drgn`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from console_lab import verdict
from gdb_first_prompt import gdb, guest
from gdb_session import ROOT, interval

sys.path.append(str(ROOT / "tests"))
from image_lab import take

GOAL = 1.2


def opened(files: list[str], folder: Path, tool: str, *arguments: str) -> tuple[float, str]:
    """Open the image with a tool; return how long it took, in seconds, and what it said."""
    begin = time.perf_counter()
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("kbridge")), "crash", "open", "--with", tool, *files),
            *(str(folder / "vmcore"), "--", *arguments),
        ],
        capture_output=True, text=True, timeout=240, check=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "DEBUGINFOD_URLS": "", "XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip
    return time.perf_counter() - begin, done.stdout + done.stderr


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs, for a first look")
    pairs = 5 if parser.parse_args().quick else 21
    folder = Path(tempfile.mkdtemp(prefix="kb-open-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        with contextlib.ExitStack() as alive:
            told = guest(alive)
            console = socket.socket(socket.AF_UNIX)
            alive.callback(console.close)
            console.settimeout(120)
            console.connect(told["console"].removeprefix("unix:"))
            said = b""
            while b"kbridge-guest: ready" not in said:
                said += console.recv(65536)
            console.sendall(b"echo c >/proc/sysrq-trigger\r")
            while b"Kernel panic" not in said:
                said += console.recv(65536)
            time.sleep(1)
            take(told["qmp"].removeprefix("unix:"), folder / "vmcore")
        files = ["--vmlinux", told["vmlinux"], "--debug-dir", told["debug_dir"]]
        backtrace = ("-nx", "-batch", "-ex", "bt")
        first, answer = opened(files, folder, "gdb", *backtrace, "-ex", "monitor symbols")
        slide = re.search(r"slide +(0x[0-9a-f]+)", answer)
        if slide is None or "sysrq_handle_crash" not in answer:
            raise SystemExit(f"no backtrace in {answer[-2000:]}")
        moved = {int(one, 16) for one in re.findall(r"(?m)^#\d+ +(0x[0-9a-f]{16}) in", answer)}
        places = [f"info line *{one - int(slide[1], 16):#x}" for one in sorted(moved) if one >> 63]
        by_itself = [f"file {told['vmlinux']}", *places]
        with_index = [f"set index-cache directory {folder}/index", "set index-cache enabled on", *by_itself]
        ways: dict[str, tuple[Callable[[], tuple[float, str]], str]] = {
            "gdb vmlinux": (lambda: gdb(*by_itself), "kernel/panic.c"),
            "crash open": (lambda: opened(files, folder, "gdb", *backtrace), "sysrq_handle_crash"),
            "gdb, indexed": (lambda: gdb(*with_index), "kernel/panic.c"),
        }
        took: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(-1, pairs):
            for name, (run, wanted) in list(ways.items())[:: 1 if number % 2 else -1]:
                seconds, answer = run()
                if wanted not in answer:
                    raise SystemExit(f"{name}: no {wanted} in {answer[-2000:]}")
                if number >= 0:
                    took[name].append(seconds)
        drgn, _ = opened(files, folder, "drgn", "-q", "-e", "print(prog.crashed_thread().stack_trace())")
        (folder / "commands").write_text("bt\nquit\n")
        crash, _ = opened(files, folder, "crash", "-s", "-i", str(folder / "commands"))
    ratios = [one / two for one, two in zip(took["crash open"], took["gdb vmlinux"], strict=True)]
    low, high = interval(ratios)
    print(f"{pairs} pairs, {len(places)} places, seconds (medians)")
    for name, values in took.items():
        print(f"  {name:14} {statistics.median(values):.2f}")
    print(f"  {'the first time':14} {first:.2f}")
    print(f"  {'with drgn':14} {drgn:.2f}")
    print(f"  {'with crash':14} {crash:.2f}")
    print(f"  ratio {statistics.median(ratios):.2f} ({low:.2f} .. {high:.2f})")
    sys.exit(not verdict("crash open : gdb vmlinux", statistics.median(ratios), GOAL, most=True))


if __name__ == "__main__":
    main()
