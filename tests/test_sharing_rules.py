"""The twelve rules of sharing one stub, each a named test, against the whole exchange.

`rsp.world` is everything around it: a machine that behaves as QEMU's does, debuggers, a journal, a clock.  It checks
at each step what must always hold; here is what each rule says by itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from rsp import stub
from rsp.world import World

from gdbstubs.client import State
from gdbstubs.dialects import QEMU
from gdbstubs.pages import IMAGE_START
from gdbstubs.sharing import Phase
from gdbstubs.stops import TRANSIENT_SECONDS

CONTINUE = b"vCont;c"


class Room(World):
    """A world with the short words in which rules are told."""

    def come(self, *, observes: bool = False, admin: bool = False) -> int:
        """A debugger that connects and asks why the guest stands."""
        number = self.open(observes=observes, admin=admin)
        self.get(number, b"?")
        return number

    def get(self, number: int, payload: bytes) -> bytes | None:
        """The reply to a request, None while there is none; no time passes."""
        answered = self.sessions[number].debugger.answered
        before = len(answered)
        self.ask(number, payload)
        self.flow()
        return answered[-1][1] if len(answered) > before else None

    def monitor(self, number: int, command: str) -> str:
        """What a `monitor` command prints."""
        words = self.sessions[number].debugger.words
        before = len(words)
        assert self.get(number, b"qRcmd," + command.encode().hex().encode()) == b"OK"
        return "".join(words[before:])

    def words(self, number: int) -> str:
        """All that the user of a session was told."""
        return "".join(self.sessions[number].debugger.words)

    def stops(self, number: int) -> list[bytes]:
        """The replies to the resumes of a session."""
        answered = self.sessions[number].debugger.answered
        return [reply for request, reply in answered if request.startswith((b"vCont;", b"c", b"s"))]

    def meet(self, reason: bytes = b"", signal: int = 5) -> None:
        """The guest stops by itself, and the stub says why."""
        machine = self.machine
        machine.running, machine.detail = False, "debug"
        machine.events.append(False)
        machine._say(b"T%02xthread:%s;%s" % (signal, machine._thread(1), reason))
        self.flow()

    def last(self) -> None:
        """Time in which a stop becomes one that is told to all."""
        self.elapse(TRANSIENT_SECONDS * 1.5)
        self.flow()

    def sent(self, *starts: bytes) -> list[bytes]:
        """What the stub was sent that begins so."""
        return [one for one in self.machine.seen if one.startswith(starts)]

    def told(self, kind: str, *names: str) -> list[tuple[Any, ...]]:
        """Fields of the time line's events of one kind."""
        return [tuple(one.fields.get(name) for name in names) for one in self.reports if one.kind == kind]


@pytest.fixture
def room() -> Room:
    return Room()


def paused() -> Room:
    room = Room()
    room.machine.running, room.machine.detail, room.should_run = False, "paused", False
    return room


# -- 1 ----------------------------------------------------------------------------------------------------------


def test_rule_1_what_connecting_asking_and_leaving_do_to_a_stub_happens_once(room: Room) -> None:
    """`?` removes every breakpoint from QEMU's stub, and connecting stops the guest: neither is passed on."""
    anna = room.come()
    assert room.get(anna, b"Z0,1000,1") == b"OK"
    ben = room.come()
    assert room.get(ben, b"?") == b"T05thread:1;"
    assert room.sent(b"?") == [b"?"]
    assert (0, 0x1000, 1) in room.machine.breakpoints
    before = len(room.machine.seen)
    assert room.get(ben, b"D") == b"OK"
    room.flow()
    room.come(observes=True)
    assert room.machine.seen[before:] == []
    assert room.machine.connected
    assert not room.machine.running


def test_rule_1_nothing_is_asked_of_the_stub_before_a_debugger_needs_it(room: Room) -> None:
    room.open()
    room.flow()
    assert not room.was_connected
    assert room.machine.running


