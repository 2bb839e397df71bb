"""Real kernels that die under a relay: what is kept of them, and what becomes of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from capture_lab import Crashing, OneLineCrashing, functions
from debuggers_lab import GDB_13
from sharing_lab import Own, leave, start, wait_for
from test_cli_console import Visitor

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def cloud(shared_cloud_guest: Callable[..., dict[str, Any]]) -> Iterator[Crashing]:
    """Debian's kernel, booted; the tests of this module kill it in the end."""
    with Crashing(shared_cloud_guest, more="crash_warnings = true\ncrash_quiet_seconds = 0.5\n") as bridge:
        bridge.booted()
        yield bridge


@pytest.fixture(scope="module")
def kgdb(shared_kgdb_guest: Callable[..., dict[str, Any]]) -> Iterator[Crashing]:
    with Crashing(shared_kgdb_guest, more="crash_warnings = true\ncrash_quiet_seconds = 0.5\n") as bridge:
        bridge.booted()
        yield bridge


@pytest.mark.slow
def test_a_guest_that_runs_is_captured_by_hand_and_goes_on(cloud: Crashing) -> None:
    said = cloud.run("crash", "capture", "web1", "--title", "looked at", "--json")
    assert said.returncode == 0, said.stderr
    report = json.loads(said.stdout)
    assert (report["title"], report["kind"], report["noticed_by"]) == ("looked at", "by-hand", "hand")
    assert report["state"] == "complete", report["parts"]
    assert report["outcome"] == "went on"
    assert set(report["parts"]) == {
        "console", "timeline", "registers", "backtraces", "modules", "dmesg", "tasks", "gdb", "vmcore", "drgn"
    }  # fmt: skip
    assert cloud.state() == "running"
    cloud.goes_on()


def test_the_log_out_of_memory_is_what_dmesg_prints(cloud: Crashing) -> None:
    # Between two markers, because what the kernel says by itself meanwhile must not matter.
    cloud.type("dmesg; echo DMESG''ENDS")
    wait_for(lambda: b"DMESGENDS" in cloud.console(), "dmesg's end")
    console = cloud.console().decode("latin-1").replace("\r", "")
    printed = console[: console.index("DMESGENDS")].rpartition("DMESG''ENDS\n")[2]
    theirs = [line for line in printed.split("\n") if re.match(r"\[ *\d+\.\d{6}\] ", line)]
    report = json.loads(cloud.run("crash", "capture", "web1", "--json").stdout)
    mine = (cloud.folder(report) / "dmesg.txt").read_text().split("\n")
    assert len(theirs) > 200
    assert mine[: len(theirs)] == theirs


@pytest.mark.slow
def test_a_panic_is_kept_with_everything_and_taken_over_from_where_it_died(cloud: Crashing) -> None:
    cloud.type("echo c > /proc/sysrq-trigger")
    report = cloud.crash("kernel panic: sysrq triggered crash")
    folder = cloud.folder(report)
    assert (report["kind"], report["fatal"], report["noticed_by"]) == ("panic", True, "console")
    assert report["state"] == "complete", report["parts"]
    # The right function and line on top.
    assert report["where"]["symbol"] == "sysrq_handle_crash"
    assert report["where"]["calls"][-1]["file"] == "drivers/tty/sysrq.c"
    guilty = report["processors"][report["crashed_processor"]]
    called = functions(guilty["backtrace"])
    expected = [
        "panic",
        "sysrq_handle_crash",
        "write_sysrq_trigger",
        "vfs_write",
        "entry_SYSCALL_64_after_hwframe",
    ]
    assert [one for one in called if one in expected] == expected
    assert not guilty["problem"]
    assert [one["offset"] for one in guilty["code"]].count(0) == 1
    assert report["kernel"]["release"] == cloud.guest["release"]
    assert report["kernel"]["command_line"].startswith("console=ttyS0")
    assert "virtio_blk" in {one["name"] for one in report["modules"]}
    for name in (
        "report.md",
        "console.log",
        "dmesg.txt",
        "registers.json",
        "threads.txt",
        "gdb.txt",
        "timeline.jsonl",
    ):
        assert (folder / name).stat().st_size > 100, name
    assert (folder / "vmcore").stat().st_size > 1 << 20
    # The stacks of those who sleep, unwound to user space or to where kernel threads begin.
    threads = (folder / "threads.txt").read_text()
    assert re.search(r"task \d+ syslogd \(sleeping.*\n(?:    .*\n)*    do_syscall_64", threads)
    assert re.search(r"kernel thread 2 kthreadd \(sleeping.*\n(?:    .*\n)*    ret_from_fork", threads)
    assert "no unwind table" not in threads
    # gdb and drgn, by themselves, see the same.
    for name in ("gdb.txt", "drgn.txt"):
        assert re.search(r"#\d+ .*sysrq_handle_crash", (folder / name).read_text()), name
    # In time: the machine said it, the report was there.
    (event,) = [one for one in cloud.events() if one["kind"] == "crash.report" and one["id"] == report["id"]]
    assert event["seconds"] < 10
    # Left frozen, and a controller takes it over.
    assert cloud.state() == "panicked"
    own = Own(cloud.socket)
    try:
        registers = own.ask(lambda done: own.debugger.registers(None, done))
        assert hex(registers["rip"]) in {one["registers"]["rip"] for one in report["processors"]}
    finally:
        own.close()
    wait_for(lambda: not cloud.sessions(), "the session's end")
    assert cloud.state() == "panicked"


