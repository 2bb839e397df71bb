"""One kernel's own stub shared by real gdbs: breaking in, breakpoints, hand-over, and what stays when they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bridge_lab import Monitor, wait_for
from debuggers_lab import GDB_13, GDB_18, kbridge_gdb
from sharing_lab import OneLine, Shared, hits, is_left_clean, is_waiting, leave, name_of, start, true_memory

pytestmark = [pytest.mark.guest, pytest.mark.gdb]

StartGuest = Callable[..., dict[str, Any]]

INT3 = b"\xcc"
OFTEN, OFTEN_TOO = "hrtimer_nanosleep", "do_exit"
"""What the guest's ticking shell comes through again and again."""
NEVER = "panic", "emergency_restart", "machine_power_off", "machine_halt", "machine_restart"


class SharedKgdb(Shared):
    """A guest whose stub is kgdb, on a serial port of its own."""

    def __init__(self, start_guest: StartGuest) -> None:
        super().__init__(start_guest, "--kgdb-port", more='stub_kind = "kgdb"\n')

    def start_guest(self) -> None:
        super().start_guest()
        config = self.dir / "kbridge.toml"
        text = config.read_text()
        config.write_text(text.replace("stub_kind", f'stub = "{self.guest["kgdb"]}"\nstub_kind'))


@pytest.fixture(scope="module", params=[SharedKgdb, OneLine], ids=["own-port", "one-line"])
def shared(request: pytest.FixtureRequest, shared_kgdb_guest: StartGuest) -> Iterator[Shared]:
    with request.param(shared_kgdb_guest) as shared:
        yield shared


@pytest.fixture(scope="module")
def monitor(shared: Shared) -> Monitor:
    return shared.monitor()


@pytest.fixture(scope="module")
def places(shared: Shared) -> dict[str, int]:
    return shared.addresses(OFTEN, OFTEN_TOO, *NEVER)


@pytest.fixture(scope="module")
def clean_bytes(monitor: Monitor, places: dict[str, int]) -> dict[int, bytes]:
    """What stood at each place before any debugger came."""
    found = {address: true_memory(monitor, address, 1) for address in places.values()}
    assert INT3 not in found.values()
    return found


@pytest.fixture
def web1(
    shared: Shared, monitor: Monitor, places: dict[str, int], clean_bytes: dict[int, bytes]
) -> Iterator[Shared]:
    """The guest, running, with nobody attached; and that again afterwards, with its text as it was."""
    yield shared
    is_left_clean(shared, monitor)
    assert {address: true_memory(monitor, address, 1) for address in places.values()} == clean_bytes


def test_gdb_breaks_in_looks_steps_and_leaves(web1: Shared) -> None:
    broken_in = web1.count("debugger.break_in")
    with kbridge_gdb(GDB_13, web1.env, "web1") as a:
        assert web1.count("debugger.break_in") == broken_in + 1
        assert "__handle_sysrq" in a.run("bt")
        threads = a.run("info threads")
        assert "(shadowCPU0)" in threads, threads
        assert "(init)" in threads, threads
        before = a.pc
        assert a.run("info symbol $pc").startswith("kgdb_breakpoint + 11"), a.said
        a.step()
        assert 0 < a.pc - before < 16
        assert "detached" in a.detach()


def test_a_breakpoint_is_hit_again_and_again_and_not_left(
    web1: Shared, monitor: Monitor, places: dict[str, int], clean_bytes: dict[int, bytes]
) -> None:
    often, never = places[OFTEN], places[NEVER[0]]
    with start(GDB_13, web1) as a:
        a.break_at(often)
        for _ in range(4):
            hits(a, often)
        a.unbreak()
        a.break_at(never)
        a.go()
        web1.goes_on()
        # It stands in the kernel's text, and the first one does not any more.
        assert true_memory(monitor, never, 1) == INT3
        assert true_memory(monitor, often, 1) == clean_bytes[often]
        a.interrupt()
        assert "received signal" in a.wait_stop()
        assert "detached" in a.detach()
    wait_for(lambda: not web1.sessions(), "a session that ended")
    web1.goes_on()
    with start(GDB_13, web1) as a:
        # gdb has no breakpoints, so this is what the kernel's own debugger reads there.
        assert a.memory(often, 1) + a.memory(never, 1) == clean_bytes[often] + clean_bytes[never]
        leave(a, "quit")


def test_two_gdbs_share_a_kernel_and_hand_it_over(web1: Shared, places: dict[str, int]) -> None:
    one, two = places[OFTEN], places[OFTEN_TOO]
    with start(GDB_13, web1) as a, start(GDB_18, web1) as b:
        name_a, name_b = name_of(a), name_of(b)
        assert b.pc == a.pc
        assert "observe" in b.step()
        before = a.register("r15")
        assert "observes" in b.write_register("r15", before + 1) or "observe" in b.said[-400:]
        assert a.register("r15") == before

        a.break_at(one)
        b.go()
        is_waiting(web1, name_b)
        hits(a, one)
        told = b.wait_stop()
        assert "SIGTRAP" in told
        assert "Breakpoint " not in told
        assert b.pc == one

        a.monitor(f"control give {name_b}")
        assert f"{name_a} gave you control of web1" in b.monitor("status")
        b.break_at(two)
        met: set[int] = set()
        for _ in range(12):
            b.go()
            b.wait_stop()
            met.add(b.pc)
            assert ("Breakpoint " in b.said.rpartition("Continuing.")[2]) == (b.pc == two), b.said[-600:]
            if met == {one, two}:
                break
        assert met == {one, two}
        assert web1.owners() == {one: {name_a}, two: {name_b}}

        # The kernel goes on for the breakpoints that a has armed, and stands at one of them.
        leave(b, "detach")
        wait_for(lambda: web1.owners() == {one: {name_a}}, "the breakpoints of a alone")
        a.go()
        assert "Breakpoint " in a.wait_stop()
        assert a.pc == one
        assert "you control" in a.monitor("control take")
        hits(a, one)
        leave(a, "detach")