# -- 2 ----------------------------------------------------------------------------------------------------------


def test_rule_2_the_first_that_did_not_ask_to_observe_controls(room: Room) -> None:
    room.come(observes=True)
    room.come()
    room.come()
    assert [one.controls for one in room.exchange.session_views()] == [False, True, False]


def test_rule_2_control_is_asked_for_given_and_free_again(room: Room) -> None:
    anna, ben, carl = room.come(), room.come(), room.come(observes=True)
    assert "has been asked" in room.monitor(ben, "control take")
    assert "user-2 asks for control" in room.monitor(anna, "status")
    assert "user-2 controls" in room.monitor(anna, "control give user-2")
    assert room.get(anna, b"M1000,1:00") == b"E01"
    assert room.get(ben, b"M1000,1:00") == b"OK"
    room.close(ben)
    room.flow()
    assert "control is free" in room.monitor(anna, "control")
    assert "you control the guest now" in room.monitor(anna, "control take")
    assert "let go: control of web1 is free" not in room.words(carl)
    assert "control is free" in room.monitor(anna, "control release")
    heard = room.monitor(carl, "control")
    for words in ("user-1 gave control of web1 to user-2", "user-2 has left", "user-1 let go"):
        assert words in heard
    assert room.told("debugger.control", "from", "to", "how") == [
        (None, "user-1", "taken"),
        ("user-1", "user-2", "given"),
        ("user-2", None, "left"),
        (None, "user-1", "taken"),
        ("user-1", None, "released"),
    ]


def test_rule_2_only_an_administrator_forces_control(room: Room) -> None:
    anna, ben, root = room.come(), room.come(), room.come(admin=True)
    assert "only an administrator" in room.monitor(ben, "control take --force")
    assert room.get(anna, b"M1000,1:00") == b"OK"
    assert "you control" in room.monitor(root, "control take --force")
    assert room.get(anna, b"M1000,1:00") == b"E01"
    assert "user-3 took control of web1 from user-1" in room.monitor(anna, "control")


def test_rule_2_the_breakpoints_of_a_holder_that_leaves_go() -> None:
    room = paused()
    anna, _ = room.come(), room.come()
    room.get(anna, b"Z0,1000,1")
    assert room.machine.breakpoints
    room.close(anna)
    room.flow()
    assert not room.machine.breakpoints
    assert room.exchange.sharing.control.holder is None


def are_unavailable(registers: bytes | None) -> bool:
    """Whether no register has a value but the program counter, without which gdb ends the session: that is 0."""
    assert registers
    return registers.replace(b"0" * 16, b"x" * 16, 1) == b"x" * len(registers)


# -- 3 ----------------------------------------------------------------------------------------------------------


def test_rule_3_a_controller_stops_a_guest_that_runs_once(room: Room) -> None:
    anna = room.open()
    assert room.get(anna, b"?") == b"T05thread:1;"
    assert not room.machine.running
    assert room.told("debugger.stop", "stop") == [(1,)]


def test_rule_3_an_observer_leaves_a_guest_alone_that_runs(room: Room) -> None:
    ben = room.open(observes=True)
    assert room.get(ben, b"?") == b"T00thread:1;"
    assert are_unavailable(room.get(ben, b"g"))
    assert room.get(ben, b"p0") == b"x" * 16
    assert room.get(ben, b"m1000,4") == b"E0b"
    assert room.machine.running
    assert not room.was_connected
    assert not room.live_reads


def test_rule_3_an_observer_beside_a_controller_leaves_the_guest_alone(room: Room) -> None:
    anna = room.come()
    room.get(anna, CONTINUE)
    before = len(room.machine.seen)
    ben = room.open(observes=True)
    assert room.get(ben, b"?") == b"T00thread:1;"
    assert are_unavailable(room.get(ben, b"g"))
    assert room.machine.running
    assert len(room.machine.seen) == before


