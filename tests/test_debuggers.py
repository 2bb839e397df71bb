"""Each of four real debuggers alone on a real kernel: the machine's monitor says whether what it shows is true."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bridge_lab import Bridge, Monitor, wait_for
from debuggers_lab import MAKES, Debugger, Make, debugger
from sharing_lab import Shared

pytestmark = [pytest.mark.guest, pytest.mark.gdb]

StartGuest = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def bridge(shared_cloud_guest: StartGuest) -> Iterator[Shared]:
    with Shared(shared_cloud_guest) as bridge:
        yield bridge


@pytest.fixture(scope="module")
def often(bridge: Shared) -> int:
    """Where the guest comes by five times a second: not so the place where it happened to be stopped."""
    return bridge.addresses("hrtimer_nanosleep")["hrtimer_nanosleep"]


@pytest.fixture(scope="module")
def monitor(bridge: Bridge) -> Monitor:
    return bridge.monitor()


@pytest.fixture(params=MAKES, ids=lambda make: make.name)
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@pytest.fixture
def attached(bridge: Bridge, monitor: Monitor, make: Make) -> Iterator[Debugger]:
    """One debugger that holds the guest; afterwards the guest runs, whatever became of the debugger."""
    with debugger(make, bridge.env) as one:
        one.attach(bridge.socket)
        yield one
    wait_for(lambda: not bridge.sessions(), "a session that ended")
    bridge.goes_on()
    assert bridge.breakpoints() == []
    assert monitor.status() == "running"


def true_registers(monitor: Monitor, processor: int = 0) -> dict[str, int]:
    said = monitor.command(
        "human-monitor-command", **{"command-line": "info registers", "cpu-index": processor}
    )
    return {
        name.lower(): int(value, 16) for name, value in re.findall(r"\b(R..|R\d+) *=([0-9a-f]{16})", said)
    }


def true_memory(monitor: Monitor, address: int, length: int) -> bytes:
    said = monitor.command("human-monitor-command", **{"command-line": f"x /{length}xb {address:#x}"})
    return bytes(int(one, 16) for one in re.findall(r"\b0x([0-9a-f]{2})\b", said))


def test_the_debuggers_are_four(make: Make) -> None:
    assert re.search(rf"\b{make.major}\.\d", make.version())


def test_it_shows_the_registers_and_memory_of_the_guest(attached: Debugger, monitor: Monitor) -> None:
    truth = true_registers(monitor)
    assert len(truth) == 17
    for name in ("rip", "rsp", "rax", "r15", "rbp"):
        assert attached.register(name) == truth[name], name
    # Odd places and lengths, over the border of a page, and the code itself.
    for address, length in ((truth["rsp"], 64), (truth["rip"] - 3, 17), (truth["rip"] & ~0xFFF, 9)):
        assert attached.memory(address, length) == true_memory(monitor, address, length), hex(address)
    border = (truth["rip"] & ~0xFFF) - 40
    assert attached.memory(border, 80) == true_memory(monitor, border, 80)


def test_memory_that_is_not_there_is_an_error_and_no_hang(attached: Debugger) -> None:
    said = attached.run("x/xg 0x123" if attached.make.is_gdb else "memory read 0x123", 10)
    assert "annot access memory" in said or "memory read failed" in said
    assert attached.pc


def test_it_steps_and_comes_to_its_breakpoint_again_and_again(
    attached: Debugger, bridge: Bridge, monitor: Monitor, often: int
) -> None:
    for _ in range(3):
        before = true_registers(monitor)["rip"]
        attached.step()
        # Processor 0 was stepped; the truth has moved as the debugger shows it.
        assert attached.pc == true_registers(monitor)["rip"] != before
    attached.break_at(often)
    for _ in range(3):
        attached.go()
        said = attached.wait_stop()
        assert "Breakpoint 1" in said or "breakpoint 1.1" in said
        assert attached.pc == often
        assert [one["address"] for one in bridge.breakpoints()] == [f"{often:#x}"]


def test_it_writes_registers_and_memory(attached: Debugger, monitor: Monitor) -> None:
    truth = true_registers(monitor)
    for value in (0x1122334455667788, truth["r15"]):
        attached.write_register("r15", value)
        assert true_registers(monitor)["r15"] == value
        assert attached.register("r15") == value
    # Below the stack: nobody's bytes.
    place = truth["rsp"] - 0x100
    former = true_memory(monitor, place, 3)
    attached.write_memory(place + 1, former[1] ^ 0x55)
    assert true_memory(monitor, place, 3) == bytes((former[0], former[1] ^ 0x55, former[2]))
    assert attached.memory(place, 3) == true_memory(monitor, place, 3)


def test_it_interrupts_a_running_guest(attached: Debugger, bridge: Bridge) -> None:
    attached.go()
    bridge.goes_on()
    attached.interrupt()
    assert "SIGINT" in attached.wait_stop()
    assert attached.pc


def test_it_detaches_and_the_guest_runs(attached: Debugger, bridge: Bridge, often: int) -> None:
    attached.break_at(often)
    attached.go()
    attached.wait_stop()
    assert "detached" in attached.detach()
    wait_for(lambda: not bridge.sessions(), "a session that ended")
    bridge.goes_on()
    assert attached.process.poll() is None
    attached.quit()


def test_killed_at_its_breakpoint_it_leaves_nothing(attached: Debugger, often: int) -> None:
    attached.break_at(often)
    attached.go()
    attached.wait_stop()
    attached.kill()


def test_the_guest_survives_the_kill_command(attached: Debugger, bridge: Bridge) -> None:
    said = attached.kill_guest()
    if attached.make.is_gdb:
        assert "Can't kill process" in said
        assert attached.pc
    else:
        # LLDB believes that it succeeded, whatever `k` is answered, and is gone; but its user reads why.
        assert "a debugger does not kill a guest" in said
    attached.quit()
    wait_for(lambda: not bridge.sessions(), "a session that ended")
    bridge.goes_on()