def test_what_is_kept_is_listed_shown_and_exported(cloud: Crashing) -> None:
    listed = json.loads(cloud.run("crash", "ls", "--json").stdout)
    (panic,) = [one for one in listed if one["kind"] == "panic"]
    assert {"id", "guest", "title", "time", "count", "path"} <= set(panic)
    assert panic["count"] == 1
    assert panic["title"] in cloud.run("crash", "ls", "web1").stdout
    shown = cloud.run("crash", "show", panic["id"])
    assert shown.stdout.startswith("kernel panic: sysrq triggered crash\n")
    assert re.search(r"where +sysrq_handle_crash\+0x\w+/0x\w+ +drivers/tty/sysrq.c:\d+", shown.stdout)
    # Its memory opens by its name.
    vmlinux, folder = cloud.guest["vmlinux"], cloud.guest["debug_dir"]
    files = ("--vmlinux", vmlinux, "--debug-dir", folder)
    opened = cloud.run("crash", "open", panic["id"], *files, "--", "-batch", "-ex", "thread apply 1-2 bt")
    assert re.search(r"#\d+ .*sysrq_handle_crash", opened.stdout), opened.stderr
    target = cloud.dir / "it.tar.gz"
    done = cloud.run("crash", "export", panic["id"], str(target), "--without-image")
    assert done.returncode == 0, done.stderr
    with tarfile.open(target) as archive:
        names = set(archive.getnames())
    assert f"{panic['id']}/report.md" in names
    assert not any("vmcore" in one for one in names)
    # The same without the relay.
    cloud.kill_relay()
    assert json.loads(cloud.run("crash", "ls", "--json").stdout) == listed
    assert cloud.run("crash", "show", panic["id"]).stdout == shown.stdout


@pytest.mark.slow
def test_a_guest_that_was_paused_for_a_capture_is_let_go_however_its_relay_ends(kgdb: Crashing) -> None:
    monitor = kgdb.monitor()

    def captured() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "kbridge", "crash", "capture", "web1"], env=kgdb.env
        )
        wait_for(lambda: monitor.status() == "paused", "a guest that is captured")
        return process

    process = captured()
    kgdb.kill_relay()
    process.wait()
    kgdb.start_relay_again("running")
    kgdb.goes_on()
    assert kgdb.count("crash.let_go") == 1
    process = captured()
    assert kgdb.relay is not None
    kgdb.relay.terminate()
    assert kgdb.relay.wait(40) == 0
    process.wait()
    assert monitor.status() == "running"
    kgdb.start_relay_again("running")
    assert kgdb.count("crash.let_go") == 1
    # A relay that is asked to end takes what it can until then; which parts those are, is the machine's speed.
    ended, killed = (one["state"] for one in kgdb.crashes()[:2])
    assert killed == "incomplete"
    assert ended in ("complete", "incomplete")


def test_a_relay_killed_in_the_middle_of_a_capture_finishes_it_as_incomplete(kgdb: Crashing) -> None:
    kgdb.provoke("PANIC")
    title = "kernel panic: dumptest"
    newest = wait_for(lambda: [one for one in kgdb.crashes() if one["title"] == title], "the report")[0]
    assert newest["state"] == "pending"
    kgdb.kill_relay()
    kgdb.start_relay_again("panicked")
    (found,) = [one for one in kgdb.crashes() if one["id"] == newest["id"]]
    assert found["state"] == "incomplete"
    report = kgdb.report(kgdb.folder(found))
    assert "killed" in report["interrupted"]
    missing = {name for name, part in report["parts"].items() if part["state"] == "missing"}
    assert missing
    assert all("killed" in report["parts"][name]["why"] for name in missing)
    assert "**Incomplete**" in (kgdb.folder(found) / "report.md").read_text()
    # And nothing half-made is left.
    assert not [one.name for one in (kgdb.dir / "state" / "crashes").iterdir() if one.name.startswith(".")]