def test_rule_3_live_memory_is_read_through_the_monitor(room: Room) -> None:
    ben = room.come(observes=True)
    room.monitor(ben, "live on")
    assert room.get(ben, b"m1000,4") is None
    ((token, address, length),) = room.live_reads
    assert (address, length) == (0x1000, 4)
    room.do(room.exchange.live_memory, token, b"\x01\x02\x03\x04", room.now)
    assert room.sessions[ben].debugger.answered[-1] == (b"m1000,4", b"01020304")
    room.get(ben, b"m2000,4")
    room.do(room.exchange.live_memory, room.live_reads[-1][0], "no such page", room.now)
    assert room.sessions[ben].debugger.answered[-1] == (b"m2000,4", b"E0e")
    assert room.machine.running


# -- 4 ----------------------------------------------------------------------------------------------------------


def test_rule_4_stops_are_one_history_and_who_lags_is_told(room: Room) -> None:
    anna, ben = room.come(), room.come()
    for _ in range(2):
        room.get(anna, CONTINUE)
        room.meet()
        room.last()
    assert room.told("debugger.stop", "stop") == [(1,), (2,), (3,)]
    assert room.get(anna, b"m1000,4") == b"10171e25"
    assert room.get(ben, b"m1000,4") == b"E0b"
    assert "has run since stop 1 and stands at stop 3 now" in room.monitor(ben, "status")
    # It returns at once, resumes nothing, and names what was missed.
    resumed = len(room.sent(b"vCont;"))
    assert room.get(ben, CONTINUE) == b"T05thread:1;"
    assert "missed stop 2" in room.words(ben)
    assert len(room.sent(b"vCont;")) == resumed
    assert room.get(ben, b"m1000,4") == b"10171e25"


def test_rule_4_an_observer_that_continues_waits_for_the_next_stop(room: Room) -> None:
    anna, ben = room.come(), room.come()
    assert room.get(ben, CONTINUE) is None
    assert not room.machine.running
    room.get(anna, CONTINUE)
    room.meet()
    assert room.stops(anna) == [b"T05thread:1;"]
    assert room.stops(ben) == []
    room.last()
    assert room.stops(ben) == [b"T05thread:1;"]


def test_rule_4_a_stop_that_is_left_at_once_is_counted_and_not_told(room: Room) -> None:
    anna, ben = room.come(), room.come()
    room.get(ben, CONTINUE)
    for _ in range(3):
        room.get(anna, b"vCont;s:1")
        room.machine.advance()
        room.flow()
        room.elapse(TRANSIENT_SECONDS / 2)
    assert room.stops(anna) == [b"T05thread:1;"] * 3
    assert room.stops(ben) == []
    room.last()
    assert room.stops(ben) == [b"T05thread:1;"]
    assert "missed" not in room.words(ben)
    assert room.sessions[ben].told == [4]
    assert room.told("debugger.stop", "stop") == [(1,), (2,), (3,), (4,)]
    assert room.exchange.sharing.stops.transient == 2


def test_rule_4_live_reads_are_off_at_first_and_each_session_s_own(room: Room) -> None:
    ben, carl = room.come(observes=True), room.come(observes=True)
    room.monitor(ben, "live on")
    assert room.get(carl, b"m1000,4") == b"E0b"
    assert room.get(ben, b"m1000,4") is None
    assert len(room.live_reads) == 1
    room.do(room.exchange.live_memory, room.live_reads[0][0], b"\x01", room.now)
    room.monitor(ben, "live off")
    assert room.get(ben, b"m2000,4") == b"E0b"
    assert len(room.live_reads) == 1


# -- 5 ----------------------------------------------------------------------------------------------------------


