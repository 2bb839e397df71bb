"""How fast crashes are looked for on consoles without any, and what that adds to the recording of 1000 lines.

    .venv/bin/python scripts/bench/crash_detect.py [--quick] [--lines N]

First the text: consoles as they are, and text that nearly looks like a crash, in pieces of 64 KB and of 4 KB, beside
one regular expression of all that begins a crash, by the processor's time.  Then how long after a crash's last byte its
title is known.  Last a thousand lines of 11.5 KB/s, written 115 bytes at a time, to the recorder by itself and with a
detector for each line, which gets what came every 40 ms; in turn, medians.  Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import resource
import statistics
import sys
import time
from pathlib import Path

import console_lab as lab
import console_lines

from kbridge.crash.detector import CrashEnds, Detector
from kbridge.crash.kinds import ROWS

STAMP = re.compile(rb"\[ *\d+\.\d{6}\] ")
TESTS = Path(__file__).parents[2] / "tests" / "data"
SIZES = (65536, 4096)
AMOUNT = 32 << 20
NAIVE = re.compile(
    "|".join(f"(?:{re.sub('[(][?]P<.*?>', '(?:', row.begins.pattern)})" for row in ROWS).encode()
)


class Detecting(lab.Kbridge):
    name = "kbridge, detecting"
    options = ("detect",)


def pieces_of(unit: bytes, size: int, amount: int, *, goes_on: bool) -> list[bytes]:
    """Return copies of ``unit`` end to end, cut into pieces, each an object of its own.

    ``goes_on``: with stamps that rise all the time, as those of a kernel that runs on.
    """
    data = unit * (amount // len(unit) + 1)
    if goes_on:
        count = itertools.count()
        data = STAMP.sub(lambda _: b"[%5d.%06d] " % divmod(next(count), 1000), data)
    return [data[first : first + size] for first in range(0, amount, size)]


def rate(pieces: list[bytes], *, crashes: bool) -> float:
    """Return how many bytes a second a detector takes."""
    detector = Detector()
    events = 0
    start = time.process_time()
    for piece in pieces:
        events += len(detector.feed(piece))
    took = time.process_time() - start
    if (events > 0) is not crashes:
        raise SystemExit(f"{events} events")
    return sum(map(len, pieces)) / took


def naive_rate(pieces: list[bytes]) -> float:
    """Return how many bytes a second one regular expression takes."""
    start = time.process_time()
    for piece in pieces:
        NAIVE.search(piece)
    return sum(map(len, pieces)) / (time.process_time() - start)


def console(*names: str) -> bytes:
    """Return captured consoles on which nothing crashed, without their firmware's part."""
    return b"".join((TESTS / "console" / f"{name}.raw").read_bytes() for name in names)


def texts() -> dict[str, tuple[bytes, float, bool]]:
    """Return what is measured: text, goal in bytes a second, and whether it has crashes."""
    rng = random.Random(1)
    oops = (TESTS / "oops" / "null-write.txt").read_bytes().replace(b"\n", b"\r\n")
    return {
        "plain text": (
            b"[   12.345678] systemd[1]: Started a service with a name of some length.\r\n",
            1e9,
            False,
        ),
        "a kernel's log": (console("deb-break", "getty", "tcg-virtio"), 1e9, False),
        "systemd's log": (console("deb-login", "deb-rescue", "deb-unit", "deb-fstab"), 1e9, False),
        "reboots": (console("deb-break", "getty", "tcg-virtio"), 100e6, False),
        "shells' prompts": (b"root@web1:~# ls -l /proc/1/fd # all of them\r\ntotal 0\r\n" * 20, 2e6, False),
        "random bytes": (rng.randbytes(65536), 10e6, False),
        "near: #1": (b"[   12.345678] lkdtm: it is #1 of them [#2], Not tainted\r\n", 2e6, False),
        "near: BUG": (
            b"[   12.345678] app: BUG: report it as a BUG: please, not as a WARNING: \r\n",
            2e6,
            False,
        ),
        "near: panic": (b"[   12.345678] app: Kernel panic - not syncing: said a program\r\n", 2e6, False),
        "flood of U": (b"U", 2e6, False),
        "flood of #1": (b"#1\n", 1e6, False),
        "oopses": (oops, 1e6, True),
    }


def speed(rounds: int) -> bool:
    """Measure and print the first part; return whether its goals are met."""
    met = True
    for name, (unit, goal, crashes) in texts().items():
        for size in SIZES:
            amount = AMOUNT if goal >= 1e9 else AMOUNT // 16
            pieces = pieces_of(unit, size, amount, goes_on=goal >= 1e9)
            rates = [rate(pieces, crashes=crashes) for _ in range(rounds)]
            few = pieces[: max(1, (1 << 18) // size)]
            ratio = statistics.median(rates) / naive_rate(few)
            got = statistics.median(rates)
            missed = "" if got >= goal or size < SIZES[0] else "  MISSED"
            met &= not missed
            print(
                f"  {name:18} {size >> 10:3} KB {got / 1e6:8.0f} MB/s {ratio:8.1f} x the expression"
                f"  (goal {goal / 1e6:.0f}){missed}"
            )
    return met


def latency() -> bool:
    """Print how long after its last byte a crash's title is known."""
    waits = []
    for path in sorted((TESTS / "crashes").glob("*.log")):
        data = path.read_bytes().partition(b"\n\n")[2]
        detector = Detector()
        # As a line brings them: 115 bytes each 10 ms.
        for first in range(0, len(data) - 115, 115):
            detector.feed(data[first : first + 115])
        start = time.process_time()
        events = detector.feed(data[(len(data) - 1) // 115 * 115 :])
        title = detector.peek()
        took = time.process_time() - start
        if title is not None or any(isinstance(event, CrashEnds) for event in events):
            waits.append(took)
    return lab.verdict("ms to a title after a crash's last byte, at most", max(waits) * 1e3, 50, most=True)


def recording(lines: int, seconds: float, turns: int) -> bool:
    """Measure and print the third part."""
    found: dict[str, list[console_lines.Sample]] = {}
    with lab.workspace(lines * 300_000) as folder:
        for _ in range(turns):
            for kind in (lab.Kbridge, Detecting):
                found.setdefault(kind.name, []).append(console_lines.sample(kind, folder, lines, seconds))
    cores = {name: statistics.median(sample.core for sample in got) for name, got in found.items()}
    rows = [
        [
            name,
            f"{cores[name]:.3f}",
            f"{min(sample.core for sample in got):.3f} to {max(sample.core for sample in got):.3f}",
            f"{max(sample.anonymous_mb for sample in got):.0f}",
            str(sum(sample.dropped for sample in got)),
        ]
        for name, got in found.items()
    ]
    heads = ["server", "core", "range", "anon MB", "dropped"]
    lab.table(f"{lines} lines, 115 bytes each 10 ms", heads, rows)
    alone, with_it = cores.values()
    return lab.verdict("of a core more than recording alone", with_it - alone, 0.1, most=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    parser.add_argument("--lines", type=int, default=1000)
    options = parser.parse_args()
    met = speed(3 if options.quick else 7)
    met &= latency()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    met &= recording(options.lines, 3.0 if options.quick else 5.0, 3 if options.quick else 5)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
