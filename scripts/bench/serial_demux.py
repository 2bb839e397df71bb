"""How many bytes a second the shared line's demultiplexer takes, beside a regular expression that splits naively.

    .venv/bin/python scripts/bench/serial_demux.py [--quick]

Plain text, real packets, hostile text and floods, in pieces of 64 KB and of 4 KB; pieces exist before the clock starts.
The expression checks neither checksum nor state, as agent-proxy does; beside floods it is left out, which take it
hours.  Medians of rounds in turn, and the ratio pair by pair.  Last: how long 4 KB of text wait after the byte that
showed them to be no packet.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import time

from gdbstubs.demux import SILENCE, LineDemultiplexer
from gdbstubs.wire import frame

NAIVE = re.compile(rb"\$[^#]*#..|[^$]+", re.DOTALL)
SIZES = (65536, 4096)
AMOUNT = 16 << 20
STOP = frame(b"T05thread:01;")


def pieces_of(unit: bytes, size: int) -> list[bytes]:
    """Return copies of ``unit`` end to end, cut into pieces, each an object of its own."""
    amount = AMOUNT
    data = unit * (amount // len(unit) + 1)
    return [data[first : first + size] for first in range(0, amount, size)]


def held() -> LineDemultiplexer:
    """Return a line on which a stop was reported and a question was sent."""
    line = LineDemultiplexer()
    line.received(STOP, 0.0)
    line.expired(SILENCE)
    line.sent_to_stub(b"+" + frame(b"g"))
    line.output.clear()
    return line


def by_machine(line: LineDemultiplexer, pieces: list[bytes]) -> float:
    """Return how many bytes a second the machine takes."""
    start = time.perf_counter()
    for piece in pieces:
        line.received(piece, 1.0)
        line.output.clear()
    return AMOUNT / (time.perf_counter() - start)


def by_expression(pieces: list[bytes]) -> float:
    """Return how many bytes a second the naive expression takes."""
    start = time.perf_counter()
    for piece in pieces:
        NAIVE.findall(piece)
    return AMOUNT / (time.perf_counter() - start)


def wait() -> float:
    """Return the processor's seconds from the byte that shows text to be no packet to its output, 99 of 100 times."""
    waits = []
    for _ in range(2000):
        line = LineDemultiplexer()
        line.received(b"$T05" + b"a" * 4000, 0.0)
        start = time.thread_time()
        line.received(b"\n", 0.001)
        waits.append(time.thread_time() - start)
        if line.deadline is not None:
            raise SystemExit("text was kept")
    return statistics.quantiles(waits, n=100)[-1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    rounds = 3 if parser.parse_args().quick else 11
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rng = random.Random(1)
    text = b"[   12.345678] systemd[1]: Started a service with a name of some length.\r\n"
    hostile = b"root@web1:~$ cat log\r\n-> $?#3f\r\n<- +" + STOP + b"\r\n1 + 1 - $HOME #x\r\n"
    kinds = {
        "plain text": (text, False, 2e9),
        "packets of 1000 bytes": (frame(b"0123456789abcdef" * 62), True, 100e6),
        "packets of 64 bytes": (frame(b"0123456789abcdef" * 4), True, 100e6),
        "hostile text": (hostile, False, 10e6),
        "flood of $": (b"$", False, 10e6),
        "flood of #": (b"#", False, 10e6),
        "wrong checksums": (b"$a#00\n", False, 10e6),
        "wrong stops": (b"$S05#00", False, 10e6),
        "right stops": (frame(b"S05"), False, 10e6),
        "flood of $, held": (b"$", True, 10e6),
        "wrong checksums, held": (b"$a#00", True, 10e6),
        "random bytes": (rng.randbytes(65536), False, 10e6),
    }
    for name, (unit, stands, goal) in kinds.items():
        for size in SIZES:
            pieces = pieces_of(unit, size)
            rates, ratios = [], []
            for _ in range(rounds):
                line = held() if stands else LineDemultiplexer()
                if not stands:
                    line.sent_to_stub(b"$?#3f")
                rates.append(by_machine(line, pieces))
                if goal > 10e6:
                    ratios.append(rates[-1] / by_expression(pieces))
                if goal == 100e6 and line.counts.packets < AMOUNT // len(unit) - 1:
                    raise SystemExit(f"{line.counts.packets} packets of {AMOUNT // len(unit)}")
            rate = statistics.median(rates)
            beside = f"{statistics.median(ratios):8.2f} x the expression" if ratios else ""
            missed = "" if rate >= goal else "  MISSED"
            print(
                f"  {name:22} {size >> 10:3} KB {rate / 1e6:10.0f} MB/s{beside}  (goal {goal / 1e6:.0f}){missed}"
            )
    print(f"99 % of text waits, once known to be no packet: {wait() * 1e3:.3f} ms (goal: at most 2)")


if __name__ == "__main__":
    main()