def test_rule_5_each_session_gets_one_reply_with_the_reason_that_is_its_own(room: Room) -> None:
    anna, ben = room.come(), room.come()
    room.get(anna, b"Z2,1000,8")
    room.get(anna, CONTINUE)
    room.get(ben, CONTINUE)
    room.meet(b"watch:1004;")
    room.last()
    assert room.stops(anna) == [b"T05thread:1;watch:1004;"]
    assert room.stops(ben) == [b"T05thread:1;"]
    room.settle()
    room.elapse(100)
    assert len(room.stops(anna)) == len(room.stops(ben)) == 1


@pytest.mark.parametrize("how", ["stub", "guest"])
def test_rule_5_nobody_waits_for_ever_for_what_is_lost(room: Room, how: str) -> None:
    anna, ben = room.come(), room.come()
    room.get(anna, CONTINUE)
    room.get(ben, CONTINUE)
    if how == "stub":
        room.drop()
    else:
        room.die()
    for number in (anna, ben):
        (reply,) = room.stops(number)
        assert reply[:1] in (b"W", b"X")
        assert "web1" in room.words(number)
        assert room.sessions[number].closing


def test_rule_5_a_refused_step_is_a_stop_that_has_no_number(room: Room) -> None:
    """An error to a resume makes LLDB drop the connection: a refusal is words and an ordinary stop."""
    room.come()
    ben = room.come()
    assert room.get(ben, b"vCont;s:1") == b"T02thread:1;"
    assert "you observe web1 and cannot step it; user-1 controls it" in room.words(ben)
    assert room.told("debugger.stop", "stop") == [(1,)]


# -- 6 ----------------------------------------------------------------------------------------------------------


def test_rule_6_a_removal_takes_effect_at_the_next_resume(room: Room) -> None:
    """A debugger removes and inserts all its breakpoints at each stop: the stub hears of what changed, no more."""
    anna = room.come()
    room.get(anna, b"Z0,1000,1")
    room.get(anna, b"Z0,2000,1")
    room.get(anna, CONTINUE)
    room.meet()
    before = len(room.machine.seen)
    for payload in (b"z0,1000,1", b"z0,2000,1", b"Z0,2000,1"):
        assert room.get(anna, payload) == b"OK"
    assert room.machine.seen[before:] == []
    room.get(anna, CONTINUE)
    assert set(room.machine.breakpoints) == {(0, 0x2000, 1)}
    assert room.machine.running
    assert not [one for one in room.machine.seen[before:] if one.startswith(b"Z")]


def test_rule_6_an_observer_s_breakpoints_are_kept_and_armed_with_control(room: Room) -> None:
    anna, ben = room.come(), room.come()
    assert room.get(ben, b"Z0,1000,1") == b"OK"
    assert not room.machine.breakpoints
    room.get(ben, CONTINUE)
    assert "not inserted before you have control" in room.words(ben)
    room.monitor(anna, "control give user-2")
    room.get(ben, CONTINUE)
    assert set(room.machine.breakpoints) == {(0, 0x1000, 1)}
    assert room.machine.running


def test_rule_6_the_breakpoints_of_a_former_controller_stay_and_are_counted(room: Room) -> None:
    anna, ben = room.come(), room.come()
    room.get(anna, b"Z0,1000,1")
    room.get(anna, CONTINUE)
    room.meet()
    room.last()
    room.get(ben, CONTINUE)
    room.monitor(anna, "control give user-2")
    room.get(ben, b"Z0,1000,1")
    room.get(ben, CONTINUE)
    room.machine.registers[stub.PROGRAM_COUNTER] = bytes(8)
    assert set(room.machine.breakpoints) == {(0, 0x1000, 1)}
    assert room.machine.breakpoints[0, 0x1000, 1] == 1
    (view,) = room.exchange.breakpoint_views()
    assert view.owners == ("user-1", "user-2")
    room.meet()
    room.close(anna)
    room.flow()
    assert set(room.machine.breakpoints) == {(0, 0x1000, 1)}
    room.close(ben)
    room.settle()
    assert not room.machine.breakpoints


