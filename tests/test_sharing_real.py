"""Several real debuggers on one real guest: who may do what, what each is told, and what stays when they leave."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bridge_lab import Monitor, wait_for
from debuggers_lab import GDB_13, GDB_18, MAKES, Debugger, Make, kbridge_gdb
from sharing_lab import (
    Own,
    Shared,
    is_left_clean,
    is_waiting,
    leave,
    name_of,
    program_counters,
    start,
    true_memory,
    truth,
)

from gdbstubs.target import Breakpoint, BreakpointKind

pytestmark = [pytest.mark.guest, pytest.mark.gdb]

StartGuest = Callable[..., dict[str, Any]]

# What the guest's ticking shell comes through again and again.
PLACES = ("hrtimer_nanosleep", "do_exit", "n_tty_write")
ROUNDS = 24


@pytest.fixture(scope="module")
def shared(shared_cloud_guest: StartGuest) -> Iterator[Shared]:
    with Shared(shared_cloud_guest) as shared:
        yield shared


@pytest.fixture(scope="module")
def monitor(shared: Shared) -> Monitor:
    return shared.monitor()


@pytest.fixture(scope="module")
def places(shared: Shared) -> tuple[int, ...]:
    found = shared.addresses(*PLACES)
    return tuple(found[name] for name in PLACES)


@pytest.fixture
def web1(shared: Shared, monitor: Monitor) -> Iterator[Shared]:
    """The guest, running, with nobody attached; and that again afterwards."""
    yield shared
    is_left_clean(shared, monitor)


@pytest.fixture(params=MAKES, ids=lambda make: make.name)
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


# ── control and its hand-over ───────────────────────────────────────────────────────────────────────────────


def runs_into(
    shared: Shared, runner: Debugger, other: Debugger, wanted: set[int]
) -> dict[int, tuple[str, str]]:
    """Have `runner` continue, and `other` wait, until all wanted places were met; what each was told there.

    Each stop is seen once by each.
    """
    met: dict[int, tuple[str, str]] = {}
    other_name = name_of(other)
    for _ in range(ROUNDS):
        other.go()
        is_waiting(shared, other_name)
        before = shared.stop_number()
        runner.go()
        told = runner.wait_stop(), other.wait_stop()
        # gdb steps over its own breakpoint first, a stop that nobody else is told of.
        assert before < shared.stop_number() <= before + 2
        if shared.session(other_name)["stop"] != shared.stop_number():
            # The machine was so busy that this inner stop lasted.
            other.go()
            told = told[0], other.wait_stop()
        assert {one["stop"] for one in shared.sessions()} == {shared.stop_number()}
        for words in told:
            assert len(re.findall(r"Breakpoint \d|received signal", words)) == 1, words
        address = runner.pc
        assert other.pc == address
        met[address] = told
        if set(met) == wanted:
            return met
        assert address in wanted, (hex(address), [hex(one) for one in wanted], told)
    raise AssertionError(f"met {[hex(one) for one in met]} of {[hex(one) for one in wanted]} only")


@pytest.mark.parametrize("how", ["detach", "quit", "SIGKILL"])
@pytest.mark.parametrize("first", ["observer", "controller"])
def test_two_gdbs_hand_over_and_leave_and_no_breakpoint_is_lost_or_left(
    web1: Shared, places: tuple[int, ...], first: str, how: str
) -> None:
    one, two, three = places
    with start(GDB_13, web1) as a, start(GDB_18, web1) as b:
        name_a, name_b = name_of(a), name_of(b)
        assert [web1.session(name)["role"] for name in (name_a, name_b)] == ["controller", "observer"]
        a.break_at(one)
        a.break_at(two)
        met = runs_into(web1, a, b, {one, two})
        for told_a, told_b in met.values():
            assert "Breakpoint " in told_a
            # Another's breakpoint is a bare stop.
            assert "Breakpoint " not in told_b
            assert "SIGTRAP" in told_b
        assert web1.owners() == {one: {name_a}, two: {name_a}}

        assert name_b in a.monitor(f"control give {name_b}")
        assert [web1.session(name)["role"] for name in (name_a, name_b)] == ["observer", "controller"]
        assert f"{name_a} gave you control of web1" in b.monitor("status")
        b.break_at(two)
        b.break_at(three)
        met = runs_into(web1, b, a, {one, two, three})
        assert web1.owners() == {one: {name_a}, two: {name_a, name_b}, three: {name_b}}
        hits = {address: tuple("Breakpoint " in told for told in pair) for address, pair in met.items()}
        assert hits == {one: (False, True), two: (True, True), three: (True, False)}

        if first == "observer":
            leave(a, how)
            wait_for(lambda: web1.owners() == {two: {name_b}, three: {name_b}}, "the breakpoints of b alone")
            seen = set()
            for _ in range(6):
                b.go()
                b.wait_stop()
                seen.add(b.pc)
            assert seen == {two, three}
            leave(b, how)
        else:
            leave(b, how)
            wait_for(lambda: len(web1.sessions()) == 1, "one session")
            wait_for(lambda: web1.owners() == {one: {name_a}, two: {name_a}}, "the breakpoints of a alone")
            # The guest went on with what a armed, and nobody controls it: it has come to one of them.
            assert "control of web1 is free" in a.monitor("status") or "control is free" in a.monitor(
                "status"
            )
            a.go()
            assert "Breakpoint " in a.wait_stop()
            assert "you control" in a.monitor("control take")
            seen = {a.pc}
            for _ in range(6):
                a.go()
                a.wait_stop()
                seen.add(a.pc)
            assert seen == {one, two}
            leave(a, how)


def test_control_is_asked_for_given_released_and_taken(web1: Shared) -> None:
    with start(GDB_13, web1) as a, start(GDB_18, web1) as b:
        name_a, name_b = name_of(a), name_of(b)
        assert "asked" in b.monitor("control take")
        assert web1.session(name_b)["asks"]
        assert f"{name_b} asks for control" in a.monitor("status")
        assert "no session 'nobody' is here" in a.monitor("control give nobody")
        a.monitor(f"control give {name_b}")
        assert web1.session(name_b)["role"] == "controller"
        # The former controller is an observer in everything.
        before = a.register("r15")
        assert "observes" in a.write_register("r15", before + 1)
        b.monitor("control release")
        assert {one["role"] for one in web1.sessions()} == {"observer"}
        assert "you control" in a.monitor("control take")
        assert a.write_register("r15", before) == ""
        changes = [event for event in web1.events() if event["kind"] == "debugger.control"]
        assert [(one["from"], one["to"], one["how"]) for one in changes[-3:]] == [
            (name_a, name_b, "given"), (name_b, None, "released"), (None, name_a, "taken"),
        ]  # fmt: skip


def test_each_debugger_beside_gdb_is_given_control_uses_it_and_leaves(
    web1: Shared, monitor: Monitor, make: Make, places: tuple[int, ...]
) -> None:
    with start(GDB_13, web1) as a, start(make, web1) as b:
        name_a, name_b = name_of(a), name_of(b)
        # What an observer wants is kept until it may.
        b.break_at(places[1])
        b.go()
        is_waiting(web1, name_b)
        assert web1.breakpoints() == []
        b.interrupt()
        b.wait_stop()
        a.monitor(f"control give {name_b}")
        before = b.pc
        b.step()
        assert b.pc in program_counters(monitor) - {before}
        # It lags, is told of the step, and waits from then on.
        a.go()
        a.wait_stop()
        a.go()
        is_waiting(web1, name_a)
        b.go()
        assert re.search("[Bb]reakpoint 1", b.wait_stop())
        a.wait_stop()
        assert web1.owners() == {places[1]: {name_b}}
        assert a.pc == b.pc == places[1]
        assert a.memory(b.register("rsp"), 16) == b.memory(a.register("rsp"), 16)
        assert "detached" in b.detach()
        wait_for(lambda: [one["name"] for one in web1.sessions()] == [name_a], "one session")
        web1.goes_on()
        assert web1.breakpoints() == []


def test_two_gdbs_and_our_own_client_at_once(web1: Shared, places: tuple[int, ...]) -> None:
    one, two, _ = places
    with start(GDB_13, web1) as a, start(GDB_18, web1) as b, contextlib.closing(Own(web1.socket)) as own:
        names = [name_of(a), name_of(b), re.findall(r"(?m)^ +(\S+) .*\(you\)", own.monitor("status"))[0]]
        assert [web1.session(name)["role"] for name in names] == ["controller", "observer", "observer"]
        a.break_at(one)
        waiting = own.begin(own.debugger.resume)
        b.go()
        for name in names[1:]:
            is_waiting(web1, name)
        a.go()
        a.wait_stop()
        b.wait_stop()
        # Another's breakpoint has no reason.
        assert own.answer(waiting).reason is None
        assert a.pc == b.pc == own.pc == one
        a.monitor(f"control give {names[2]}")
        place = Breakpoint(BreakpointKind.SOFTWARE, two, 1)
        own.ask(lambda done: own.debugger.insert(place, done))
        met = set()
        for _ in range(ROUNDS):
            b.go()
            is_waiting(web1, names[1])
            # From its own breakpoint a debugger steps by itself.
            own.ask(lambda done: own.debugger.step(None, done))
            stepped = own.pc
            own.ask(own.debugger.resume)
            b.wait_stop()
            if b.pc == stepped:
                # The machine was so busy that the step's stop lasted and was told: the next one follows at once.
                b.go()
                b.wait_stop()
            assert b.pc == own.pc
            met.add(own.pc)
            if met == {one, two}:
                break
        assert met == {one, two}
        assert web1.owners() == {one: {names[0]}, two: {names[2]}}
        own.ask(own.debugger.detach)
        own.close()
        wait_for(lambda: web1.owners() == {one: {names[0]}}, "the breakpoints of a alone")
        wait_for(lambda: [one["name"] for one in web1.sessions()] == names[:2], "two sessions")


# ── what an observer may not ────────────────────────────────────────────────────────────────────────────────


def test_an_observer_is_refused_each_thing_and_told_why_and_goes_on(
    web1: Shared, monitor: Monitor, make: Make
) -> None:
    with start(GDB_13, web1) as controller, start(make, web1) as observer:
        place = controller.register("rsp") - 0x100
        memory = true_memory(monitor, place, 8)
        registers = {name: truth(monitor, name.upper()) for name in ("rip", "rsp", "rax", "r15")}
        stop = web1.stop_number()

        def nothing_happened() -> None:
            assert true_memory(monitor, place, 8) == memory
            assert {name: truth(monitor, name.upper()) for name in registers} == registers
            assert web1.stop_number() == stop
            assert monitor.status() != "running"
            assert observer.pc == registers["rip"]

        said = observer.write_memory(place, memory[0] ^ 0xFF)
        assert "rror" in said or "annot" in said
        assert "observes and may not write memory" in said + observer.monitor("status")
        nothing_happened()
        said = observer.write_register("r15", registers["r15"] ^ 0xFF)
        assert "observes and may not write registers" in said + observer.monitor("status")
        nothing_happened()
        said = observer.step()
        assert "you observe web1 and cannot step it; root controls it" in said
        assert "SIGINT" in said
        nothing_happened()
        said = observer.kill_guest()
        if make.is_gdb:
            assert "Can't kill process" in said
            assert "does not kill a guest" in observer.monitor("status")
            nothing_happened()
        else:
            assert "a debugger does not kill a guest: this session has left it" in said
        # LLDB believes that it has killed what it was attached to.
        assert monitor.status() != "running"
        roles = ["controller", "observer"] if make.is_gdb else ["controller"]
        wait_for(lambda: [one["role"] for one in web1.sessions()] == roles, "the sessions that are left")
        assert controller.pc == registers["rip"]


# ── what an observer waits for ──────────────────────────────────────────────────────────────────────────────


def test_an_observers_continue_waits_and_resumes_nothing(
    web1: Shared, monitor: Monitor, make: Make, places: tuple[int, ...]
) -> None:
    with start(GDB_13, web1) as controller, start(make, web1) as observer:
        name = name_of(observer)
        observer.go()
        is_waiting(web1, name)
        stop, status, place = web1.stop_number(), monitor.status(), truth(monitor, "RIP")
        # Its user may think better of it.
        observer.interrupt()
        assert "SIGINT" in observer.wait_stop()
        observer.go()
        is_waiting(web1, name)
        # The inner steps of what the controller does are not for those who wait.
        assert (web1.stop_number(), monitor.status(), truth(monitor, "RIP")) == (stop, status, place)
        controller.run("stepi 40")
        told = observer.wait_stop()
        assert told.count("SIGTRAP") == 1, told
        assert web1.stop_number() == stop + 40
        assert observer.pc == controller.pc
        # A breakpoint of the controller's.
        observer.go()
        is_waiting(web1, name)
        controller.break_at(places[1])
        controller.go()
        assert "Breakpoint 1" in controller.wait_stop()
        assert "SIGTRAP" in observer.wait_stop()
        assert observer.pc == places[1]
        assert observer.memory(places[1], 8) == true_memory(monitor, places[1], 8)


def test_who_lags_is_told_so_and_catches_up_at_once(
    web1: Shared, make: Make, places: tuple[int, ...]
) -> None:
    with start(GDB_13, web1) as controller, start(make, web1) as observer:
        seen = web1.stop_number()
        controller.break_at(places[1])
        for _ in range(3):
            controller.go()
            controller.wait_stop()
        # Far from what it may have read.
        refused = observer.read(places[2])
        assert "annot access memory" in refused or "memory read failed" in refused
        assert f"stop {seen}" in observer.monitor("status")
        observer.go()
        told = observer.wait_stop(10)
        # The steps by which gdb gets past its breakpoint count.
        assert f"missed stops {seen + 1} to {web1.stop_number() - 1}" in told
        assert web1.stop_number() >= seen + 3
        assert observer.pc == controller.pc == places[1]
        assert observer.memory(places[2], 8)


# ── a guest that runs ───────────────────────────────────────────────────────────────────────────────────────


def test_an_observer_comes_to_a_running_guest_and_goes_without_a_stop(
    web1: Shared, monitor: Monitor, make: Make, places: tuple[int, ...]
) -> None:
    stops = web1.count("machine.stop"), web1.count("machine.resume"), web1.stop_number()
    with start(make, web1, web1.observe_socket) as observer:
        assert [one["role"] for one in web1.sessions()] == ["observer"]
        web1.goes_on()
        refused = observer.read(places[0])
        assert "annot access memory" in refused or "memory read failed" in refused
        assert "runs" in observer.monitor("status")
        observer.monitor("live on")
        assert observer.memory(places[0], 16) == true_memory(monitor, places[0], 16)
        observer.go()
        web1.goes_on()
        observer.interrupt()
        assert "SIGINT" in observer.wait_stop(10)
        web1.goes_on()
        assert "detached" in observer.detach()
        wait_for(lambda: not web1.sessions(), "a session that ended")
    web1.goes_on()
    assert (web1.count("machine.stop"), web1.count("machine.resume"), web1.stop_number()) == stops


def test_observers_come_while_the_controller_lets_the_guest_run(
    web1: Shared, places: tuple[int, ...]
) -> None:
    with start(GDB_13, web1) as controller:
        controller.break_at(places[1], hardware=True)
        controller.run("disable")
        controller.go()
        web1.goes_on()
        stop = web1.stop_number(), web1.count("machine.stop")
        with start(GDB_18, web1) as second, start(MAKES[3], web1, web1.observe_socket) as third:
            second.go()
            third.go()
            web1.goes_on()
            assert (web1.stop_number(), web1.count("machine.stop")) == stop
            controller.interrupt()
            assert "SIGINT" in controller.wait_stop()
            for one in (second, third):
                one.wait_stop()
                assert one.pc == controller.pc
            assert web1.stop_number() == stop[0] + 1


# ── what is not the debuggers' ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["detach", "SIGKILL"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["controller-first", "observer-first"])
def test_a_guest_that_was_paused_stays_paused_whoever_leaves(
    web1: Shared, monitor: Monitor, how: str, order: tuple[int, int]
) -> None:
    monitor.command("stop")
    wait_for(lambda: web1.state() == "paused", "a paused guest", 10)
    try:
        with start(GDB_13, web1) as a, start(GDB_18, web1) as b:
            a.step()
            for number in order:
                leave((a, b)[number], how)
                left = 1 - order.index(number)
                wait_for(lambda left=left: len(web1.sessions()) == left, "one session less")
                assert monitor.status() != "running"
        wait_for(lambda: web1.state() in ("paused", "debug"), "a relay at rest", 10)
        assert monitor.status() != "running"
    finally:
        monitor.command("cont")


def test_a_pause_by_somebody_else_is_told_to_all_and_outlives_them(web1: Shared, monitor: Monitor) -> None:
    with start(GDB_13, web1) as a, start(GDB_18, web1) as b:
        a.go()
        b.go()
        web1.goes_on()
        monitor.command("stop")
        try:
            for one in (a, b):
                assert "stopped by something else" in one.wait_stop()
                assert one.pc in program_counters(monitor)
            a.kill()
            wait_for(lambda: len(web1.sessions()) == 1, "one session")
            assert monitor.status() == "paused"
            b.kill()
            wait_for(lambda: not web1.sessions(), "sessions that ended")
            assert monitor.status() == "paused"
        finally:
            monitor.command("cont")


def test_a_guest_resumed_by_somebody_else_is_told_and_goes_on(web1: Shared, monitor: Monitor) -> None:
    with start(GDB_13, web1) as a, start(GDB_18, web1) as b:
        monitor.command("cont")
        web1.goes_on()
        wait_for(lambda: "runs" in a.monitor("status"), "a relay that knows of it", 10)
        for one in (a, b):
            assert "annot access memory" in one.read(0xFFFFFFFF81000000)
        a.go()
        b.go()
        web1.goes_on()
        a.interrupt()
        assert "SIGINT" in a.wait_stop()
        b.wait_stop()
        assert b.pc == a.pc
        b.kill()
        a.detach()


def test_a_panic_is_shown_to_all_and_stays(cloud_guest: StartGuest) -> None:
    with Shared(cloud_guest) as shared, start(GDB_13, shared) as a, start(GDB_18, shared) as b:
        monitor = shared.monitor()
        a.go()
        b.go()
        shared.goes_on()
        assert shared.run("break", "web1", "--sysrq", "c").returncode == 0
        for one in (a, b):
            assert "web1 has panicked" in one.wait_stop()
        a.kill()
        wait_for(lambda: len(shared.sessions()) == 1, "one session")
        assert monitor.status() == "guest-panicked"
        # An observer still reads what is left of it.
        assert b.pc
        assert b.memory(b.register("rsp"), 8) == true_memory(monitor, b.register("rsp"), 8)
        with start(MAKES[3], shared, shared.observe_socket) as late:
            assert late.pc == b.pc
            late.quit()
        leave(b, "detach")
        wait_for(lambda: not shared.sessions(), "sessions that ended")
        assert monitor.status() == "guest-panicked"


# ── the kernel's own gdb scripts ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def kgdb(shared_kgdb_guest: StartGuest) -> Iterator[Shared]:
    with Shared(shared_kgdb_guest) as shared:
        yield shared


@pytest.fixture(scope="module")
def kgdb_monitor(kgdb: Shared) -> Monitor:
    return kgdb.monitor()


@pytest.mark.parametrize("gdb", [GDB_13, GDB_18], ids=lambda make: make.name)
def test_the_kernels_gdb_scripts_work_as_they_are_with_kaslr(
    kgdb: Shared, kgdb_monitor: Monitor, gdb: Make
) -> None:
    folder = Path(kgdb.guest["vmlinux"]).parent
    with kbridge_gdb(gdb, kgdb.env, "web1", "-iex", f"add-auto-load-safe-path {folder}") as a:
        with start(GDB_13, kgdb) as b:
            assert f"Linux version {kgdb.guest['release']}" in a.run("lx-version")
            tasks = a.run("lx-ps")
            assert re.search(r"(?m)^0x[0-9a-f]+ +0 +swapper", tasks), tasks
            assert re.search(r"(?m)^0x[0-9a-f]+ +1 +", tasks)
            assert "kthreadd" in tasks
            current = a.run("output $lx_current().comm")
            assert '"' in current, current
            assert "Linux version" in a.run("lx-dmesg")
            # `next` over a line is one stop for who waits.
            name = name_of(b)
            a.run("break do_exit")
            b.go()
            is_waiting(kgdb, name)
            a.go()
            assert "do_exit" in a.wait_stop()
            b.wait_stop()
            for _ in range(3):
                b.go()
                is_waiting(kgdb, name)
                a.run("next")
                told = b.wait_stop()
                assert told.count("SIGTRAP") == 1
                assert b.pc == a.pc
            b.quit()
        a.quit()
    is_left_clean(kgdb, kgdb_monitor)
