"""A debugger that steps 1000 times while seven others wait for a stop, against the same without them.

    .venv/bin/python scripts/bench/sharing_steps.py [--quick]

All come through one relay.  Blocks alternate in one run; the figure is the median of the pairs' ratios with its 95 %
interval.  A step takes less than what is told to those who wait, so they are to cost next to nothing.  The machine
steps through its firmware: a kernel may halt, and a halted processor does not step.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from console_lab import verdict
from gdb_session import interval
from sharing_lab import GUEST_CORE, Bench, bench

WAITING = 7
GOAL = 1.3


def block(lab: Bench, waiting: int, steps: int) -> tuple[float, int]:
    """Return the microseconds of a step, and how often somebody who waits was told of one."""
    child = lab.debuggers(GUEST_CORE, "steps", lab.relayed, waiting)
    try:
        child.say(str(steps // 10))
        child.line()
        child.say(str(steps))
        took, told = child.line().split()
    finally:
        child.end()
    return float(took) / steps * 1e6, int(told)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs, for a first look")
    quick = parser.parse_args().quick
    pairs, steps = (5, 500) if quick else (25, 1000)
    alone: list[float] = []
    watched: list[float] = []
    told = 0
    with bench() as lab:
        for number in range(pairs):
            for waiting in (0, WAITING) if number % 2 == 0 else (WAITING, 0):
                took, woken = block(lab, waiting, steps)
                (watched if waiting else alone).append(took)
                told += woken
    ratios = [one / two for one, two in zip(watched, alone, strict=True)]
    low, high = interval(ratios)
    print(f"{pairs} pairs of {steps} steps, us a step (median)")
    print(f"  alone                    {statistics.median(alone):7.1f}")
    print(f"  {WAITING} wait for a stop       {statistics.median(watched):7.1f}   told {told} times in all")
    print(f"  ratio {statistics.median(ratios):.3f} ({low:.3f} .. {high:.3f})")
    sys.exit(not verdict("with those who wait : alone", statistics.median(ratios), GOAL, most=True))


if __name__ == "__main__":
    main()