def test_rule_6_another_s_breakpoint_at_the_program_counter_is_stepped_over(room: Room) -> None:
    anna, ben = room.come(), room.come()
    room.get(anna, b"Z0,1000,1")
    room.get(anna, CONTINUE)
    room.machine.registers[stub.PROGRAM_COUNTER] = (0x1000).to_bytes(8, "little")
    room.meet()
    room.last()
    room.get(ben, CONTINUE)
    room.monitor(anna, "control give user-2")
    before = len(room.machine.seen)
    room.get(ben, CONTINUE)
    resumes = [one for one in room.machine.seen[before:] if one.startswith(b"vCont")]
    assert resumes == [b"vCont;s:p1.1"]
    room.machine.path = [0x1004]
    room.machine.advance()
    room.flow()
    resumes = [one for one in room.machine.seen[before:] if one.startswith(b"vCont")]
    assert resumes == [b"vCont;s:p1.1", CONTINUE]
    assert room.machine.running
    assert set(room.machine.breakpoints) == {(0, 0x1000, 1)}
    assert len(room.told("debugger.stop")) == 2


def test_rule_6_hardware_slots_are_shared_and_running_out_names_who_has_them() -> None:
    room = Room(dialect=dataclasses.replace(QEMU, hardware_slots=2))
    anna, ben = room.come(), room.come()
    room.get(anna, b"Z1,1000,1")
    room.get(anna, b"Z1,2000,1")
    room.get(anna, CONTINUE)
    room.meet()
    room.last()
    room.get(ben, CONTINUE)
    room.monitor(anna, "control give user-2")
    assert room.get(ben, b"Z1,1008,1") == b"E1c"
    assert "all 2 hardware slots are taken: user-1 2" in room.monitor(ben, "control")
    assert room.get(ben, b"Z1,1000,1") == b"OK"
    assert len(room.machine.breakpoints) == 2


# -- 7 ----------------------------------------------------------------------------------------------------------


def test_rule_7_threads_acknowledgements_and_sizes_are_each_session_s(room: Room) -> None:
    anna, ben = room.come(), room.come()
    assert room.get(anna, b"QStartNoAckMode") == b"OK"
    assert room.get(anna, b"Hg2") == b"OK"
    assert room.get(ben, b"Hg1") == b"OK"
    for number, thread in ((anna, b"p1.2"), (ben, b"p1.1"), (anna, b"p1.2")):
        before = len(room.machine.seen)
        assert room.get(number, b"m1000,4") == b"10171e25"
        room.get(number, b"Hc1")
        selected = [one for one in room.machine.seen[before:] if one.startswith(b"H")]
        assert selected == [b"Hg" + thread]
    acks = room.sessions[anna].debugger.acks
    room.get(anna, b"qC")
    assert room.sessions[anna].debugger.acks == acks
    acks = room.sessions[ben].debugger.acks
    room.get(ben, b"qC")
    assert room.sessions[ben].debugger.acks == acks + 1
    # The stub's packets hold 4096 bytes; a session's are its own, and its reads are cut into the stub's.
    assert (room.get(ben, b"qSupported") or b"").startswith(b"PacketSize=20000;")
    assert room.get(ben, b"m1000,2000") == stub.memory_at(0x1000, 0x2000).hex().encode()


# -- 8 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"k",
        b"vKill;1",
        b"R00",
        b"r",
        b"vRun;",
        b"qRcmd,696e666f",
        b"vFile:open:2f6574632f706173737764,0,0",
        b"qXfer:auxv:read::0,100",
        b"qXfer:exec-file:read:1:0,100",
        b"Qqemu.sstep=0",
        b"Qqemu.PhyMemMode:1",
        b"vAttach;1",
    ],
)
def test_rule_8_what_is_not_allowed_never_reaches_the_stub(room: Room, payload: bytes) -> None:
    anna = room.come()
    before = len(room.machine.seen)
    room.get(anna, payload)
    # Whoever kills has left, and the guest goes on.
    assert room.machine.seen[before:] == ([b"D;1"] if payload == b"k" else [])
    assert room.machine.alive
    if payload == b"k":
        assert room.machine.running
        assert anna not in room.sessions  # its connection is closed
    else:
        # The relay's own `monitor` answers, and the session goes on.
        assert room.sessions[anna].debugger.words == (["info\n"] if payload.startswith(b"qRcmd") else [])
        assert room.get(anna, b"m1000,4") == b"10171e25"


