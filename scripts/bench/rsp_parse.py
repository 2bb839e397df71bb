"""How many packets a second the framer finds, beside the obvious regular expression on the same bytes.

    .venv/bin/python scripts/bench/rsp_parse.py [--quick]

Payloads of 64 bytes in pieces of 64 KB, as a busy stub sends them; both check each checksum.  Medians of rounds in
turn, and the ratio pair by pair.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import time

from gdbstubs.wire import Framer, frame

PACKET = re.compile(rb"\$([^$#]*)#([0-9a-f]{2})")


def by_framer(pieces: list[bytes]) -> int:
    """Return how many packets ``Framer`` finds."""
    framer = Framer(0x20000)
    return sum(len(framer.feed(piece)) for piece in pieces)


def by_expression(pieces: list[bytes]) -> int:
    """Return how many packets a regular expression and ``sum`` find."""
    found = 0
    for piece in pieces:
        for match in PACKET.finditer(piece):
            payload, digits = match.groups()
            found += sum(payload) & 0xFF == int(digits, 16)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    rounds = 5 if parser.parse_args().quick else 25
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    packet = frame(b"0123456789abcdef" * 4)
    pieces = [packet * (65536 // len(packet))] * 100
    count = len(pieces) * (65536 // len(packet))
    rates: dict[str, list[float]] = {"framer": [], "expression": []}
    for _ in range(rounds):
        for name, find in (("framer", by_framer), ("expression", by_expression)):
            start = time.perf_counter()
            found = find(pieces)
            rates[name].append(found / (time.perf_counter() - start))
            if found != count:
                raise SystemExit(f"{name} found {found} of {count} packets")
    for name, values in rates.items():
        print(f"  {name:12} {statistics.median(values) / 1e6:6.2f} million packets of 64 bytes a second")
    ratio = statistics.median(
        one / two for one, two in zip(rates["framer"], rates["expression"], strict=True)
    )
    print(f"ratio: {ratio:.2f} (goal for the framer: at least 1 million a second)")


if __name__ == "__main__":
    main()
