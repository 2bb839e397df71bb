"""A guest that is put back to a moment after its boot before each crash, under one relay: that takes 0.1 s."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from bridge_lab import SECONDS, Monitor, wait_for
from capture_lab import Crashing

_NODE = "snapshots"
_SETTLED = (b"/root # ", b"/root # \x1b[6n")
_DECLARED = """
for name in {names!r}:
    found = gdb.lookup_global_symbol(name) or gdb.lookup_static_symbol(name)
    print("FOUND", name, found.symtab.filename, found.line)
"""
_LINES = """
for name, offset in {places!r}:
    found = gdb.find_pc_line(int(gdb.parse_and_eval("(unsigned long) &" + name)) + offset)
    print("FOUND", name, offset, found.symtab.filename if found.symtab else None, found.line)
"""


class Reverting(Crashing):
    """`web1` without ticks, on a machine that keeps snapshots: of a crash the next finds nothing but its bundle."""

    _second: Monitor | None = None

    def start_guest(self) -> None:
        disk = self.dir / "snapshots.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1G"], check=True)
        self.guest = self._start_guest(
            "--dir", str(self.dir / "vm"),
            "--", "-qmp", f"unix:{self.dir}/monitor,server=on,wait=off",
            "-blockdev", f"driver=qcow2,node-name={_NODE},file.driver=file,file.filename={disk}",
        )  # fmt: skip
        config = self.dir / "kbridge.toml"
        config.write_text(
            f'[relay]\nstate_dir = "{self.dir}/state"\nruntime_dir = "{self.dir}/run"\n[guests.web1]\n'
            f'qmp = "{self.guest["qmp"]}"\nconsole = "{self.guest["console"]}"\n'
            f'vmlinux = "{self.guest["vmlinux"]}"\ndebug_dirs = ["{self.guest["debug_dir"]}"]\n{self._more}'
        )
        self.env = {**os.environ, "KBRIDGE_CONFIG": str(config), "DEBUGINFOD_URLS": ""}

    def configure(self, more: str) -> None:
        """Have a relay with other settings."""
        self.kill_relay()
        config = self.dir / "kbridge.toml"
        config.write_text(config.read_text() + more)
        self.start_relay_again("running")

    def __enter__(self) -> Self:
        self.start_relay()
        self.booted()
        self._second = self.monitor()
        return self

    # -- the machine ----------------------------------------------------------------------------------------

    def run_line(self, line: str) -> None:
        """Type a line, and wait until its command is done."""
        before = len(self.console())
        self.type(f"{line}; echo DO''NE")
        wait_for(
            lambda: b"DONE" in (said := self.console()[before:]) and said.endswith(_SETTLED),
            f"`{line}`, done",
        )

    def keep(self, name: str) -> None:
        """Keep this moment."""
        self._job("snapshot-save", name)

    def put_back(self, name: str) -> None:
        """Put the guest back to a moment that was kept; it runs."""
        assert self._second is not None
        self._job("snapshot-load", name)
        # One that had died stands.
        if self._second.status() != "running":
            self._second.command("cont")

    def _job(self, command: str, name: str) -> None:
        monitor = self._second
        assert monitor is not None
        monitor.command(command, **{"job-id": "job", "tag": name, "vmstate": _NODE, "devices": [_NODE]})
        deadline = time.monotonic() + SECONDS
        while True:
            (job,) = [one for one in monitor.command("query-jobs") if one["id"] == "job"]
            if job["status"] == "concluded":
                break
            assert time.monotonic() < deadline, job
            time.sleep(0.005)
        monitor.command("job-dismiss", id="job")
        assert "error" not in job, job

    # -- bundles --------------------------------------------------------------------------------------------

    def ids(self) -> list[str]:
        return [str(one["id"]) for one in self.crashes()]

    def new_reports(self, before: Iterable[str]) -> list[dict[str, Any]]:
        """Wait for a crash that was not there before; return what came, the first at first, when it is finished."""
        known = set(before)

        def finished() -> list[dict[str, Any]]:
            found = [one for one in self.crashes() if one["id"] not in known]
            return [] if any(one["state"] == "pending" for one in found) else found

        return [self.report(Path(one["path"])) for one in reversed(wait_for(finished, "a finished bundle"))]

    # -- what gdb makes of the kernel's file ----------------------------------------------------------------

    def declared(self, names: Iterable[str]) -> dict[str, tuple[str, int]]:
        """Where functions begin: file and line."""
        said = self._ask_gdb(_DECLARED.format(names=sorted(names)))
        return {name: (file, int(line)) for name, file, line in said}

    def lines(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[str, int]]:
        """File and line of places in functions, of the innermost of inlined ones."""
        said = self._ask_gdb(_LINES.format(places=sorted(places)))
        return {(name, int(offset)): (file, int(line)) for name, offset, file, line in said}

    def _ask_gdb(self, script: str) -> list[list[str]]:
        path = self.dir / "ask.py"
        path.write_text(script)
        done = subprocess.run(
            ["gdb", "-nx", "-batch", self.guest["vmlinux"], "-x", str(path)],
            capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert "FOUND" in done.stdout, done.stderr
        return [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("FOUND ")]
