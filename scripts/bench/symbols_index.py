"""What it takes to make the index of a kernel's symbols and lines, how large it is, and to open it.

    .venv/bin/python scripts/bench/symbols_index.py [--quick] [--vmlinux FILE]

Beside it, in the same rounds, what the library `symbolic` takes alone for its own file of the same DWARF (the index is
made out of that): the ratio is what our layout, the lines that it fills in, and the symbols cost.  Each is a process
of its own that has the kernel's file in the page cache; its memory is the most that it had at once (``ru_maxrss``,
pages of the mapped file too).  Opening is measured in a process that runs on, on the mapped file, header and checksums
checked.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from console_lab import MB, table, verdict

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from symbols.index import Index  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kbridge"
VMLINUX = CACHE / "guests/cloud/current/vmlinux"
SECONDS_GOAL = 2.5
MEMORY_GOAL = 500.0
SIZE_GOAL = 40.0
OPENING_GOAL = 5.0
OURS = """
import sys
from pathlib import Path
from kbridge.debuginfo.building import build
from kbridge.debuginfo.mapping import mapped
from symbols import elf
path = Path(sys.argv[1])
with mapped(path) as image:
    build_id = elf.build_id(image)
with open(sys.argv[2], "wb") as file:
    for part in build(path, build_id):
        file.write(part)
"""
THEIRS = """
import sys
from symbolic.debuginfo import Archive
with open(sys.argv[2], "wb") as file:
    next(Archive.open(sys.argv[1]).iter_objects()).make_symcache().dump_into(file)
"""


def run(code: str, vmlinux: Path, out: Path) -> tuple[float, float]:
    """Return seconds of a whole process, and the most memory that it had, in MB."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code, str(vmlinux), str(out)], cwd=HERE.parent.parent)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return seconds, usage.ru_maxrss * 1024 / MB


def open_once(path: Path) -> float:
    """Return milliseconds until an index can be asked."""
    start = time.perf_counter()
    with path.open("rb") as file:
        index = Index(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    taken = (time.perf_counter() - start) * 1e3
    assert index.has_lines
    return taken


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    parser.add_argument("--vmlinux", type=Path, default=VMLINUX)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out, other = Path(folder) / "index", Path(folder) / "symcache"
        ours, theirs, openings = [], [], []
        for number in range(4 if arguments.quick else 12):
            pair = run(OURS, arguments.vmlinux, out), run(THEIRS, arguments.vmlinux, other)
            if number:
                # The first reads the file, and compiles modules.
                ours.append(pair[0])
                theirs.append(pair[1])
            openings += [open_once(out) for _ in range(10)]
        sizes = out.stat().st_size / MB, other.stat().st_size / MB
    rows = [
        [
            name,
            f"{statistics.median(one[0] for one in runs):.2f} s",
            f"{min(one[0] for one in runs):.2f} .. {max(one[0] for one in runs):.2f}",
            f"{statistics.median(one[1] for one in runs):.0f} MB",
            f"{size:.1f} MB",
        ]
        for name, runs, size in (("index", ours, sizes[0]), ("symbolic alone", theirs, sizes[1]))
    ]
    table(f"{len(ours)} rounds, whole processes", ["what", "time", "least .. most", "memory", "file"], rows)
    seconds = statistics.median(one[0] for one in ours)
    ratio = statistics.median(one[0] / two[0] for one, two in zip(ours, theirs, strict=True))
    print(
        f"\nratio: {ratio:.2f} times as long as the library alone, which has no symbols and 2 % fewer lines\n"
    )
    return (
        0
        if all(
            [
                verdict("making it, s", seconds, SECONDS_GOAL, most=True),
                verdict("memory, MB", max(one[1] for one in ours), MEMORY_GOAL, most=True),
                verdict("file, MB", sizes[0], SIZE_GOAL, most=True),
                verdict("opening, ms", statistics.median(openings), OPENING_GOAL, most=True),
            ]
        )
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
