"""A 30-line oops explained: `kbridge decode` against the kernel's own decode_stacktrace.sh, side by side.

    .venv/bin/python scripts/bench/symbols_oops.py [--quick] [--vmlinux FILE] [--script FILE]

The oops is made of places in the given kernel (Debian's cloud kernel unless told otherwise): both know them all.  The
script is looked for in Debian's linux-source, which is downloaded (140 MB) the first time unless --script names it; it
needs binutils.  The index of `kbridge decode` is made before and not counted: it is made once for a kernel.

Both are whole processes with their files in the page cache.  A process that runs on explains the oops twice in a round,
the first time right after the others have had the processor's caches.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from console_lab import table, verdict

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from kbridge.commands.symbols_command import open_index  # noqa: E402
from symbols.explanation import Explainer  # noqa: E402
from symbols.index import Index  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kbridge"
VMLINUX = CACHE / "guests/cloud/current/vmlinux"
COMMAND_GOAL = 150.0
PROCESS_GOAL = 2.0
PATH = (
    "vfs_write", "ksys_write", "__x64_sys_write", "do_syscall_64", "schedule", "__schedule", "do_nanosleep",
    "hrtimer_nanosleep", "do_idle", "cpu_startup_entry", "tcp_sendmsg", "sock_write_iter", "inet_sendmsg",
    "ip_output", "vfs_read", "ksys_read", "kthread", "worker_thread", "process_one_work", "handle_mm_fault",
)  # fmt: skip
CODE = "89 df e8 bb 4b e6 ff 48 83 c4 18 5b c3 31 c0 <89> 04 25 00 00 00 00 c3"


def oops(index: Index) -> str:
    """Make an oops of 30 lines out of a kernel's own places."""
    places = []
    for name in PATH:
        (symbol, *_) = index.named(name)
        found = index.symbol(symbol.address)
        assert found is not None
        places.append(f"{name}+{max(symbol.size // 2, 1):#x}/{found[1]:#x}")
    lines = [
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "CPU: 0 PID: 63 Comm: sh Not tainted 6.1.0-bench #1",
        f"RIP: 0010:{places[0]}",
        f"Code: {CODE}",
        "RSP: 0018:ffff92ad80163df8 EFLAGS: 00000246",
        "RAX: 0000000000000000 RBX: ffff8fcec1025000 RCX: c0000000ffffefff",
        "CR2: 0000000000000000 CR3: 0000000001063000 CR4: 00000000000006b0",
        "Call Trace:",
        " <TASK>",
        *(f" {place}" for place in places),
        " </TASK>",
    ]
    assert len(lines) == 30
    return "".join(f"[   48.{number:06}] {line}\n" for number, line in enumerate(lines))


def script(given: Path | None) -> Path:
    """Return decode_stacktrace.sh, out of Debian's linux-source where nobody named it."""
    if given is not None:
        return given
    kept = CACHE / "bench/decode_stacktrace.sh"
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        print("downloading Debian's linux-source for its scripts/decode_stacktrace.sh, once", file=sys.stderr)
        subprocess.run(["apt-get", "download", "-q", "linux-source-6.1"], cwd=folder, check=True)
        (package,) = Path(folder).glob("*.deb")
        command = (
            f"dpkg-deb --fsys-tarfile '{package}' | tar -xO --wildcards '*.tar.xz' "
            "| tar -xJO --wildcards '*/scripts/decode_stacktrace.sh'"
        )
        text = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    assert text.startswith(b"#!")
    kept.write_bytes(text)
    return kept


def timed(work: Callable[[], object]) -> float:
    """Return milliseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    parser.add_argument("--vmlinux", type=Path, default=VMLINUX)
    parser.add_argument("--script", type=Path)
    arguments = parser.parse_args()
    index = open_index(arguments.vmlinux)
    text = oops(index)
    texts = text.splitlines()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "oops"
        log.write_text(text)
        ours = [sys.executable, "-m", "kbridge", "decode", "--vmlinux", str(arguments.vmlinux), str(log)]
        theirs = ["bash", str(script(arguments.script)), str(arguments.vmlinux), "auto", folder]

        def run_ours() -> str:
            return subprocess.run(ours, capture_output=True, text=True, check=True).stdout

        def run_theirs() -> str:
            return subprocess.run(theirs, input=text, capture_output=True, text=True, check=True).stdout

        def explain() -> list[str]:
            return list(Explainer(index).explain(texts))

        said, other = run_ours(), run_theirs()
        rounds = 10 if arguments.quick else 30
        of_ours, of_theirs, cold, inside = [], [], [], []
        for number in range(rounds):
            of_ours.append(timed(run_ours))
            cold.append(timed(explain))
            inside.append(timed(explain))
            if number < (1 if arguments.quick else 3):
                of_theirs.append(timed(run_theirs))
    lines = [re.findall(r"[\w./-]+\.[chS]:\d+", one) for one in (said, other)]
    print(
        f"lines named: kbridge decode {len(lines[0])} (inlined calls too), decode_stacktrace.sh {len(lines[1])}"
    )
    rows = [
        [name, f"{statistics.median(one):.1f}", f"{min(one):.1f}", f"{max(one):.1f}", str(len(one))]
        for name, one in (
            ("kbridge decode", of_ours),
            ("decode_stacktrace.sh", of_theirs),
            ("in a process that runs on", inside),
            ("the same after another process ran", cold),
        )
    ]
    table("a 30-line oops, milliseconds", ["what", "median", "least", "most", "rounds"], rows)
    print(
        f"\nratio: the script takes {statistics.median(of_theirs) / statistics.median(of_ours):.0f} times as long\n"
    )
    met = verdict("the whole command, ms", statistics.median(of_ours), COMMAND_GOAL, most=True)
    return 0 if verdict("in process, ms", statistics.median(inside), PROCESS_GOAL, most=True) and met else 1


if __name__ == "__main__":
    sys.exit(main())
