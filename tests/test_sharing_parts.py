"""The parts of sharing by themselves: control, what is armed, the history of stops, what sessions ask and are told."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rsp import stub
from rsp.world import World

from gdbstubs import commands
from gdbstubs.armed import Armed
from gdbstubs.client import State
from gdbstubs.control import Control
from gdbstubs.effects import SessionId
from gdbstubs.errors import ENOSPC
from gdbstubs.sharing import MachineStatus
from gdbstubs.stops import MOST_REMEMBERED, Stops
from gdbstubs.target import Breakpoint, BreakpointKind, Halted, ThreadId

TRAP = Halted(5, ThreadId(1))


@dataclass(frozen=True)
class Named:
    """A session, for what control and the armed sets need of it."""

    name: str


ANNA, BEN, CARL = Named("anna"), Named("ben"), Named("carl")
HERE = (ANNA, BEN, CARL)


def software(address: int) -> Breakpoint:
    return Breakpoint(BreakpointKind.SOFTWARE, address, 1)


def hardware(address: int) -> Breakpoint:
    return Breakpoint(BreakpointKind.HARDWARE, address, 1)


# -- control ----------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "ask", "force", "give", "release", "leave"]), st.sampled_from(HERE)
        )
    )
)
def test_control_has_one_holder_and_tells_each_change(steps: list[tuple[str, Named]]) -> None:
    changes: list[tuple[Named | None, Named | None, str]] = []
    control: Control[Named] = Control(lambda *change: changes.append(change))
    holder: Named | None = None
    for what, who in steps:
        before, told = holder, len(changes)
        match what:
            case "take":
                assert control.take(who) is (holder in (None, who))
                holder = holder or who
            case "ask":
                control.ask(who)
                assert (who in control.asking) is (who is not holder)
            case "force":
                control.force(who)
                holder = who
            case "give":
                control.give(who)
                holder = who
            case "release":
                control.release()
                holder = None
            case _:
                assert control.leave(who) is (holder is who)
                holder = None if holder is who else holder
                assert who not in control.asking
        assert control.holder is holder
        assert holder not in control.asking
        assert len(set(control.asking)) == len(control.asking)
        changed = [one[:2] for one in changes[told:]]
        assert changed == ([] if before is holder else [(before, holder)])


def test_those_who_asked_for_control_are_kept_in_order() -> None:
    control: Control[Named] = Control(lambda *change: None)
    control.take(ANNA)
    for who in (CARL, BEN, CARL, ANNA):
        control.ask(who)
    assert control.asking == [CARL, BEN]
    control.give(BEN)
    assert control.asking == [CARL]


# -- what is armed ----------------------------------------------------------------------------------------------

PLACES = st.frozensets(st.sampled_from([*map(software, range(4)), *map(hardware, range(4))]))


@given(st.dictionaries(st.sampled_from(HERE), PLACES), st.sampled_from(HERE))
def test_what_is_armed_is_counted_over_the_sessions(
    sets: dict[Named, frozenset[Breakpoint]], gone: Named
) -> None:
    armed: Armed[Named] = Armed()
    for session, one in sets.items():
        armed.put(session, one)
    assert armed.all() == {one for breakpoints in sets.values() for one in breakpoints}
    for one in armed.all():
        assert set(armed.owners(one)) == {session for session, its in sets.items() if one in its}
    for session in HERE:
        assert armed.knows(session) is (session in sets)
        assert armed.of(session) == sets.get(session, frozenset())
        others = {one for other, its in sets.items() if other is not session for one in its}
        assert armed.of_others(session) == others
        assert armed.is_alone(session) is not bool(others)
    kept = armed.of_others(gone)
    armed.drop(gone)
    assert armed.all() == kept
    assert not armed.knows(gone)


@given(st.frozensets(st.integers(0, 6)), st.integers(0, 6), st.integers(1, 4))
def test_a_slot_is_refused_when_all_are_taken_and_only_then(
    taken: frozenset[int], new: int, slots: int
) -> None:
    armed: Armed[Named] = Armed()
    standing = {hardware(one) for one in taken} | {software(one) for one in range(8)}
    error = armed.no_slot(hardware(new), standing, slots)
    assert (error is not None) is (new not in taken and len(taken) >= slots)
    assert error is None or error.errno == ENOSPC
    assert armed.no_slot(software(9), standing, slots) is None
    assert armed.no_slot(hardware(new), standing, None) is None


def test_whoever_has_the_slots_is_named() -> None:
    armed: Armed[Named] = Armed()
    armed.put(ANNA, frozenset((hardware(1), hardware(2), software(3))))
    armed.put(BEN, frozenset((hardware(2),)))
    standing = {hardware(1), hardware(2), hardware(4)}
    error = armed.no_slot(hardware(5), standing, 3)
    assert str(error) == "all 3 hardware slots are taken: anna 2, ben 1, nobody here 1"


# -- the history of stops ---------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=40), st.integers(-1, 42))
def test_what_was_missed_is_each_lasting_stop_between(lasting: list[bool], seen: int) -> None:
    stops = Stops()
    for lasts in lasting:
        stops.count(TRAP, 0.0)
        if not lasts:
            stops.passed()
        stops.left()
    stops.count(TRAP, 1.0)
    seen = min(seen, stops.number)
    missed = (
        [number for number, lasts in enumerate(lasting, 1) if lasts and number > seen] if seen > 0 else []
    )
    words = stops.missed(seen)
    assert bool(words) == bool(missed)
    assert words.startswith("missed stops ") == (len(missed) > 1)
    told: list[int] = []
    for one in re.findall(r"\d+ to \d+|\d+", words):
        first, _, last = one.partition(" to ")
        told += range(int(first), int(last or first) + 1)
    assert told == missed
    assert stops.transient == lasting.count(False)


def test_a_long_list_of_missed_stops_is_cut_and_says_so() -> None:
    stops = Stops()
    for _ in range(MOST_REMEMBERED + 10):
        stops.count(TRAP, 0.0)
        stops.left()
    words = stops.missed(1)
    assert words == f"missed stops …, 10 to {MOST_REMEMBERED + 9}"


def test_the_guest_stands_at_a_stop_until_it_is_left() -> None:
    stops = Stops()
    assert stops.present == 0
    assert stops.count(TRAP, 2.5).number == stops.present == 1
    stops.left()
    assert (stops.present, stops.number) == (0, 1)
    stops.stands_again()
    assert stops.present == 1
    assert stops.latest is not None
    assert (stops.latest.halted, stops.latest.at) == (TRAP, 2.5)


# -- the commands -----------------------------------------------------------------------------------------------


class Room(World):
    """A world in which sessions attach and ask in one word."""

    def come(self, **more: bool) -> int:
        number = self.open(**more)
        self.ask(number, b"?")
        self.flow()
        return number

    def get(self, number: int, payload: bytes) -> bytes | None:
        answered = self.sessions[number].debugger.answered
        before = len(answered)
        self.ask(number, payload)
        self.flow()
        return answered[-1][1] if len(answered) > before else None

    def command(self, number: int, text: str) -> str | None:
        return commands.answer(self.exchange.sharing, self.seats[number], text)

    def stop(self, *, address: int = 0, lasts: bool = True) -> None:
        """The running guest stops at a breakpoint."""
        self.machine.registers[24:32] = address.to_bytes(8, "little")
        self.machine.halt(5, "debug")
        self.flow()
        if lasts:
            self.elapse(0.2)
            self.flow()


def test_status_says_where_the_guest_stands_and_who_is_here() -> None:
    room = Room()
    anna, ben = room.come(), room.come()
    room.get(anna, b"Z0,1000,1")
    room.get(anna, b"Z2,2000,8")
    room.command(ben, "control take")
    assert room.command(ben, "status") == (
        "web1 stands at stop 1\n"
        "  user-1  controls\n"
        "  user-2  observes, asks for control  (you)\n"
        "  breakpoint at 0x1000 (user-1)\n"
        "  write watchpoint at 0x2000 (user-1)\n"
    )
    room.get(anna, b"vCont;c")
    text = room.command(ben, "status")
    assert text is not None
    assert text.startswith("web1 runs; 1 stop so far\n  user-1  controls, waits for a stop\n")
    room.stop()
    text = room.command(ben, "status")
    assert text is not None
    assert text.startswith("web1 stands at stop 2; you have seen stop 1: 'continue' shows it\n")
    room.command(anna, "control release")
    text = room.command(ben, "status")
    assert text is not None
    assert "control is free: monitor control take" in text


@pytest.mark.parametrize(
    ("who", "text", "says"),
    [
        (1, "control", "you control the guest"),
        (2, "control", "user-1 controls the guest"),
        (1, "control take", "you control the guest already"),
        (2, "control take", "user-1 controls the guest and has been asked"),
        (1, "control give", "user-2, user-3"),
        (1, "control give nobody", "no session 'nobody' is here"),
        (1, "control give user-1", "you control the guest already"),
        (2, "control give user-3", "you do not control the guest; user-1 controls the guest"),
        (2, "control release", "you do not control the guest; user-1 controls the guest"),
        (2, "control take --force", "only an administrator of the relay may force control"),
        (2, "control nonsense", "user-1 controls the guest"),
        (2, "live", "live reads are off"),
        (2, "live maybe", "live reads are off"),
    ],
)
def test_what_changes_nothing_says_why(who: int, text: str, says: str) -> None:
    room = Room()
    room.come(), room.come(), room.come(admin=True)
    answer = room.command(who, text)
    assert answer is not None
    assert says in answer
    assert answer.endswith("\n")
    holder = room.exchange.sharing.control.holder
    assert holder is room.seats[1]
    assert not any(seat.live for seat in room.seats.values())


@pytest.mark.parametrize(
    ("who", "text", "holder"),
    [
        (1, "control give user-2", 2),
        (1, "control release", None),
        (3, "control take --force", 3),
        (2, "live on", 1),
    ],
)
def test_what_changes_something_changes_that(who: int, text: str, holder: int | None) -> None:
    room = Room()
    room.come(), room.come(), room.come(admin=True)
    assert room.command(who, text)
    assert room.exchange.sharing.control.holder is (None if holder is None else room.seats[holder])
    assert [number for number, seat in room.seats.items() if seat.live] == ([2] if text == "live on" else [])


@pytest.mark.parametrize("text", ["", "log", "statusx", "info version", "continue"])
def test_what_is_not_known_here_is_left_to_the_shell(text: str) -> None:
    room = Room()
    room.come()
    assert room.command(1, text) is None


@pytest.mark.parametrize("text", ["control take", "control take --force"])
def test_a_session_that_is_not_attached_gets_no_control(text: str) -> None:
    room = Room()
    room.open(admin=True)
    answer = room.command(1, text)
    assert answer is not None
    assert "this session is not attached to the guest" in answer
    assert room.exchange.sharing.control.holder is None


# -- what a session is told of a stop ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "others", "reason", "told"),
    [
        (b"Z2,1000,8", None, ("watch", "1007"), True),
        (b"Z2,1000,8", None, ("watch", "1008"), False),
        (b"Z4,1000,8", None, ("awatch", "1000"), True),
        (b"Z0,1000,8", None, ("watch", "1000"), False),
        (b"Z2,1000,8", None, ("watch", "no number"), False),
        (b"Z0,1000,1", None, ("swbreak", ""), True),
        (b"Z0,1000,1", b"Z0,2000,1", ("swbreak", ""), False),
        (b"Z1,1000,1", None, ("swbreak", ""), False),
        (b"Z1,1000,1", None, ("hwbreak", ""), True),
        (None, b"Z0,2000,1", ("swbreak", ""), False),
        (None, None, ("replaylog", "begin"), True),
    ],
)
def test_a_session_is_told_the_reason_that_is_its_own(
    own: bytes | None, others: bytes | None, reason: tuple[str, str], told: bool
) -> None:
    room = Room()
    ben, anna = room.come(), room.come()
    if others is not None:
        room.get(ben, others)
    room.command(ben, "control give user-2")
    if own is not None:
        room.get(anna, own)
    halted = Halted(5, ThreadId(1), reason, "words")
    assert room.seats[anna].as_told(halted) == Halted(5, ThreadId(1), reason if told else None, "words")
    assert room.seats[anna].as_told(halted, "before").words == "before; words"


def test_a_breakpoint_that_is_removed_explains_the_stop_that_it_caused() -> None:
    """A debugger removes all its breakpoints at a stop before it asks again why the guest stands."""
    room = Room()
    anna = room.come()
    room.get(anna, b"Z2,1000,8")
    room.get(anna, b"vCont;c")
    room.get(anna, b"\x03")
    room.stop()
    room.get(anna, b"z2,1000,8")
    halted = Halted(5, ThreadId(1), ("watch", "1000"))
    assert room.seats[anna].as_told(halted) == halted


# -- a former controller goes on from its own breakpoint --------------------------------------------------------


def former_controller_at_its_breakpoint() -> Room:
    """Session 1 stands at its own breakpoint and has given control to session 2."""
    room = Room()
    room.come(), room.come()
    room.get(1, b"Z0,1000,1")
    room.get(1, b"vCont;c")
    room.stop(address=0x1000)
    room.get(2, b"vCont;c")
    room.command(1, "control give user-2")
    return room


@given(st.lists(st.booleans(), min_size=1, max_size=4), st.booleans())
def test_a_former_controller_continues_past_its_breakpoint(lasting: list[bool], late: bool) -> None:
    """For gdb `continue` is `z0`, a step, `Z0` and then the resume: the step waits, the resume gets the same stop."""
    room = former_controller_at_its_breakpoint()
    armed = room.exchange.sharing.armed
    mine = software(0x1000)
    assert room.get(1, b"z0,1000,1") == b"OK"
    assert room.get(1, b"vCont;s:p1.1") is None
    assert not room.machine.running
    assert armed.owners(mine) == (room.seats[1],)
    for lasts in (*lasting, True):
        # The inner steps of a `next` pass; the last of the stops stays.
        assert room.get(2, b"vCont;c") is None
        room.machine.advance()
        room.flow()
        room.stop(address=0x2000, lasts=lasts)
        assert armed.owners(mine) == (room.seats[1],)
        if lasts:
            break
    number = room.exchange.sharing.stops.present
    assert room.sessions[1].debugger.answered[-1] == (b"vCont;s:p1.1", b"T05thread:1;")
    assert room.sessions[1].told[-1] == number
    if late:
        assert room.get(2, b"vCont;c") is None
        room.stop(address=0x2000)
    assert room.get(1, b"Z0,1000,1") == b"OK"
    resumed = len([one for one in room.machine.seen if one.startswith(b"vCont")])
    assert room.get(1, b"vCont;c") == b"T05thread:1;"
    assert len([one for one in room.machine.seen if one.startswith(b"vCont")]) == resumed
    assert room.sessions[1].told[-1] == number + late
    # And now it waits, as any that observes.
    assert room.get(1, b"vCont;c") is None
    assert armed.owners(mine) == (room.seats[1],)
    assert (0, 0x1000, 1) in room.machine.breakpoints


def test_such_a_step_that_gets_control_back_is_a_step() -> None:
    room = former_controller_at_its_breakpoint()
    room.get(1, b"z0,1000,1")
    room.command(2, "control give user-1")
    before = len(room.machine.seen)
    assert room.get(1, b"vCont;s:p1.1") is None
    assert room.machine.seen[before:] == [b"z0,1000,1", b"vCont;s:p1.1"]
    assert not room.machine.breakpoints


def test_a_step_for_its_own_sake_is_still_refused_to_an_observer() -> None:
    room = former_controller_at_its_breakpoint()
    assert room.get(1, b"vCont;s:p1.1") == b"T02thread:1;"
    assert "cannot step it" in "".join(room.sessions[1].debugger.words)


def test_a_stop_that_was_not_seen_is_shown_before_gdb_continues_from_its_new_breakpoint() -> None:
    world = World()
    anna, ben = world.open(), world.open()
    for one in (anna, ben):
        world.ask(one, b"qSupported:swbreak+", b"?", b"g")
        world.settle()
    world.ask(anna, b"vCont;s:1;c")
    world.flow()
    world.machine.advance()
    world.settle()
    world.ask(anna, b"qRcmd," + (b"control give user-%d" % ben).hex().encode())
    world.settle()
    told = len(world.sessions[ben].debugger.replies)

    def resumes() -> int:
        return len([one for one in world.machine.seen if one.startswith(b"vCont;c")])

    before = resumes()
    for packet in (b"vCont;s:1", b"Z0,1000,1", b"vCont;c"):
        world.ask(ben, packet)
        world.flow()
    assert resumes() == before
    assert sum(one.startswith(b"T") for one in world.sessions[ben].debugger.replies[told:]) == 2
    world.ask(ben, b"vCont;c")
    world.flow()
    assert resumes() == before + 1


def test_each_refusal_is_reported_once_until_control_changes() -> None:
    world = World()
    anna, ben = world.open(), world.open()
    for one in (anna, ben):
        world.ask(one, b"?")
        world.settle()

    def refused() -> list[object]:
        return [one.fields["why"] for one in world.reports if one.kind == "debugger.refused"]

    for _ in range(3):
        world.ask(ben, b"M1000,1:00", b"vCont;s:1")
        world.settle()
    assert len(refused()) == 2
    world.ask(anna, b"qRcmd," + b"control release".hex().encode())
    world.ask(ben, b"M1000,1:00")
    world.settle()
    assert len(refused()) == 3


# -- a reset ------------------------------------------------------------------------------------------------------


def test_who_cannot_follow_a_reboot_is_told_to_set_breakpoints_anew() -> None:
    world = World()
    gdb, lldb = world.open(no_ack=True), world.open(no_ack=True)
    for number in (gdb, lldb):
        world.ask(number, b"qSupported:swbreak+", b"?", b"vCont;c")
        world.flow()
    world.exchange._sessions[SessionId(gdb)].server._follower.follows = True
    world.do(world.exchange.machine_reset, world.now)
    world.flow()
    assert world.sessions[gdb].debugger.words[-1] == "kbridge: web1 was reset\n"
    assert world.sessions[lldb].debugger.words[-1] == (
        "kbridge: web1 was reset: its kernel may come to another place, where breakpoints have to be set anew\n"
    )
    assert world.exchange.waits_to_read_again


# -- a guest that somebody else pauses and resumes ----------------------------------------------------------------


def running(world: World) -> int:
    """A session that waits for a stop of a guest that runs."""
    number = world.open(no_ack=True)
    world.ask(number, b"qSupported:swbreak+", b"?", b"vCont;c")
    world.flow()
    assert world.exchange.client.state is State.RUNNING
    return number


def test_a_stop_whose_word_is_late_is_the_stubs_own_and_changes_nothing_for_who_leaves() -> None:
    world = World()
    running(world)
    sharing = world.exchange.sharing
    assert sharing._run_after
    sharing._ask_machine()
    world.exchange.machine_status(MachineStatus(runs=False, detail="debug"), world.now)
    assert sharing.stops.latest is not None
    assert sharing.stops.latest.halted == Halted(5, None)
    assert sharing._run_after


def test_a_pause_that_is_over_when_its_reason_is_asked_for_is_no_stop() -> None:
    world = World()
    number = running(world)
    sharing, before = world.exchange.sharing, world.exchange.sharing.stops.number
    world.exchange.stub_data(stub.packet(b"T02thread:p01.01;"), world.now)
    assert sharing._held_stop is not None
    world.exchange.machine_status(MachineStatus(runs=True, detail="running"), world.now)
    assert (sharing.stops.number, sharing._run_after) == (before, True)
    assert world.exchange.client.state is State.RUNNING
    assert world.exchange._sessions[SessionId(number)].server.waiting
