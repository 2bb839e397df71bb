"""How long a report takes after a panic, and what the guest's death costs in all.

    .venv/bin/python scripts/bench/crash_report.py [--quick] [--guest cloud|kgdb]

A guest panics by itself (SysRq c), its relay resets it, it panics again.  Counted from the moment when the machine told
the panic, which is behind the last byte of its text: until report.md can be read, with registers, symbolised frames and
source lines; until dmesg.txt is there, after the stacks of all processors; until all tasks' stacks and gdb's view are
there; and until the bundle is finished.  The index of the kernel's file is made before, and not counted.

Beside it, in the same run: what QEMU alone takes for the same memory image (`dump-guest-memory` to a file, which is not
compressed).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from console_lab import table, verdict

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
REPORT_GOAL = 0.5
STACKS_GOAL = 3.0
REST_GOAL = 60.0
SECONDS = 120.0


class Guest:
    """One guest under a relay that resets it when it has died."""

    def __init__(self, name: str, memory: int) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="kb-"))
        self._guest = subprocess.Popen(
            [
                ROOT / "scripts/guest", "run", name, "--dir", self.dir / "vm", "--memory", str(memory),
                "--", "-qmp", f"unix:{self.dir}/monitor,server=on,wait=off",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._guest.stdout is not None
        said: dict[str, Any] = json.loads(self._guest.stdout.readline())
        config = self.dir / "kbridge.toml"
        config.write_text(
            f'[relay]\nstate_dir = "{self.dir}/state"\nruntime_dir = "{self.dir}/run"\n[guests.web1]\n'
            f'qmp = "{said["qmp"]}"\nconsole = "{said["console"]}"\nvmlinux = "{said["vmlinux"]}"\n'
            f'debug_dirs = ["{said["debug_dir"]}"]\non_crash = "reset"\ncrash_full = 100\n'
        )
        self._env = {**os.environ, "KBRIDGE_CONFIG": str(config), "PYTHONPATH": str(ROOT)}
        self._command = [sys.executable, "-m", "kbridge"]
        index = [*self._command, "symbols", "index", said["vmlinux"]]
        subprocess.run(index, env=self._env, check=True, capture_output=True)
        self._relay = subprocess.Popen([*self._command, "up"], env=self._env, stderr=subprocess.DEVNULL)
        self._console: socket.socket | None = None

    @property
    def state(self) -> Path:
        return self.dir / "state"

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.state / "guests/web1/timeline.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [one for one in map(json.loads, lines) if one["kind"] == kind]

    def wait(self, condition: Any, what: str) -> Any:
        deadline = time.monotonic() + SECONDS
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise SystemExit(f"{what} did not come within {SECONDS:g} s")
            time.sleep(0.02)
        return found

    def typed(self, line: str) -> None:
        if self._console is None:
            path = self.dir / "run/web1/console"
            self.wait(path.exists, "the relay")
            self._console = socket.socket(socket.AF_UNIX)
            self._console.connect(str(path))
        self._console.sendall(line.encode() + b"\r")

    def heard(self, pattern: bytes) -> None:
        """Wait until the console says something, from now on."""
        assert self._console is not None
        self._console.settimeout(SECONDS)
        said = b""
        while not re.search(pattern, said):
            said = (said + self._console.recv(65536))[-65536:]

    def dies(self) -> dict[str, float]:
        """Panic once; return how long what took, in seconds."""
        before = len(self.events("crash.kept"))
        self.typed("echo c > /proc/sysrq-trigger")
        self.wait(lambda: len(self.events("crash.kept")) > before, "a crash")
        panic = stamp(self.events("machine.panic")[-1])
        kept = self.events("crash.kept")[-1]
        folder = self.state / "crashes" / kept["id"]
        report = json.loads((folder / "report.json").read_bytes())
        guilty = report["processors"][report["crashed_processor"]]
        assert any(call["line"] for frame in guilty["backtrace"] for call in frame["calls"]), (
            "no source lines"
        )
        return {
            "report": stamp(self.events("crash.report")[-1]) - panic,
            "stacks, dmesg": (folder / "dmesg.txt").stat().st_mtime - panic,
            "tasks": (folder / "threads.txt").stat().st_mtime - panic,
            "gdb": (folder / "gdb.txt").stat().st_mtime - panic,
            "image": report["parts"]["vmcore"]["seconds"],
            "all": stamp(kept) - panic,
        }

    def dump(self) -> float:
        """Have QEMU write the image by itself; return the seconds that takes."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.dir / "monitor"))
            file = monitor.makefile("rw")
            file.readline()

            def command(name: str, **arguments: Any) -> None:
                file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
                file.flush()
                while "return" not in (said := json.loads(file.readline())):
                    if "error" in said:
                        raise SystemExit(said["error"]["desc"])

            command("qmp_capabilities")
            begun = time.monotonic()
            command("dump-guest-memory", paging=False, protocol=f"file:{self.dir}/dump")
            return time.monotonic() - begun

    def close(self) -> None:
        self._relay.terminate()
        self._relay.wait()
        self._guest.terminate()
        self._guest.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def stamp(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three deaths instead of seven")
    parser.add_argument("--guest", default="cloud", choices=("cloud", "kgdb"))
    parser.add_argument("--memory", type=int, default=256, help="MiB of the guest's memory")
    asked = parser.parse_args()
    guest = Guest(asked.guest, asked.memory)
    deaths, dumps = [], []
    try:
        guest.typed("")
        for _ in range(3 if asked.quick else 7):
            guest.heard(rb"kbridge-guest: ready[^\n]*\n(?:.*\n)*.*# ")
            # As long as a relay takes until it has looked at the kernel's file.
            time.sleep(6)
            dumps.append(guest.dump())
            deaths.append(guest.dies())
    finally:
        guest.close()
    columns = list(deaths[0])
    middle = {name: statistics.median(one[name] for one in deaths) for name in columns}
    rows = [[str(number), *(f"{one[name]:.2f}" for name in columns)] for number, one in enumerate(deaths, 1)]
    rows.append(["median", *(f"{middle[name]:.2f}" for name in columns)])
    table(f"{asked.guest} guest, {asked.memory} MiB: seconds after the panic", ["death", *columns], rows)
    alone = statistics.median(dumps)
    print(
        f"\nQEMU's dump alone: {alone:.2f} s; the image beside it: {middle['image'] / alone:.2f} times as long\n"
    )
    met = [
        verdict("report.md with frames and registers, s", middle["report"], REPORT_GOAL, most=True),
        verdict("stacks of all processors and dmesg, s", middle["stacks, dmesg"], STACKS_GOAL, most=True),
        verdict("tasks and gdb, s", max(middle["tasks"], middle["gdb"]), REST_GOAL, most=True),
    ]
    sys.exit(not all(met))


if __name__ == "__main__":
    main()
