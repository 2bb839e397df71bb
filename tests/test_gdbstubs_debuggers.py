"""Four real debuggers before the server half: what their users see of each refusal, and that they stay usable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from debuggers_lab import MAKES, Make, debugger
from rsp.serving import Serving, TinyMachine
from rsp.stub import memory_at

from gdbstubs.errors import EAGAIN, TargetError
from gdbstubs.rights import Right

pytestmark = pytest.mark.gdb
LAGS = "the guest has run since stop 3"


@pytest.fixture(params=MAKES, ids=lambda make: make.name)
def make(request: pytest.FixtureRequest) -> Make:
    chosen: Make = request.param
    return chosen


@pytest.fixture
def here(tmp_path: Path, make: Make) -> dict[str, str]:
    """An environment in which no debugger finds anybody's settings, and writes to nobody's home."""
    return {**os.environ, "HOME": str(tmp_path), "TERM": "dumb"}


def attached(one: Any, served: Serving) -> Any:
    one.attach(served.path)
    assert one.pc == 0x1000
    assert one.memory(0x1000, 8) == memory_at(0x1000, 8)
    return one


def go_and_interrupt(one: Any, served: Serving) -> str:
    one.go()
    for _ in range(200):  # what comes while the resume is sent is forgotten by all four
        if served.target.stopped is not None:
            break
        one.says(r"$^", 0.05)
    assert served.target.stopped is not None
    one.says(r"$^", 0.2)
    one.interrupt()
    said: str = one.wait_stop(20)
    return said


def test_who_controls_reads_writes_steps_and_leaves(make: Make, here: dict[str, str], tmp_path: Path) -> None:
    with Serving(TinyMachine(), tmp_path / "s") as served, debugger(make, here) as one:
        attached(one, served)
        one.write_memory(0x2000, 5)
        one.write_register("rax", 5)
        one.step()
        assert one.pc == 0x1001
        assert "SIGINT" in go_and_interrupt(one, served)
        assert "a tiny machine: info version" in one.monitor("info version")
        one.detach()
        called = [call[0] for call in served.target.calls]
        assert {"M", "resume", "detach"} <= set(called)
        assert {"P", "G"} & set(called)


def test_who_observes_is_told_why_and_goes_on(make: Make, here: dict[str, str], tmp_path: Path) -> None:
    with Serving(TinyMachine(Right.OBSERVER), tmp_path / "s") as served, debugger(make, here) as one:
        attached(one, served)
        seen = one.write_memory(0x2000, 5)
        seen += one.write_register("rax", 5)
        seen += one.step()
        assert "may not write memory: '" in seen
        assert "may not write registers: '" in seen
        assert "may not step" in seen
        assert one.pc == 0x1000
        one.break_at(0x1800)
        assert "SIGINT" in go_and_interrupt(one, served)
        assert one.memory(0x1000, 8) == memory_at(0x1000, 8)
        killed = one.kill_guest()
        if make.is_gdb:
            assert "Can't kill process" in killed
            assert "does not kill a guest" in one.monitor("info version")
            assert one.pc == 0x1000
        else:
            assert "does not kill a guest" in killed
        assert not {"M", "P", "G"} & {call[0] for call in served.target.calls}


def test_what_the_target_refuses_is_told_when_the_debugger_listens(
    make: Make, here: dict[str, str], tmp_path: Path
) -> None:
    with Serving(TinyMachine(), tmp_path / "s") as served, debugger(make, here) as one:
        attached(one, served)
        served.target.refusal = TargetError(EAGAIN, LAGS)
        served.target.spared = {"g", "p"}  # gdb does not survive a stop without registers
        refused = one.read(0x9000)
        assert "annot access memory" in refused or "memory read failed" in refused
        assert LAGS in one.monitor("info version")
        one.break_at(0x1800)
        said = one.step()
        if make.is_gdb:  # it inserts only now, and breaks off
            assert "Cannot insert breakpoint 1" in said
            one.unbreak()
            said = one.step()
        assert LAGS in said
        served.target.refusal = None
        assert one.memory(0x3000, 8) == memory_at(0x3000, 8)
        one.detach()


def test_an_observer_beside_a_running_guest(make: Make, here: dict[str, str], tmp_path: Path) -> None:
    served_target = TinyMachine(Right.OBSERVER, aside=True)
    with Serving(served_target, tmp_path / "s") as served, debugger(make, here) as one:
        if make.is_gdb:
            one.attach(served.path)
        else:  # LLDB calls a stop without a signal no stop
            one.send(f"process connect --plugin gdb-remote unix-connect://{served.path}")
            one.until(r"Process \d+ stopped", 20)
        assert one.pc == 0
        refused = one.read(0x1000)
        assert "annot access memory" in refused or "memory read failed" in refused
        assert "the guest runs" in one.monitor("info version")
        one.detach()
        assert {call[0] for call in served.target.calls}.isdisjoint({"resume", "M", "P", "G"})


@pytest.mark.parametrize("make", [one for one in MAKES if one.is_gdb], ids=lambda one: one.name)
def test_gdb_finds_and_compares_and_goes_backwards(make: Make, here: dict[str, str], tmp_path: Path) -> None:
    with Serving(TinyMachine(), tmp_path / "s") as served, debugger(make, here) as one:
        attached(one, served)
        pattern = memory_at(0x23456, 6)
        wanted = ", ".join(f"{byte:#x}" for byte in pattern)
        first = memory_at(0x1000, 0x30000).index(pattern) + 0x1000
        assert f"{first:#x}" in one.run(f"find /1 /b 0x1000, 0x30000, {wanted}")
        assert "Pattern not found" in one.run("find /b 0x1000, 0x3000, 1, 1, 1, 1")
        said = one.run("find /b 0xff000, +0x10000, 1, 1, 1, 1")
        assert "memory cannot be read at 0x100000" in said
        assert any(b"qSearch:memory" in data for data in served.received)
        one.run("stepi")
        one.run("reverse-stepi")
        assert one.pc == 0x1000


@pytest.mark.parametrize("make", [one for one in MAKES if one.is_gdb], ids=lambda one: one.name)
def test_gdb_searches_by_itself_where_the_first_search_fails(
    make: Make, here: dict[str, str], tmp_path: Path
) -> None:
    with Serving(TinyMachine(), tmp_path / "s") as served, debugger(make, here) as one:
        attached(one, served)
        said = one.run("find /b 0xff000, +0x10000, 1, 1, 1, 1")
        assert "Unable to access" in said
        pattern = ", ".join(f"{byte:#x}" for byte in memory_at(0xFF800, 6))
        said = one.run(f"find /b 0xff800, 0xfffff, {pattern}")
        assert "0xff800" in said
        assert sum(b"qSearch:memory" in data for data in served.received) == 1
