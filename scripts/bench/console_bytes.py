"""Lines written byte by byte, as QEMU's 16550 does: one flooding line, on a unix socket and on a pty.

    .venv/bin/python scripts/bench/console_bytes.py [--quick]

kbridge beside a C reader on the same backend, in alternating pairs.  Then the poller's rule for pauses is put to the
test: a line that floods byte by byte among 200 that trickle must be as fast as among none.
Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import console_lab as lab

TRICKLING = 200


@dataclass(frozen=True)
class Sample:
    mb_s: float
    us_byte: float


def sample(kind: type[lab.Server], folder: Path, backend: str, total: int) -> Sample:
    """Send ``total`` bytes one at a time and measure the server's CPU for each."""
    run = folder / f"run{time.monotonic_ns()}"
    run.mkdir()
    (run / "load").symlink_to(folder / "load")
    if backend == "pty":
        load = lab.Child(lab.LOAD_CORE, [str(run / "load"), "pty", "1"])
        path = load.line()
    else:
        path = str(run / "line")
        load = lab.Child(lab.LOAD_CORE, [str(run / "load"), "flood", path, "1"])
        assert load.line() == "listening"
    server = kind(run, [path])
    server.start()
    try:
        if backend == "unix":
            assert load.line() == "connected"
        warm = 100_000
        load.say(str(warm))
        load.line()
        lab.settled(server, warm)
        cpu = server.child.cpu()
        load.say(str(total))
        seconds = float(load.line())
        lab.settled(server, warm + total)
        cpu = server.child.cpu() - cpu
        return Sample(total / seconds / 1e6, cpu / total * 1e6)
    finally:
        load.end()
        server.end()


def among(folder: Path, others: int, total: int) -> float:
    """Return the MB/s of one line that floods byte by byte while ``others`` trickle."""
    run = folder / f"run{time.monotonic_ns()}"
    run.mkdir()
    (run / "load").symlink_to(folder / "load")
    path = str(run / "line")
    load = lab.Child(lab.LOAD_CORE, [str(run / "load"), "flood", path, "1"])
    assert load.line() == "listening"
    sockets = [path]
    trickle = None
    if others:
        trickle = lab.Child(lab.LOAD_CORE, [str(run / "load"), "trickle", str(run), str(others), "115", "10"])
        assert trickle.line() == "listening"
        sockets += [str(run / str(number)) for number in range(others)]
    server = lab.Kbridge(run, sockets, ring_bytes=65536)
    server.start()
    try:
        assert load.line() == "connected"
        if trickle is not None:
            trickle.line()
            trickle.say("100000")
        load.say(str(total))
        return total / float(load.line()) / 1e6
    finally:
        for child in (load, server, trickle):
            if child is not None:
                child.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the bytes, five pairs instead of nine"
    )
    quick = parser.parse_args().quick
    total, pairs = (1_000_000, 5) if quick else (4_000_000, 9)
    met = True
    with lab.workspace(256 << 20) as folder:
        for backend, goal_bytes in (("unix", total), ("pty", total * 4)):
            mine, theirs = [], []
            for turn in range(pairs):
                order = (lab.Kbridge, lab.CReader) if turn % 2 else (lab.CReader, lab.Kbridge)
                for kind in order:
                    (mine if kind is lab.Kbridge else theirs).append(
                        sample(kind, folder, backend, goal_bytes)
                    )
            rows = [
                [
                    name,
                    f"{lab.median([s.mb_s for s in got]):.2f}",
                    f"{lab.median([s.us_byte for s in got]):.3f}",
                ]
                for name, got in (("kbridge", mine), ("C reader", theirs))
            ]
            lab.table(f"One byte a write, {backend}", ["server", "MB/s", "CPU µs a byte"], rows)
            ratios = [a.us_byte / b.us_byte for a, b in zip(mine, theirs, strict=True)]
            print(f"\nratios of the pairs: {' '.join(f'{ratio:.2f}' for ratio in sorted(ratios))}")
            met &= lab.verdict(
                f"{backend}: kbridge's CPU a byte, times C's", lab.median(ratios), 1.2, most=True
            )
        print()
        shares = []
        for _ in range(pairs):
            alone = among(folder, 0, total)
            shares.append(among(folder, TRICKLING, total) / alone)
        what = f"a byte-by-byte flood among {TRICKLING} trickling lines, times its speed alone"
        met &= lab.verdict(what, lab.median(shares), 0.5, most=False)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
