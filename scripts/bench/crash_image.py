"""A 1 GiB guest's memory taken as an image, against what QEMU's `dump-guest-memory` takes by itself.

    .venv/bin/python scripts/bench/crash_image.py [--quick]

By itself: an ELF file beside where the image goes, from the command to its reply.  The image: compressed, whole on the
disk under its name.  Pairs in turn, the guest standing.  The figure is the median of the pairs' ratios with its 95 %
interval.  Twice: a guest that has booted, most of whose memory is empty, and one that has filled three quarters of it
with what does not compress.  Beside it: QEMU's own kdump-zlib, how late the reactor's clock was at most meanwhile,
and how long 100 pages take to read out of the image at random.  Needs the `cloud` guest (`scripts/guest build`).
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from console_lab import verdict
from gdb_first_prompt import guest
from gdb_session import interval
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from kbridge.crash.core_file import CoreFile
from kbridge.crash.image import ImageFacts, take_image
from kbridge.crash.image_file import ImageLimits
from kbridge.hypervisors.qemu import QemuMachine
from kbridge.transports.endpoints import Unix

GOAL = 1.2
MEMORY = 1024
FILL = (
    "mkdir /fill; mount -t tmpfs -o size=100% none /fill; dd if=/dev/urandom of=/fill/a bs=1M count=24; "
    "for i in $(seq 30); do cat /fill/a; done >/fill/b; du -m /fill; echo fil''led\r"
)
"""A compressor does not see that far back."""
reactor: Any = installed


class Console:
    """The guest's console."""

    def __init__(self, endpoint: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(240)
        self._socket.connect(endpoint.removeprefix("unix:"))

    def until(self, text: bytes) -> None:
        said = b""
        while text not in said:
            said = said[-100:] + self._socket.recv(65536)

    def type(self, line: str) -> None:
        self._socket.sendall(line.encode())


async def plain(machine: QemuMachine, path: Path, kind: str) -> float:
    """Have QEMU dump to a file; return how long its command takes, in seconds."""
    begin = time.perf_counter()
    # The human monitor's command returns when the dump is complete.
    said = await machine.human_monitor(f"dump-guest-memory {kind} {path}")
    if said.strip():
        raise SystemExit(said)
    return time.perf_counter() - begin


async def image(machine: QemuMachine, path: Path) -> tuple[float, float, ImageFacts]:
    """Take an image; return how long it takes, how late the reactor was at most, both in seconds, and its facts."""
    late, last = 0.0, time.perf_counter()

    def tick() -> None:
        nonlocal late, last
        now = time.perf_counter()
        late, last = max(late, now - last - 0.005), now

    clock = LoopingCall(tick)
    clock.start(0.005)
    begin = time.perf_counter()
    facts = await take_image(reactor, machine, path, ImageLimits(8 << 30, 0))
    seconds = time.perf_counter() - begin
    clock.stop()
    return seconds, late, facts


def remove(path: Path) -> None:
    """Make room."""
    path.unlink()


def read_pages(path: Path) -> float:
    """Return how long a page takes that is read at random, in seconds."""
    core = CoreFile.open(path)
    chance = random.Random(1)
    begin = time.perf_counter()
    for _ in range(100):
        core.read_physical(chance.randrange(1 << 20, (MEMORY << 20) - 4096, 4096), 4096)
    seconds = time.perf_counter() - begin
    core.close()
    return seconds / 100


async def compare(machine: QemuMachine, folder: Path, what: str, pairs: int) -> bool:
    """Measure one state of the guest and print it; return whether the goal is met."""
    ratios, took, lates = [], {"by itself": [], "image": []}, []  # type: ignore[var-annotated]
    for number in range(-1, pairs):
        alone = await plain(machine, folder / "plain", "")
        remove(folder / "plain")
        seconds, late, facts = await image(machine, folder / "vmcore")
        if number >= 0:
            took["by itself"].append(alone)
            took["image"].append(seconds)
            ratios.append(seconds / alone)
            lates.append(late)
    zlib = await plain(machine, folder / "kdump", "-z")
    low, high = interval(ratios)
    print(f"{what}: {pairs} pairs, seconds (medians)")
    for name, values in took.items():
        print(f"  {name:14} {statistics.median(values):.2f}")
    print(f"  {'kdump-zlib':14} {zlib:.2f}")
    print(f"  ratio {statistics.median(ratios):.2f} ({low:.2f} .. {high:.2f})")
    print(f"  its file {facts.file_bytes / 1e6:.0f} MB of {facts.memory_bytes / 1e6:.0f}")
    print(
        f"  the reactor was {1000 * max(lates):.0f} ms late at most (median {1000 * statistics.median(lates):.0f})"
    )
    print(f"  a page read at random {1e6 * read_pages(folder / 'vmcore'):.0f} µs")
    return verdict(f"image : by itself, {what}", statistics.median(ratios), GOAL, most=True)


async def measure(told: dict[str, Any], folder: Path, pairs: int) -> bool:
    """Measure both states of the guest."""
    machine, found = (
        QemuMachine(reactor, Unix(told["qmp"].removeprefix("unix:")), command_seconds=120),
        Deferred(),
    )
    machine.subscribe(lambda event: found.callback(None) if event.name == "machine.found" else None)
    console = Console(told["console"])
    machine.start()
    await found
    console.until(b"kbridge-guest: ready")
    await machine.pause()
    met = await compare(machine, folder, "a guest that has booted", pairs)
    await machine.resume()
    console.type(FILL)
    console.until(b"filled\r\n")
    await machine.pause()
    met = await compare(machine, folder, "three quarters full of noise", pairs) and met
    await machine.stop()
    return met


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs, for a first look")
    pairs = 3 if parser.parse_args().quick else 11
    folder = Path(tempfile.mkdtemp(prefix="kb-image-"))
    met: list[bool] = []
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        told = guest(stack, "--memory", str(MEMORY))
        work = Deferred.fromCoroutine(measure(told, folder, pairs))
        work.addCallback(met.append)
        work.addErrback(lambda failure: failure.printTraceback())
        work.addBoth(lambda _: reactor.stop())
        reactor.run()
    sys.exit(not (met and met[0]))


if __name__ == "__main__":
    main()
