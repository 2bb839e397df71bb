"""A real kernel that dies where there is no machine monitor: all that is kept of it comes by its own kgdb."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from capture_lab import KgdbOnly, functions
from sharing_lab import Own, wait_for

pytestmark = pytest.mark.guest


@pytest.mark.slow
def test_a_kernel_of_which_there_is_only_kgdb_is_captured_and_left_in_kdb(
    kgdb_guest: Callable[..., dict[str, Any]],
) -> None:
    with KgdbOnly(kgdb_guest) as bridge:
        bridge.booted()
        # A kernel that runs answers nobody, and is not to be stopped where there is no way to.
        said = bridge.run("crash", "capture", "web1", "--json")
        parts = json.loads(said.stdout)["parts"]
        assert "no way to break into it" in parts["registers"]["why"], parts
        assert parts["console"]["state"] == "done"
        bridge.goes_on()
        bridge.provoke("EXCEPTION")
        report = bridge.crash("BUG: unable to handle kernel NULL pointer dereference in lkdtm_EXCEPTION")
        parts = report["parts"]
        for name in ("registers", "backtraces", "modules", "dmesg", "tasks"):
            assert parts[name]["state"] == "done", parts[name]
        # Both processors: the one that stopped, and the other, by its shadow.
        assert [one["number"] for one in report["processors"]] == [0, 1]
        guilty = report["processors"][report["crashed_processor"]]
        assert functions(guilty["backtrace"])[0] == "lkdtm_EXCEPTION"
        assert "entry_SYSCALL_64_after_hwframe" in functions(guilty["backtrace"])
        assert any(one["offset"] == 0 for one in guilty["code"])
        assert report["kernel"]["slide"] is not None
        folder = bridge.folder(report)
        assert "lkdtm: Performing direct entry EXCEPTION" in (folder / "dmesg.txt").read_text()
        assert "kthreadd" in (folder / "threads.txt").read_text()
        # What cannot be had says why.
        assert "no machine monitor" in parts["vmcore"]["why"]
        assert "kernel's own" in parts["gdb"]["why"]
        assert 10_000 < report["machine"]["read_bytes"] <= 1 << 20
        # Who sits at the console has kdb again, and a debugger finds the kernel where it died.
        assert report["outcome"] == "left in its kernel's debugger"
        wait_for(lambda: bridge.console().rstrip().endswith(b"kdb>"), "kdb's prompt")
        own = Own(bridge.socket)
        try:
            assert hex(own.pc) == guilty["registers"]["rip"]
        finally:
            own.close()
        # That kdb was entered once more is no other crash.
        assert len(bridge.crashes()) == 2