@pytest.mark.parametrize("state", ["stopped", "stopped at a breakpoint", "running"])
def test_gdb_killed_lets_the_kernel_go_as_it_was(
    web1: Shared, monitor: Monitor, places: dict[str, int], state: str
) -> None:
    with start(GDB_13, web1) as a:
        if state == "stopped at a breakpoint":
            a.break_at(places[OFTEN])
            hits(a, places[OFTEN])
        else:
            a.break_at(places[NEVER[0]])
        if state == "running":
            a.go()
            web1.goes_on()
            assert true_memory(monitor, places[NEVER[0]], 1) == INT3
        leave(a, "SIGKILL")


@pytest.mark.parametrize("state", ["stopped at a breakpoint", "running"])
def test_a_relay_killed_beside_a_kernel_is_followed_by_one_that_lets_it_go(
    web1: Shared, monitor: Monitor, places: dict[str, int], state: str
) -> None:
    address = places[NEVER[0] if state == "running" else OFTEN]
    with start(GDB_13, web1) as a:
        a.break_at(address)
        if state == "running":
            a.go()
            web1.goes_on()
        else:
            hits(a, address)
            before = len(web1.ticks())
        web1.kill_relay()
    web1.start_relay()
    if state != "running":
        wait_for(lambda: len(web1.ticks()) > before, "a kernel that was let go", 20)


def test_a_running_kernel_is_interrupted_again_and_again(web1: Shared) -> None:
    with start(GDB_13, web1) as a, start(GDB_13, web1) as b:
        name_b = name_of(b)
        for _ in range(3):
            number = web1.stop_number()
            b.go()
            is_waiting(web1, name_b)
            a.go()
            web1.goes_on()
            a.interrupt()
            assert "received signal" in a.wait_stop()
            assert "received signal" in b.wait_stop()
            assert web1.stop_number() == number + 1
            assert a.pc == b.pc
        leave(b, "detach")
        leave(a, "detach")


def test_the_fifth_hardware_breakpoint_is_refused_by_the_owners_of_four(
    web1: Shared, places: dict[str, int]
) -> None:
    *three, fourth, fifth = (places[name] for name in NEVER)
    with start(GDB_13, web1) as a, start(GDB_13, web1) as b:
        name_a, name_b = name_of(a), name_of(b)
        for address in three:
            a.break_at(address, hardware=True)
        a.go()
        web1.goes_on()
        a.interrupt()
        assert "received signal" in a.wait_stop()
        b.go()
        b.wait_stop()
        a.monitor(f"control give {name_b}")
        b.break_at(fourth, hardware=True)
        b.break_at(fifth, hardware=True)
        b.send("continue")
        said = b.wait_stop() + b.monitor("status")
        assert "hardware slots are taken" in said, said
        assert f"{name_a} 3" in said, said
        assert f"{name_b} 1" in said, said
        b.unbreak()
        leave(b, "detach")
        leave(a, "detach")


def test_a_pause_by_somebody_else_is_no_stop_of_the_kernel_s(web1: Shared, monitor: Monitor) -> None:
    with start(GDB_13, web1) as a, start(GDB_13, web1) as b:
        number = web1.stop_number()
        b.go()
        is_waiting(web1, name_b := next(one["name"] for one in web1.sessions() if one["role"] == "observer"))
        a.go()
        web1.goes_on()
        monitor.command("stop")
        a.until("the machine of web1 was paused")
        b.until("the machine of web1 was paused")
        monitor.command("cont")
        web1.goes_on()
        assert web1.session(name_b)["waits"]
        assert web1.stop_number() == number
        a.interrupt()
        assert "received signal" in a.wait_stop()
        assert "received signal" in b.wait_stop()
        # It stands: a machine that is paused and resumed there is still in kgdb.
        before = a.pc
        monitor.command("stop")
        wait_for(lambda: web1.state() == "paused", "a paused machine", 10)
        monitor.command("cont")
        wait_for(lambda: web1.state() == "running", "a machine that runs", 10)
        a.step()
        assert 0 < a.pc - before < 16
        leave(b, "detach")
        leave(a, "detach")


def test_an_observer_does_not_stop_a_running_kernel(web1: Shared) -> None:
    before = web1.stop_number(), web1.count("debugger.break_in")
    with start(GDB_13, web1, web1.observe_socket) as b:
        name_b = name_of(b)
        web1.goes_on()
        assert (web1.stop_number(), web1.count("debugger.break_in")) == before
        b.go()
        is_waiting(web1, name_b)
        with start(GDB_13, web1) as a:
            assert "received signal" in b.wait_stop()
            assert b.pc == a.pc
            b.go()
            is_waiting(web1, name_b)
            leave(a, "detach")
            # Beside a running kernel again.
            web1.goes_on()
            assert [one["role"] for one in web1.sessions()] == ["observer"]
        b.interrupt()
        assert "SIGINT" in b.wait_stop()
        # It sees no registers, rather than those of a stop that is over.
        assert b.pc == 0
        web1.goes_on()
        leave(b, "detach")
