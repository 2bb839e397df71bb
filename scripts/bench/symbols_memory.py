"""What it takes to learn a kernel out of a guest's memory: with its file at hand, and with no file at all.

    .venv/bin/python scripts/bench/symbols_memory.py [--quick]

The guest is Debian's cloud kernel, moved by KASLR, with its modules; memory is read straight from QEMU's stub by a
client in Python on one core, the guest has the other.  Beside each figure stands what was asked of the stub.  The
same names and types are read from the files too, in the same rounds: the ratio is what it costs to have no file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from console_lab import LOAD_CORE, READY_SECONDS, SERVER_CORE, table, verdict

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "tests"))

from memory_lab import Shell, StubMemory  # noqa: E402

from kbridge.debuginfo.finders import read_kernel, read_layouts  # noqa: E402
from symbols import elf, kallsyms, kaslr, modules, system_map  # noqa: E402
from symbols.reads import Read  # noqa: E402

if TYPE_CHECKING:
    from kbridge.debuginfo.finders import KernelFile
    from symbols.kallsyms import Kallsyms
    from symbols.reads import Search

ATTACH_GOAL = 20.0
NO_FILE_GOAL = 1000.0


def between(start: int, end: int) -> Search[bytes]:
    (data,) = yield (Read(start, end - start),)
    return data


def attach(memory: StubMemory, file: KernelFile) -> None:
    """Find the slide, the build-id and the modules of a kernel whose file is there."""
    found = memory.run(kaslr.find([file.linked]))
    assert file.layout is not None
    assert file.modules is not None
    assert memory.run(modules.read(file.layout, file.modules + found.slide)).modules


def names(memory: StubMemory) -> Kallsyms:
    """Find every name of a kernel that nobody has a file of."""
    return memory.run(kallsyms.search(memory.run(kaslr.divide_error_handler())))


def types(memory: StubMemory, own: Kallsyms) -> None:
    """Read its types and its build-id."""
    places = own.find("__start_notes", "__stop_notes", "__start_BTF", "__stop_BTF")
    notes = memory.run(between(places["__start_notes"], places["__stop_notes"]))
    assert elf.build_id_of_notes(notes) is not None
    known = read_layouts(memory.run(between(places["__start_BTF"], places["__stop_BTF"])))
    assert None not in known


def timed(work: Callable[[], object]) -> float:
    """Return milliseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def measure(stub: str, vmlinux: Path, rounds: int) -> bool:
    """Measure in rounds, print, and tell whether the goals are met."""
    file = read_kernel(vmlinux)
    listed = vmlinux.with_name("System.map")
    whats = (
        "slide, build-id, modules",
        "names",
        "types, build-id",
        "names from System.map",
        "types from vmlinux",
    )
    times: dict[str, list[float]] = {what: [] for what in whats}
    costs = dict.fromkeys(whats, "-")
    with StubMemory(stub) as memory:
        for _ in range(rounds):
            memory.cost()
            times[whats[0]].append(timed(lambda: attach(memory, file)))
            costs[whats[0]] = memory.cost()
            own = []
            times[whats[1]].append(timed(lambda own=own: own.append(names(memory))))
            costs[whats[1]] = memory.cost()
            times[whats[2]].append(timed(lambda own=own: types(memory, own[0])))
            costs[whats[2]] = memory.cost()
            times[whats[3]].append(timed(lambda: system_map.parse(listed.read_bytes())))
            times[whats[4]].append(timed(lambda: read_kernel(vmlinux)))
    medians = {what: statistics.median(one) for what, one in times.items()}
    rows = [[what, f"{medians[what]:.1f}", f"{max(times[what]):.1f}", costs[what]] for what in whats]
    table(f"{rounds} rounds, milliseconds", ["what", "median", "most", "asked of the stub"], rows)
    bare = medians[whats[1]] + medians[whats[2]]
    files = medians[whats[3]] + medians[whats[4]]
    print(f"\nwithout a file: {bare / files:.2f} times what it takes to read the same from files\n")
    met = verdict("slide, build-id and modules, ms", medians[whats[0]], ATTACH_GOAL, most=True)
    return verdict("names, types and build-id with no file, ms", bare, NO_FILE_GOAL, most=True) and met


def main() -> int:
    """Start a guest, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    arguments = parser.parse_args()
    guest = subprocess.Popen(
        ["taskset", "-c", str(SERVER_CORE), str(HERE.parent / "guest"), "run", "cloud", "--stub"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        os.sched_setaffinity(0, {LOAD_CORE})
        assert guest.stdout is not None
        told = json.loads(guest.stdout.readline())
        with Shell(told["console"]) as shell:
            shell.booted()
            shell.run("true")
        return 0 if measure(told["stub"], Path(told["vmlinux"]), 5 if arguments.quick else 25) else 1
    finally:
        guest.terminate()
        guest.wait(READY_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
