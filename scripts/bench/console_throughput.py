"""One line at full speed (64 KB writes): alone, with ten readers, and with a reader that never reads.

    .venv/bin/python scripts/bench/console_throughput.py [--quick]

kbridge beside conserver, ser2net, socat and a C reader, taking turns; medians.  Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import re
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import console_lab as lab

READERS = 10
PAIRS = 9
GB = 1_000_000_000


class FellBehindError(Exception):
    """A reader lost bytes: the run does not count as one with readers that keep up."""


@dataclass(frozen=True)
class Sample:
    mb_s: float
    cpu_s_gb: float
    growth_mb: float = 0.0
    told: int = 0


def sample(kind: type[lab.Server], folder: Path, total: int, readers: int, *, idle: bool = False) -> Sample:
    """Start ``kind``, warm it up, send ``total`` bytes through it, and count them all at the end."""
    run = folder / f"run{time.monotonic_ns()}"
    run.mkdir()
    (run / "load").symlink_to(folder / "load")
    path = str(run / "line")
    load = lab.Child(lab.LOAD_CORE, [str(run / "load"), "flood", path, "65536"])
    assert load.line() == "listening"
    server = kind(run, [path])
    server.start()
    drain = None
    sockets = []
    try:
        # One that opens its line for a reader only must have one first; the others may have the line first.
        if server.needs_reader:
            sockets = [server.reader() for _ in range(max(readers, 1))]
        assert load.line() == "connected"
        if not server.needs_reader:
            sockets = [server.reader() for _ in range(readers + idle)]
        reading = sockets[idle:]
        if reading:
            # The first of the sockets is the one that nobody reads.
            fds = [str(sock.fileno()) for sock in reading]
            command = [str(run / "load"), "drain", "1", *fds]
            drain = lab.Child(lab.LOAD_CORE, command, pass_fds=[sock.fileno() for sock in reading])
        warm = 128 << 20
        load.say(str(warm))
        load.line()
        if not server.needs_reader:
            lab.settled(server, warm)
        memory = server.child.anonymous_mb()
        cpu = server.child.cpu()
        load.say(str(total))
        seconds = float(load.line())
        if not server.needs_reader:
            lab.settled(server, warm + total)
        growth = server.child.anonymous_mb() - memory
        if drain is not None:
            check_readers(server, [int(drain.line()) for _ in reading], warm + total)
        cpu = server.child.cpu() - cpu
        return Sample(total / seconds / 1e6, cpu / (total / GB), growth, told(sockets[0]) if idle else 0)
    finally:
        lab.clean(run, (load, server, drain), sockets)


def check_readers(server: lab.Server, counts: list[int], expected: int) -> None:
    """Raise unless every reader got every byte."""
    if isinstance(server, lab.Kbridge) and min(counts) < expected:
        raise FellBehindError
    if not expected <= min(counts) <= max(counts) <= expected + server.own_words:
        raise RuntimeError(f"readers of {server.name} got {counts} of {expected} bytes")


def kept_up(kind: type[lab.Server], folder: Path, total: int, readers: int) -> Sample:
    """Return a sample in which every reader got every byte; at most three in a row may fail."""
    for _ in range(3):
        try:
            return sample(kind, folder, total, readers)
        except FellBehindError:
            print(f"a reader of {kind.name} fell behind by more than the ring; the run is repeated")
    raise RuntimeError("readers cannot keep up on this machine")


def told(sock: socket.socket) -> int:
    """Return how many bytes the reader that never read is told it lost, now that it reads."""
    sock.settimeout(2)
    seen = b""
    while not (found := re.search(rb"\[kbridge: (\d+) bytes lost\]", seen)):
        seen = seen[-100:] + sock.recv(1 << 20)
    return int(found[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the bytes, three runs")
    quick = parser.parse_args().quick
    total, runs = (256 << 20, 3) if quick else (1 << 30, 5)
    slow = total // 8  # for the peers that are slow: the same bytes a second, less wall time
    met = True
    with lab.workspace(total + (512 << 20)) as folder:
        kinds = [lab.Kbridge, lab.CReader, lab.Conserver, lab.Ser2net, lab.Socat]
        alone: dict[str, list[Sample]] = {kind.name: [] for kind in kinds}
        many: dict[str, list[Sample]] = {"kbridge": [], "conserver": [], "ser2net": []}
        idle: list[Sample] = []
        one: list[Sample] = []
        for _ in range(runs):
            for kind in kinds:
                amount = slow if kind is lab.Ser2net else total
                alone[kind.name].append(sample(kind, folder, amount, 0))
            for kind in (lab.Kbridge, lab.Conserver, lab.Ser2net):
                many[kind.name].append(kept_up(kind, folder, total if kind is lab.Kbridge else slow, READERS))
        # One run in ten falls to half for reasons of its own: three pairs would be a throw of dice.
        for _ in range(PAIRS):
            one.append(kept_up(lab.Kbridge, folder, total, 1))
            idle.append(sample(lab.Kbridge, folder, total, 1, idle=True))
        for title, results in (("One line, 64 KB writes", alone), (f"The same with {READERS} readers", many)):
            ours = lab.median([s.mb_s for s in results["kbridge"]])
            rows = [
                [
                    name
                    + (" (one reader: it records nothing)" if name == "ser2net" and results is alone else ""),
                    f"{lab.median([s.mb_s for s in got]):.0f}",
                    f"{min(s.mb_s for s in got):.0f} to {max(s.mb_s for s in got):.0f}",
                    f"{lab.median([s.cpu_s_gb for s in got]):.2f}",
                    f"{ours / lab.median([s.mb_s for s in got]):.2f}",
                ]
                for name, got in results.items()
            ]
            lab.table(
                title, ["server", "MB/s", "range", "CPU-s/GB", "kbridge is so many times as fast"], rows
            )
        print()
        speed = lab.median([s.mb_s for s in alone["kbridge"]])
        met &= lab.verdict("one line, MB/s", speed, 1000, most=False)
        met &= lab.verdict(
            "one line, CPU-s/GB", lab.median([s.cpu_s_gb for s in alone["kbridge"]]), 0.7, most=True
        )
        met &= lab.verdict(
            "ten readers, MB/s", lab.median([s.mb_s for s in many["kbridge"]]), 350, most=False
        )
        ratio = lab.median([i.mb_s / o.mb_s for i, o in zip(idle, one, strict=True)])
        met &= lab.verdict("with a reader that never reads, times without it", ratio, 0.9, most=False)
        met &= lab.verdict("growth with it, MB", max(s.growth_mb for s in idle), 1, most=True)
        met &= lab.verdict("bytes it is told it lost, MB", min(s.told for s in idle) / 1e6, 1, most=False)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