def test_the_guest_of_the_last_test_is_captured_again(kgdb: Crashing) -> None:
    report = json.loads(kgdb.run("crash", "capture", "web1", "--json").stdout)
    assert report["state"] == "complete", report["parts"]
    guilty = report["processors"]
    assert any("lkdtm_PANIC" in functions(one["backtrace"]) for one in guilty)
    assert kgdb.state() == "panicked"
    assert report["outcome"] == "as it was"


@pytest.mark.slow
def test_a_kernel_that_waits_in_its_debugger_is_captured_and_left_there(
    kgdb_guest: Callable[..., dict[str, Any]],
) -> None:
    with OneLineCrashing(kgdb_guest) as bridge:
        bridge.booted()
        bridge.provoke("EXCEPTION")
        report = bridge.crash("BUG: unable to handle kernel NULL pointer dereference in lkdtm_EXCEPTION")
        assert report["words"].endswith(", and waits in its debugger")
        # The stub is the kernel's own, and is left to debuggers: all is by the monitor.
        assert "gdb" in {name for name, part in report["parts"].items() if part["state"] == "missing"}
        for name in ("registers", "backtraces", "modules", "dmesg", "tasks", "vmcore"):
            assert report["parts"][name]["state"] == "done", report["parts"][name]
        guilty = report["processors"][report["crashed_processor"]]
        called = functions(guilty["backtrace"])
        assert "lkdtm_EXCEPTION" in called
        assert any(one.startswith("kdb_") for one in called)
        assert report["outcome"] == "left in its kernel's debugger"
        assert bridge.state() == "running"
        visitor = Visitor(bridge)
        try:
            visitor.joined()
            # Who typed first keeps the pen until he leaves; kdb answers who has it.
            visitor.type(b"summary\r")
            visitor.until(b"what you type is discarded")
            bridge.lay_pen_down()
            wait_for(lambda: not bridge.listed()["console"]["pen"], "a free pen")
            # Whoever wants its prompt need not know that kdb waits in the middle of the oops.
            assert bridge.console().endswith(b"more> ")
            assert "stood in kgdb already" in bridge.run("break", "web1", "--kdb").stderr
            assert re.search(rb"more> [^>]*>[^>]*</TASK>\r\n\r\n\[\d\]kdb> $", bridge.console())
            visitor.type(b"summary\r")
            visitor.until(b"MemFree:")
            visitor.until(b"kdb> ")
            visitor.type(b"\r~.")
            assert visitor.ended() == 0
        finally:
            visitor.close()
        with start(GDB_13, bridge) as gdb:
            assert "lkdtm_EXCEPTION" in gdb.run("bt")
            leave(gdb, "detach")
        wait_for(lambda: b"---[ end trace" in bridge.console(), "a guest that goes on")


@pytest.mark.slow
def test_the_same_crash_on_another_boot_has_the_same_title_and_a_policy_resets(
    cloud_guest: Callable[..., dict[str, Any]],
) -> None:
    title = "kernel panic: sysrq triggered crash"
    with Crashing(cloud_guest, more='on_crash = "reset"\ncrash_image = false\n') as bridge:

        def kept(count: int) -> list[dict[str, Any]]:
            found = [one for one in bridge.crashes() if one["title"] == title]
            return found if len(found) == count and found[0]["count"] == count else []

        def ready(boot: int) -> bool:
            return bridge.console().count(b"kbridge-guest: ready") == boot

        slides = set()
        for number in (1, 2):
            wait_for(partial(ready, number), "the guest's boot")
            wait_for(lambda: b"/root # " in bridge.console().rpartition(b"ready")[2], "its shell")
            bridge.type("echo c > /proc/sysrq-trigger")
            wait_for(partial(kept, number), title)
            report = bridge.crash(title)
            assert report["outcome"] == "reset"
            assert report["where"]["symbol"] == "sysrq_handle_crash"
            slides.add(report["kernel"]["slide"])
        assert len(slides) == 2
        wait_for(lambda: bridge.state() == "running", "a guest that runs again")
