"""A scripted gdb session through the relay against the same gdb straight on QEMU's stub.

    .venv/bin/python scripts/bench/gdb_session.py [--quick]

Backtrace, threads, a walk over all tasks, 2000 instructions disassembled, 20 single steps.  One gdb that has read
its symbols does both in turn on one guest, pair by pair, so that nothing but the way to the stub differs; the
figure is the median of the pairs' ratios, with its 95 % interval.  Needs the `cloud` guest (`scripts/guest build`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SESSION = """
import gdb, json, time

def walk():
    init = gdb.parse_and_eval("&init_task")
    offset = int(gdb.parse_and_eval("(long)&((struct task_struct *)0)->tasks"))
    kind = init.type
    names, task = [], init
    while True:
        names.append(task["comm"].string(errors="replace"))
        node = int(task["tasks"]["next"])
        task = gdb.Value(node - offset).cast(kind)
        if task == init:
            return len(names)

def session(path):
    start = time.perf_counter()
    gdb.execute("target remote " + path, to_string=True)
    gdb.execute("backtrace", to_string=True)
    gdb.execute("info threads", to_string=True)
    tasks = walk()
    lines = gdb.execute("x/2000i schedule", to_string=True).count("\\n")
    for _ in range(20):
        gdb.execute("stepi", to_string=True)
    gdb.execute("detach", to_string=True)
    elapsed = time.perf_counter() - start
    if lines < 2000 or tasks < 20:
        raise gdb.GdbError("the session saw %d lines and %d tasks" % (lines, tasks))
    return elapsed

gdb.execute("set pagination off")
gdb.execute("set confirm off")
# The relay serves modules as well, the stub does not: let both do the same work.
gdb.execute("set remote library-info-packet off")
for way in WAYS:
    session(way)
pairs = []
for number in range(PAIRS):
    order = WAYS if number % 2 == 0 else WAYS[::-1]
    took = {way: session(way) for way in order}
    pairs.append([took[way] for way in WAYS])
with open(RESULT, "w") as file:
    json.dump(pairs, file)
"""


def interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median by order statistics."""
    ordered = sorted(values)
    reach = 0.98 * math.sqrt(len(ordered))
    low = max(0, math.floor(len(ordered) / 2 - reach))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + reach))
    return ordered[low], ordered[high]


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a socket is there; the process that makes it must not end."""
    deadline = time.monotonic() + 60
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{path} did not appear")
        time.sleep(0.02)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs, for a first look")
    pairs = 5 if parser.parse_args().quick else 25
    folder = Path(tempfile.mkdtemp(prefix="kb-gdb-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        guest = subprocess.Popen(
            [str(ROOT / "scripts/guest"), "run", "cloud", "--no-kaslr", "--stub"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        stack.callback(guest.wait)
        stack.callback(guest.terminate)
        assert guest.stdout is not None
        told = json.loads(guest.stdout.readline())
        config = folder / "kbridge.toml"
        config.write_text(
            f'[relay]\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n'
            f'[guests.bench]\nqmp = "{told["qmp"]}"\nconsole = "{told["console"]}"\nstub = "{told["stub"]}"\n'
        )
        relay = subprocess.Popen(
            [str(Path(sys.executable).with_name("kbridge")), "up", "--config", str(config)],
            stderr=subprocess.DEVNULL,
        )
        stack.callback(relay.wait)
        stack.callback(relay.terminate)
        wait_for(folder / "run/bench/gdb", relay)
        ring = folder / "state/guests/bench/console.ring"
        wait_for(ring, relay)
        deadline = time.monotonic() + 120
        while b"kbridge-guest: ready" not in ring.read_bytes():
            if time.monotonic() > deadline:
                raise SystemExit("the guest did not boot")
            time.sleep(0.2)
        result = folder / "result.json"
        script = folder / "session.py"
        ways = [str(folder / "run/bench/gdb"), told["stub"].removeprefix("unix:")]
        script.write_text(f"WAYS = {ways!r}\nPAIRS = {pairs}\nRESULT = {str(result)!r}\n{SESSION}")
        gdb = subprocess.run(
            ["gdb", "-nx", "-batch", told["vmlinux"], "-x", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
            check=False,
            env={**os.environ, "DEBUGINFOD_URLS": ""},
        )
        if not result.exists():
            raise SystemExit(gdb.stdout[-2000:])
        times: list[tuple[float, float]] = json.loads(result.read_text())
    ratios = [through / straight for through, straight in times]
    low, high = interval(ratios)
    print(f"{len(times)} pairs: backtrace, threads, all tasks, 2000 instructions, 20 steps")
    print(f"  through the relay  {statistics.median(one for one, _ in times):.3f} s")
    print(f"  straight           {statistics.median(two for _, two in times):.3f} s")
    print(f"ratio: {statistics.median(ratios):.3f} ({low:.3f} .. {high:.3f}) (goal: at most 1.10)")


if __name__ == "__main__":
    main()