# -- 9 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observes", [False, True])
def test_rule_9_a_running_guest_is_sent_nothing_but_the_interrupt(room: Room, observes: bool) -> None:
    """Any byte stops QEMU: `rsp.stub` is stopped by each, too."""
    anna = room.come()
    ben = room.come()
    room.get(anna, b"Z0,1000,1")
    room.get(anna, CONTINUE)
    before = len(room.machine.seen)
    number = ben if observes else anna
    for payload in (
        b"m1000,4",
        b"g",
        b"p3",
        b"qfThreadInfo",
        b"Z0,2000,1",
        b"z0,2000,1",
        b"M1000,1:00",
        b"T1",
    ):
        room.get(number, payload)
    room.settle()
    assert room.machine.running
    assert room.machine.seen[before:] == []
    assert not room.machine.output
    if not observes:
        room.send(anna, b"\x03")
        room.flow()
        assert not room.machine.running
        assert room.stops(anna) == [b"T02thread:1;"]


def test_rule_9_an_observer_s_interrupt_ends_its_waiting_and_nothing_else(room: Room) -> None:
    anna, ben = room.come(), room.come()
    room.get(anna, CONTINUE)
    room.get(ben, CONTINUE)
    room.send(ben, b"\x03")
    room.flow()
    assert room.stops(ben) == [b"T02thread:1;"]
    assert room.stops(anna) == []
    assert room.machine.running


# -- 10 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("how", ["detach", "kill", "vanish", "garbage"])
def test_rule_10_the_guest_returns_to_its_state_however_its_controller_leaves(
    how: str, ran: bool, observed: bool
) -> None:
    """The token by which a near relay keeps control over a lost link belongs to chains, and is not tested here."""
    room = Room() if ran else paused()
    anna = room.come()
    if observed:
        room.come(observes=True)
    room.get(anna, b"Z0,1000,1")
    room.get(anna, b"Z1,2000,1")
    if ran:
        room.get(anna, CONTINUE)
        room.meet()
    assert (0, 0x1000, 1) in room.journal
    match how:
        case "detach":
            room.ask(anna, b"D")
        case "kill":
            room.sessions[anna].clean = False
            room.ask(anna, b"k")
        case "vanish":
            room.close(anna)
        case _:
            room.sessions[anna].clean = False
            room.send(anna, b"$" + b"a" * 0x50000)
            room.close(anna)
    room.settle()
    assert room.machine.running is ran
    assert not room.machine.breakpoints
    assert room.exchange.sharing.control.holder is None
    assert room.journalled.breakpoints == ()
    if ran:
        assert room.exchange.sharing.phase is Phase.ABSENT
        assert not room.journalled.attached


def test_rule_10_it_rests_where_that_is_configured() -> None:
    room = Room(resume_on_leave=False)
    anna = room.come()
    room.come(observes=True)
    room.get(anna, CONTINUE)
    room.close(anna)
    room.settle()
    assert not room.machine.running


@pytest.mark.parametrize("panic", [False, True])
@pytest.mark.parametrize("observed", [False, True])
def test_rule_10_a_pause_of_others_is_never_undone(panic: bool, observed: bool) -> None:
    room = Room()
    anna = room.come()
    if observed:
        room.come(observes=True)
    room.get(anna, CONTINUE)
    room.pause(panic=panic)
    room.settle()
    (reply,) = room.stops(anna)
    assert reply[:1] == b"T"
    assert "stopped by something else than a debugger" in room.words(anna)
    room.close(anna)
    room.settle()
    assert not room.machine.running


