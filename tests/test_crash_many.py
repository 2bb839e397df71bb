"""Ten real machines that die at once, some of them worse than that: what is kept, and that the next crash is too.

Each is a QEMU without a kernel: a firmware of a few bytes says on its serial line what it is given to say, and tells
pvpanic.  What a kernel does when it dies is in other tests; here are real processes, files and images.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from bridge_lab import Monitor, wait_for

pytestmark = pytest.mark.qemu

PANIC = """\
[    0.000000] Linux version 6.1.0 (a@b) #1 SMP
[    0.100000] x86: ok
[    1.000000] Kernel panic - not syncing: sysrq triggered crash
[    1.000000] CPU: 0 PID: 1 Comm: sh Not tainted 6.1.0 #1
[    1.000000] Call Trace:
[    1.000000]  panic+0x118/0x2f4
[    1.000000]  sysrq_handle_crash+0x16/0x20
"""
END = "[    1.000000] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\n"
INSIDE = """\
[    1.100000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009
[    1.100000] CPU: 0 PID: 1 Comm: sh Not tainted 6.1.0 #1
[    1.100000] ---[ end Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009 ]---
"""
TITLE = "kernel panic: sysrq triggered crash"
LARGE, FULL, TWICE = "web1", "web2", "web3"
"""A guest that vanishes while its image is taken; one whose image does not fit; one that panics in its panic."""
NAMES = tuple(f"web{number}" for number in range(1, 11))


def firmware(said: str, *, noise: bool) -> bytes:
    """64 KB of firmware: print on the first serial port, tell pvpanic, halt.  Real mode, at F000:0000.

    ``noise`` behind it is what no compressor makes smaller: it is in the image's first megabyte.
    """
    code = bytearray.fromhex(
        "fa be 0000"  # cli; mov si, the text's place
        "2e ac 84 c0 74 12 88 c4"  # next: cs lodsb; test al, al; jz over; mov ah, al
        "ba fd03 ec a8 20 74 fb"  # mov dx, 0x3fd; full: in al, dx; test al, 0x20; jz full
        "88 e0 ba f803 ee eb e8"  # mov al, ah; mov dx, 0x3f8; out dx, al; jmp next
        "ba 0505 b0 01 ee"  # over: mov dx, 0x505; mov al, 1; out dx, al
        "f4 eb fd"  # halt: hlt; jmp halt
    )
    struct.pack_into("<H", code, 2, len(code))
    whole = bytes(code) + said.replace("\n", "\r\n").encode() + b"\0"
    rest = 0xFFF0 - len(whole)
    whole += Random(6).randbytes(rest) if noise else bytes(rest)
    return whole + bytes.fromhex("ea 0000 00f0").ljust(16, b"\0")


class Many:
    """Ten guests under one relay."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="kb-"))
        self.machines: dict[str, subprocess.Popen[bytes]] = {}
        self.monitors: dict[str, Monitor] = {}
        config = f'[relay]\nstate_dir = "{self.dir}/state"\nruntime_dir = "{self.dir}/run"\n'
        for name in NAMES:
            image = name in (LARGE, FULL)
            config += (
                f'[guests.{name}]\nqmp = "unix:{self.dir}/{name}.qmp"\nconsole = "unix:{self.dir}/{name}.tty"\n'
                f'stub = "none"\ncrash_quiet_seconds = 2\nring_bytes = 65536\n'
                f"crash_image = {str(image).lower()}\n"
            )
            self._start(name)
        (self.dir / "kbridge.toml").write_text(config)
        env = {**os.environ, "KBRIDGE_CONFIG": str(self.dir / "kbridge.toml"), "DEBUGINFOD_URLS": ""}
        self.errors = (self.dir / "errors.txt").open("wb")
        self.relay = subprocess.Popen(
            [sys.executable, "-m", "kbridge", "up"], env=env, stdin=subprocess.DEVNULL, stderr=self.errors
        )

    def ready(self) -> None:
        for name in NAMES:
            path = self.dir / f"{name}.own"
            wait_for(path.exists, f"the monitor of {name}")
            self.monitors[name] = Monitor(str(path))
        wait_for(
            lambda: all("machine.found" in self.kinds(one) for one in NAMES), "all machines' monitors", 20
        )
        wait_for(lambda: all("line.open" in self.kinds(one) for one in NAMES), "all consoles", 20)

    def _start(self, name: str) -> None:
        path = self.dir / f"{name}.bin"
        path.write_bytes(firmware(PANIC + (INSIDE if name == TWICE else END), noise=name == FULL))
        self.machines[name] = subprocess.Popen(
            [
                "qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-nodefaults", "-display", "none", "-S",
                "-no-user-config", "-m", "2048" if name == LARGE else "16", "-bios", path, "-device", "pvpanic",
                "-action", "panic=pause", "-serial", f"unix:{self.dir}/{name}.tty,server=on,wait=off",
                "-qmp", f"unix:{self.dir}/{name}.qmp,server=on,wait=off",
                "-qmp", f"unix:{self.dir}/{name}.own,server=on,wait=off",
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def kinds(self, name: str) -> set[str]:
        path = self.dir / "state" / "guests" / name / "timeline.jsonl"
        return (
            {json.loads(line)["kind"] for line in path.read_text().splitlines()} if path.exists() else set()
        )

    def reports(self, name: str) -> list[dict[str, Any]]:
        """The reports of a guest that can be seen, the oldest first."""
        found = sorted((self.dir / "state" / "crashes").glob(f"*-{name}/report.json"))
        return [json.loads(one.read_bytes()) for one in found]

    def finished(self, name: str, count: int = 1) -> dict[str, Any]:
        def done() -> list[dict[str, Any]]:
            found = [one for one in self.reports(name) if one["state"] != "pending"]
            return found if len(found) == count else []

        found: dict[str, Any] = wait_for(done, f"what is kept of {name}")[-1]
        return found

    def folder(self, report: dict[str, Any]) -> Path:
        return self.dir / "state" / "crashes" / str(report["id"])

    def close(self) -> None:
        for monitor in self.monitors.values():
            monitor.close()
        self.relay.terminate()
        status = self.relay.wait(40)
        self.errors.close()
        said = (self.dir / "errors.txt").read_text()
        for machine in self.machines.values():
            machine.kill()
            machine.wait()
        shutil.rmtree(self.dir)
        assert status == 0, said
        assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def many() -> Iterator[Many]:
    made = Many()
    try:
        made.ready()
        yield made
    finally:
        made.close()


def test_ten_guests_that_die_at_once(many: Many) -> None:
    # As on a file system that takes no more: all else fits, an image does not.
    resource.prlimit(many.relay.pid, resource.RLIMIT_FSIZE, (0xC000, resource.RLIM_INFINITY))
    begun = time.monotonic()
    for name in NAMES:
        many.monitors[name].command("cont")
    crashes = many.dir / "state" / "crashes"
    wait_for(lambda: list(crashes.glob(f"*-{LARGE}/.unfinished-*")), "an image that is being taken")
    os.kill(many.machines[LARGE].pid, signal.SIGKILL)
    found = {name: many.finished(name) for name in NAMES}
    assert time.monotonic() - begun < 60
    for name, report in found.items():
        assert report["title"] == TITLE, (name, report["title"])
        assert report["fatal"]
        assert report["processors"][0]["registers"]["cs"] == "0xf000"
        missing = {part: one["why"] for part, one in report["parts"].items() if one["state"] == "missing"}
        # A machine without a kernel lacks what is read of one; it is said of each.
        assert {"backtraces", "modules", "dmesg", "tasks", "gdb"} <= set(missing)
        assert all(missing.values())
        assert (many.folder(report) / "console.log").read_text().count("Call Trace") == 1
    # The one that vanished has what was there before.
    assert found[LARGE]["parts"]["registers"]["state"] == "done"
    assert found[LARGE]["parts"]["vmcore"]["state"] == "missing"
    assert not list(many.folder(found[LARGE]).glob(".*"))
    assert found[LARGE]["outcome"] == "as it was: it has no machine monitor"


def test_an_image_that_does_not_fit_is_missing_and_nothing_of_it_left(many: Many) -> None:
    report = many.finished(FULL)
    assert "File too large" in report["parts"]["vmcore"]["why"]
    assert not list(many.folder(report).glob(".*"))
    assert "The memory image is missing" in (many.folder(report) / "report.md").read_text()


def test_a_panic_in_a_panic_is_one_crash(many: Many) -> None:
    (report,) = many.reports(TWICE)
    assert report["title"] == TITLE
    assert "Attempted to kill init" in (many.folder(report) / "console.log").read_text()


def test_the_next_crash_of_each_is_captured_with_room_for_it(many: Many) -> None:
    resource.prlimit(many.relay.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for name in (FULL, TWICE, "web10"):
        many.monitors[name].command("system_reset")
    for name in (FULL, TWICE, "web10"):
        # No kernel boots and panics within the milliseconds that the monitor's word may be late on a busy host.
        wait_for(lambda: "machine.reset" in many.kinds(name), f"the reset of {name}")  # noqa: B023
        many.monitors[name].command("cont")
    for name in (FULL, TWICE, "web10"):
        report = many.finished(name, 2)
        assert (report["title"], report["count"], report["fatal"]) == (TITLE, 2, True)
    report = many.reports(FULL)[-1]
    assert report["parts"]["vmcore"]["state"] == "done", report["parts"]
    vmcore = many.folder(many.reports(FULL)[-1]) / "vmcore"
    assert vmcore.stat().st_size > 1000
