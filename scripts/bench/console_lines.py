"""A thousand lines of 11.5 KB/s, written 115 bytes at a time: what a host full of guests at 115200 baud sends.

    .venv/bin/python scripts/bench/console_lines.py [--quick] [--lines N]

kbridge beside conserver, ser2net and a C reader, taking turns; medians.  Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import console_lab as lab

CHUNK = 115
INTERVAL_MS = 10
RING_BYTES = 65536


@dataclass(frozen=True)
class Sample:
    connected: float
    core: float
    us_chunk: float
    dropped: int
    anonymous_mb: float


def sample(kind: type[lab.Server], folder: Path, lines: int, seconds: float) -> Sample:
    """Start ``kind`` for ``lines`` lines and measure a steady stream to all of them."""
    run = folder / f"run{time.monotonic_ns()}"
    run.mkdir()
    (run / "load").symlink_to(folder / "load")
    command = [str(run / "load"), "trickle", str(run), str(lines), str(CHUNK), str(INTERVAL_MS)]
    load = lab.Child(lab.LOAD_CORE, command)
    assert load.line() == "listening"
    server = kind(run, [str(run / str(number)) for number in range(lines)], ring_bytes=RING_BYTES, most=16384)
    began = time.monotonic()
    server.start()
    drain = None
    sockets = []
    try:
        if isinstance(server, lab.Ser2net):
            sockets = [server.reader(number) for number in range(lines)]
        load.line()
        connected = time.monotonic() - began
        if sockets:
            fds = [sock.fileno() for sock in sockets]
            drain = lab.Child(lab.LOAD_CORE, [str(run / "load"), "drain", "2", *map(str, fds)], pass_fds=fds)
        rounds = int(1000 / INTERVAL_MS)
        load.say(str(rounds))
        sent, dropped = map(int, load.line().split()[1:])
        cpu = server.child.cpu()
        load.say(str(int(rounds * seconds)))
        took, more, lost = load.line().split()
        cpu = server.child.cpu() - cpu
        dropped += int(lost)
        sent += int(more)
        memory = server.child.anonymous_mb()
        if drain is None:
            lab.settled(server, sent)
        else:
            got = sum(int(drain.line()) for _ in sockets)
            if got != sent:
                raise RuntimeError(f"the readers of {server.name} got {got} of {sent} bytes")
        chunks = int(more) / CHUNK
        return Sample(connected, cpu / float(took), cpu / chunks * 1e6, dropped, memory)
    finally:
        lab.clean(run, (load, server, drain), sockets)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 s instead of 5, two runs of the others")
    parser.add_argument("--lines", type=int, default=1000)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    runs = 3 if options.quick else 5
    seconds = 3.0 if options.quick else 5.0
    with lab.workspace(options.lines * 300_000) as folder:
        kinds = [lab.Kbridge, lab.CReader, lab.Ser2net, lab.Conserver]
        results: dict[str, list[Sample]] = {kind.name: [] for kind in kinds}
        for turn in range(runs):
            for kind in kinds:
                if kind is lab.Conserver and turn:  # needs most of a minute to take up a thousand lines
                    continue
                results[kind.name].append(sample(kind, folder, options.lines, seconds))
    ours = lab.median([s.core for s in results["kbridge"]])
    rows = [
        [
            name,
            str(len(got)),
            f"{lab.median([s.connected for s in got]):.2f}",
            f"{lab.median([s.core for s in got]):.2f}",
            f"{min(s.core for s in got):.2f} to {max(s.core for s in got):.2f}",
            f"{lab.median([s.us_chunk for s in got]):.1f}",
            str(sum(s.dropped for s in got)),
            f"{max(s.anonymous_mb for s in got):.0f}",
            f"{lab.median([s.core for s in got]) / ours:.2f}",
        ]
        for name, got in results.items()
    ]
    heads = [
        "server",
        "runs",
        "connected s",
        "core",
        "range",
        "µs a write",
        "dropped",
        "anon MB",
        "times kbridge's core",
    ]
    lab.table(f"{options.lines} lines, 115 bytes each 10 ms", heads, rows)
    print()
    mine = results["kbridge"]
    met = lab.verdict("core", ours, 0.45, most=True)
    met &= lab.verdict("bytes lost", sum(s.dropped for s in mine), 0, most=True)
    met &= lab.verdict("MB besides the rings", max(s.anonymous_mb for s in mine), 60, most=True)
    connected = lab.median([s.connected for s in mine])
    met &= lab.verdict("s from the start until all are connected", connected, 3, most=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