def test_rule_10_a_successor_removes_what_the_journal_names_and_lets_the_guest_run(room: Room) -> None:
    anna = room.come()
    room.get(anna, b"Z0,1000,1")
    room.get(anna, CONTINUE)
    named = room.journalled
    assert (named.attached, named.run) == (True, True)
    after = Room(machine=room.machine)
    room.machine.connected = False  # the relay was killed: no `D`, and the breakpoint stands
    after.journalled, after.journal = named, room.journal
    assert after.do(after.exchange.recover, named.breakpoints, 0.0)
    after.settle()
    assert not after.machine.breakpoints
    assert after.machine.running
    assert not after.journalled.attached


# -- 11 ---------------------------------------------------------------------------------------------------------


def kernel(monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setattr(stub, "MAPPED", range(IMAGE_START, IMAGE_START + 0x10000))
    return Room()


def test_rule_11_a_page_is_read_once_at_a_stop_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The far relay of a chain, which numbers stops and pushes invalidations, is not tested here."""
    room = kernel(monkeypatch)
    anna, ben = room.come(), room.come()
    first = b"m%x,8" % IMAGE_START
    room.get(anna, first)
    room.get(ben, b"m%x,40" % (IMAGE_START + 0x40))
    reads = len(room.sent(b"m"))
    for number in (anna, ben):
        assert room.get(number, first) == stub.memory_at(IMAGE_START, 8).hex().encode()
    assert len(room.sent(b"m")) == reads


@pytest.mark.parametrize(
    "change", [b"M%x,1:ff" % IMAGE_START, b"P0=0000000000000000", b"Z0,%x,1" % IMAGE_START, b"run"]
)
def test_rule_11_what_was_read_is_dropped_by_what_could_change_it(
    monkeypatch: pytest.MonkeyPatch, change: bytes
) -> None:
    room = kernel(monkeypatch)
    anna = room.come()
    read = b"m%x,8" % IMAGE_START
    for _ in range(3):
        room.get(anna, read)
    reads = len(room.sent(b"m"))
    if change == b"run":
        room.get(anna, CONTINUE)
        room.machine.memory[IMAGE_START] = 0xFF
        room.meet()
    else:
        assert room.get(anna, change) == b"OK"
    memory = stub.memory_at(IMAGE_START, 8).hex().encode()
    expected = b"ff" + memory[2:] if change == b"run" or change[:1] == b"M" else memory
    assert room.get(anna, read) == expected
    assert len(room.sent(b"m")) > reads


def test_rule_11_no_device_is_read_because_its_neighbour_was(room: Room) -> None:
    anna = room.come()
    for _ in range(3):
        room.get(anna, b"m1010,4")
    assert room.sent(b"m") == [b"m1010,4"] * 3


# -- 12 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload", [b"vNoSuch", b"qNoSuch:1", b"QNoSuch", b"!", b"jThreadsInfo", b"_M100,rwx", b"y"]
)
def test_rule_12_an_unknown_packet_gets_the_empty_reply(room: Room, payload: bytes) -> None:
    anna = room.come()
    before = len(room.machine.seen)
    assert room.get(anna, payload) == b""
    assert room.machine.seen[before:] == []


@pytest.mark.parametrize(
    "payload",
    [b"m1000", b"mzz,4", b"m1000,4,4", b"M1000,2:00", b"Z0,1000", b"Z0,,1", b"pzz", b"vCont;x", b"Hgzz"],
)
def test_rule_12_a_malformed_one_is_refused_in_words(room: Room, payload: bytes) -> None:
    anna = room.come()
    before = len(room.machine.seen)
    reply = room.get(anna, payload)
    assert reply
    assert reply != b"OK"
    assert "is malformed" in reply.decode() + room.monitor(anna, "status") + room.words(anna)
    assert room.machine.seen[before:] == []
    assert room.exchange.client.state is State.STOPPED
