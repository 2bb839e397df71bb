"""Looking up addresses of a kernel: one in a cold process, many at once, one at a time; beside other tools.

    .venv/bin/python scripts/bench/symbols_lookup.py [--quick] [--vmlinux FILE]

A cold process is timed from its start to its end, with files in the page cache and the index made before: the command,
and the library alone, which is `python -c` with what opens an index and asks it.  An empty `python -c pass` is beside
them in each round, and what the library takes is told with it and without.  eu-addr2line, llvm-symbolizer and gdb
answer for the same address where they are installed; `--no-index` is the command without an index, and without
`symbolic`.

Many are random addresses of the kernel's text in one process, in random order: to numbers of source locations, equal
for addresses with equal frames, and on to frames with strings.  llvm-symbolizer is given the same ones.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from console_lab import table, verdict

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from kbridge.commands.symbols_command import open_index  # noqa: E402
from kbridge.debuginfo import cache  # noqa: E402
from symbols.index import Index  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kbridge"
VMLINUX = CACHE / "guests/cloud/current/vmlinux"
COMMAND_GOAL, LIBRARY_GOAL, DIRECT_GOAL = 50.0, 15.0, 500.0
NUMBERS_GOAL, STRINGS_GOAL, SINGLE_GOAL = 1e6, 3e5, 1e5
LIBRARY = """
import mmap
from symbols.index import Index
with open({path!r}, "rb") as file:
    index = Index(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
for one in index.frames({address:#x}):
    print(one.function, one.file, one.line)
"""


def commands(vmlinux: Path, index: Path, address: int) -> dict[str, list[str]]:
    """Return what answers for one address, by name."""
    kbridge = [
        str(Path(sys.executable).with_name("kbridge")),
        "symbols",
        "addr2line",
        "--vmlinux",
        str(vmlinux),
    ]
    library = LIBRARY.format(path=str(index), address=address)
    found = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "library": [sys.executable, "-c", library],
        "kbridge symbols addr2line": [*kbridge, hex(address)],
        "the same with --no-index": [*kbridge, "--no-index", hex(address)],
        "eu-addr2line -ifae": ["eu-addr2line", "-ifae", str(vmlinux), hex(address)],
        "llvm-symbolizer": ["llvm-symbolizer", f"--obj={vmlinux}", "--inlines", hex(address)],
        "gdb (no inlined calls)": ["gdb", "-nx", "-batch", "-ex", f"info line *{address:#x}", str(vmlinux)],
    }
    return {name: one for name, one in found.items() if shutil.which(one[0])}


def timed(command: list[str]) -> float:
    """Return milliseconds of a whole process."""
    # Where Python may not keep what it compiled, each start compiles it anew.
    known = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, cwd=ROOT, env=known)
    return (time.perf_counter() - start) * 1e3


def cold(vmlinux: Path, index: Path, address: int, rounds: int) -> bool:
    """Measure single processes."""
    asked = commands(vmlinux, index, address)
    times: dict[str, list[float]] = {name: [] for name in asked}
    for number in range(rounds + 1):
        for name, command in asked.items():
            if name.startswith("gdb") and number > 2:
                continue
            taken = timed(command)
            if number:
                times[name].append(taken)
    rows = [
        [name, f"{statistics.median(one):.1f}", f"{min(one):.1f}", f"{max(one):.1f}", str(len(one))]
        for name, one in times.items()
    ]
    table("one address, cold process, milliseconds", ["what", "median", "least", "most", "rounds"], rows)
    library, empty = times["library"], times["python -c pass"]
    beside = statistics.median(one - two for one, two in zip(library, empty, strict=True))
    print(f"\nthe library takes {beside:.1f} ms beside an empty start\n")
    met = verdict(
        "kbridge symbols addr2line, ms",
        statistics.median(times["kbridge symbols addr2line"]),
        COMMAND_GOAL,
        most=True,
    )
    met &= verdict("the library, ms with the start", statistics.median(library), LIBRARY_GOAL, most=True)
    direct = statistics.median(times["the same with --no-index"])
    return verdict("without index and symbolic, ms", direct, DIRECT_GOAL, most=True) and met


def many(vmlinux: Path, opened: Path, count: int, rounds: int) -> bool:
    """Measure in one process."""
    chosen = random.Random(1)
    index = open_index(vmlinux)
    start, end = (index.named(name)[0].address for name in ("_stext", "_etext"))
    addresses = [chosen.randrange(start, end) for _ in range(count)]
    names = ("to numbers", "to frames with strings", "frames one at a time", "llvm-symbolizer")
    rates: dict[str, list[float]] = {name: [] for name in names}
    text = "".join(f"{one:#x}\n" for one in addresses)
    for number in range(rounds):
        # Opened anew: nothing is remembered of the rounds before.
        index = Index(memoryview(opened.read_bytes()))
        begun = time.perf_counter()
        index.locations(addresses)
        numbered = time.perf_counter()
        frames = index.frames_of(addresses)
        done = time.perf_counter()
        rates[names[0]].append(count / (numbered - begun))
        rates[names[1]].append(count / (done - numbered))
        assert sum(map(len, frames)) > count / 2
        del frames
        index = Index(memoryview(opened.read_bytes()))
        some = addresses[: count // 5]
        begun = time.perf_counter()
        for one in some:
            index.frames(one)
        rates[names[2]].append(len(some) / (time.perf_counter() - begun))
        if number < 2 and shutil.which("llvm-symbolizer"):
            begun = time.perf_counter()
            command = ["llvm-symbolizer", f"--obj={vmlinux}", "--inlines"]
            subprocess.run(command, input=text, stdout=subprocess.DEVNULL, text=True, check=True)
            rates[names[3]].append(count / (time.perf_counter() - begun))
    rows = [
        [name, f"{statistics.median(one):,.0f}", f"{min(one):,.0f}", f"{max(one):,.0f}", str(len(one))]
        for name, one in rates.items()
        if one
    ]
    table(f"{count:,} addresses, a second", ["what", "median", "least", "most", "rounds"], rows)
    print()
    met = verdict("to numbers, a second", statistics.median(rates[names[0]]), NUMBERS_GOAL, most=False)
    met &= verdict("with strings, a second", statistics.median(rates[names[1]]), STRINGS_GOAL, most=False)
    return (
        verdict("one at a time, a second", statistics.median(rates[names[2]]), SINGLE_GOAL, most=False)
        and met
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    parser.add_argument("--vmlinux", type=Path, default=VMLINUX)
    arguments = parser.parse_args()
    vmlinux = arguments.vmlinux.resolve()
    index = open_index(vmlinux)
    (symbol,) = index.named("vfs_write")
    # In the middle of a function with inlined calls.
    address = max(range(symbol.address, symbol.address + symbol.size), key=lambda one: len(index.frames(one)))
    kept = cache.folder() / f"{index.build_id}.index"
    met = cold(vmlinux, kept, address, 9 if arguments.quick else 40)
    count = 100_000 if arguments.quick else 300_000
    return 0 if many(vmlinux, kept, count, 5 if arguments.quick else 9) and met else 1


if __name__ == "__main__":
    sys.exit(main())
