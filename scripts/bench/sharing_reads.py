"""Eight debuggers that read at one stop through the relay, against one straight on the stub.

    .venv/bin/python scripts/bench/sharing_reads.py [--quick] [--cloud] [--depth N]

Each reads its own memory, which nobody keeps, in pieces of 2,000 bytes as fast as it can, and asks for the next when
it has the last, as gdb does (or, with ``--depth``, has so many requests under way, on both ways alike).

Two cores have to do for three: straight, guest and debugger have one each or share one, and the quicker counts;
through the relay, that has one core, guest and debuggers share the other.  Blocks alternate; the figure is the median
of the pairs' ratios with its 95 % interval.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from console_lab import table, verdict
from gdb_session import interval
from sharing_lab import GUEST_CORE, RELAY_CORE, Bench, bench

SESSIONS = 8
SHARE = 0.8
FAIR = 2.0


def block(lab: Bench, core: int, path: Path, sessions: int, depth: int, seconds: float) -> list[float]:
    """Return each session's replies in a second."""
    child = lab.debuggers(core, "reads", path, sessions, depth, f"{lab.memory:x}")
    try:
        child.say(f"{seconds / 4}")
        child.line()
        child.say(f"{seconds}")
        took, *replies = map(float, child.line().split())
    finally:
        child.end()
    return [count / took for count in replies]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs, for a first look")
    parser.add_argument("--cloud", action="store_true", help="on a booted guest, not on an empty machine")
    parser.add_argument("--depth", type=int, action="append", help="requests of each session under way")
    asked = parser.parse_args()
    pairs, seconds = (5, 0.6) if asked.quick else (21, 1.0)
    depths: list[int] = asked.depth or [1]
    rows: list[list[str]] = []
    verdicts: list[tuple[int, float, float]] = []
    with bench(cloud=asked.cloud) as lab:
        for depth in depths:
            apart, together, eight, one = [], [], [], []
            spread: list[float] = []
            for _ in range(pairs):
                apart += block(lab, RELAY_CORE, lab.straight, 1, depth, seconds)
                together += block(lab, GUEST_CORE, lab.straight, 1, depth, seconds)
                shares = block(lab, GUEST_CORE, lab.relayed, SESSIONS, depth, seconds)
                eight.append(sum(shares))
                spread.append(max(shares) / max(min(shares), 1e-9))
                one += block(lab, GUEST_CORE, lab.relayed, 1, depth, seconds)
            quicker = max((together, apart), key=statistics.median)
            ratios = [many / alone for many, alone in zip(eight, quicker, strict=True)]
            low, high = interval(ratios)
            rows.append(
                [
                    str(depth),
                    *(f"{statistics.median(values):.0f}" for values in (apart, together, one, eight)),
                    f"{statistics.median(many / alone for many, alone in zip(eight, apart, strict=True)):.2f}",
                    f"{statistics.median(ratios):.2f} ({low:.2f} .. {high:.2f})",
                    f"{statistics.median(spread):.2f} (at most {max(spread):.2f})",
                ]
            )
            verdicts.append((depth, statistics.median(ratios), statistics.median(spread)))
    heads = ["under way", "straight, a core each", "straight, one core", "one, relayed", "eight, relayed"]
    heads += ["eight : a core each", "eight : quicker straight", "most : least"]
    table(f"{pairs} rounds, replies of 2,000 bytes in a second (medians)", heads, rows)
    print()
    met = True
    for depth, ratio, share in verdicts:
        met &= verdict(f"eight : one straight, {depth} under way", ratio, SHARE, most=False)
        met &= verdict(f"most : least of the eight, {depth} under way", share, FAIR, most=True)
    sys.exit(not met)


if __name__ == "__main__":
    main()
