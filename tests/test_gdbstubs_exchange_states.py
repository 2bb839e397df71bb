"""The exchange under everything that can happen at any moment, against a machine that behaves as QEMU does.

`rsp.world` checks at each step that a running guest is sent nothing but the interrupt, and that what stands in the stub
is in the journal; at the end of each run everybody leaves, and the guest must be as it should.
"""

from __future__ import annotations

import os
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from rsp import grammar
from rsp.debugger import STOPS
from rsp.world import World

CHANCE = st.integers(0, 1 << 32).map(Random)


class Everything(RuleBasedStateMachine):
    """Debuggers, the stub, the monitor and time, in any order."""

    world: World

    @initialize(running=st.booleans(), resume_on_leave=st.booleans(), here=st.integers(0, 3))
    def begin(self, running: bool, resume_on_leave: bool, here: int) -> None:
        self.world = World(resume_on_leave=resume_on_leave)
        if not running:
            self.world.machine.running = False
            self.world.machine.detail = "paused"
            self.world.should_run = False
        # Most of what matters happens among those who are attached: begin with some.
        for _ in range(here):
            self.world.ask(self.world.open(), b"?")
            self.world.settle()

    def some_session(self, chance: Random) -> int:
        return chance.choice(sorted(self.world.sessions))

    @precondition(lambda self: len(self.world.sessions) < 4)
    @rule(no_ack=st.booleans(), observes=st.integers(0, 3), admin=st.booleans())
    def debugger_connects(self, no_ack: bool, observes: int, admin: bool) -> None:
        self.world.open(no_ack=no_ack, observes=observes == 0, admin=admin)

    @precondition(lambda self: self.world.sessions)
    @rule(chance=CHANCE)
    def user_asks_for_control(self, chance: Random) -> None:
        to = chance.choice(sorted(self.world.sessions))
        command = chance.choice(
            (
                "control take",
                "control take",
                "control take --force",
                "control release",
                f"control give user-{to}",
                "live on",
                "status",
            )
        )
        self.world.ask(self.some_session(chance), b"qRcmd," + command.encode().hex().encode())

    @precondition(lambda self: self.world.sessions)
    @rule(chance=CHANCE, count=st.integers(1, 4))
    def debugger_asks(self, chance: Random, count: int) -> None:
        number = self.some_session(chance)
        self.world.ask(number, *(grammar.request(chance) for _ in range(count)))

    @precondition(lambda self: self.world.sessions)
    @rule(chance=CHANCE)
    def debugger_resumes(self, chance: Random) -> None:
        self.world.ask(self.some_session(chance), grammar.resume(chance))

    @precondition(lambda self: self.world.sessions)
    @rule(chance=CHANCE)
    def debugger_works(self, chance: Random) -> None:
        """What a user does most: attach, set a breakpoint, continue, all answered."""
        number = self.some_session(chance)
        self.world.ask(number, b"?", b"Z0,1000,1")
        self.world.settle()
        if number in self.world.sessions:
            self.world.ask(number, b"vCont;c")

    @precondition(lambda self: self.world.sessions)
    @rule(chance=CHANCE)
    def debugger_goes_on_from_its_breakpoint(self, chance: Random) -> None:
        """As gdb does: past it by a step, then on, each when what was before is answered."""
        number = self.some_session(chance)
        for payloads in ((b"z0,1000,1", b"vCont;s:1"), (b"Z0,1000,1", b"vCont;c")):
            if number not in self.world.sessions:
                return
            debugger = self.world.sessions[number].debugger
            if debugger.asked:
                return
            self.world.ask(number, *payloads)
            self.world.flow()
            if chance.randrange(2):
                self.world.machine.advance()
                self.world.flow()

    @precondition(lambda self: len(self.world.sessions) > 1)
    @rule(chance=CHANCE)
    def control_goes_from_hand_to_hand(self, chance: Random) -> None:
        """What leads to what other rules seldom reach: each gets control, inserts, and lets the guest run."""
        for number in sorted(self.world.sessions):
            names = {seat.session: seat.name for seat in self.world.exchange.sharing.seats if seat.controls}
            for holder in names:
                command = b"control give user-%d" % number
                self.world.ask(holder, b"qRcmd," + command.hex().encode())
            if number not in self.world.sessions:
                return
            self.world.ask(number, b"Z0,%x,1" % (0x1000 * number), b"vCont;c")
            self.world.settle()
            if chance.randrange(2):
                self.world.machine.advance()
                self.world.settle()

    @rule(fails=st.booleans())
    def live_memory_is_read(self, fails: bool) -> None:
        """In the order in which it was asked for, or not at all."""
        self.world.read_live(fails=fails)

    @precondition(lambda self: self.world.sessions)
    @rule(chance=CHANCE)
    def debugger_interrupts(self, chance: Random) -> None:
        number = self.some_session(chance)
        if not self.world.sessions[number].closing:
            self.world.send(number, b"\x03")

    @precondition(lambda self: self.world.sessions)
    @rule(chance=CHANCE)
    def debugger_detaches(self, chance: Random) -> None:
        self.world.ask(self.some_session(chance), b"D")

    @precondition(lambda self: self.world.sessions)
    @rule(chance=CHANCE)
    def debugger_kills(self, chance: Random) -> None:
        number = self.some_session(chance)
        self.world.sessions[number].clean = False  # nothing answers a `k`
        self.world.ask(number, b"k")

    @precondition(lambda self: self.world.sessions)
    @rule(chance=CHANCE)
    def debugger_sends_garbage(self, chance: Random) -> None:
        number = self.some_session(chance)
        session = self.world.sessions[number]
        session.clean = False
        if not session.closing:
            self.world.send(number, grammar.garbage(chance))

    @precondition(lambda self: self.world.sessions)
    @rule(chance=CHANCE)
    def debugger_vanishes(self, chance: Random) -> None:
        self.world.close(self.some_session(chance))

    @rule(fails=st.integers(0, 9))
    def connection_is_made(self, fails: int) -> None:
        self.world.connect(fails=fails == 0)

    @rule(most=st.one_of(st.just(1 << 20), st.integers(1, 40)))
    def stub_says(self, most: int) -> None:
        self.world.deliver(most)

    @rule()
    def connection_is_closed(self) -> None:
        self.world.left()

    @rule()
    def stub_vanishes(self) -> None:
        self.world.drop()

    @rule()
    def hypervisor_dies(self) -> None:
        self.world.die()

    @precondition(lambda self: not self.world.machine.alive and not self.world.wants_connection)
    @rule()
    def hypervisor_comes_back(self) -> None:
        self.world.revive()

    @rule()
    def monitor_answers(self) -> None:
        self.world.answer()

    @rule()
    def monitor_reports(self) -> None:
        self.world.notify()

    @rule(panic=st.booleans())
    def somebody_pauses(self, panic: bool) -> None:
        self.world.pause(panic=panic)

    @rule()
    def somebody_resumes(self) -> None:
        self.world.resume()

    @rule()
    def guest_goes_on(self) -> None:
        self.world.machine.advance()
        self.world.check()

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 10.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.elapse(seconds)

    @rule()
    def all_comes_to_rest(self) -> None:
        world = self.world
        world.settle()
        world.check_armed()
        sharing = world.exchange.sharing
        present = {seat.session: seat for seat in sharing.seats}
        for number, session in world.sessions.items():
            if not session.clean:
                continue
            # At rest everything is answered, but for one resume of a guest that runs, and what came behind it.
            debugger = session.debugger
            assert not debugger.asked or debugger.waits, f"never answered: {debugger.asked}"
            if debugger.waits and not world.machine.running:
                # Who observes waits for the next stop, which it has not seen.
                seat = present[number]
                assert not seat.controls, "a stop was never told"
                assert seat.seen == sharing.stops.present > 0, "a stop was never told to an observer"

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        sessions = [one.debugger for one in self.world.sessions.values() if one.clean]
        self.world.leave()
        for debugger in sessions:
            for request, reply in debugger.answered:
                if grammar.is_resume(request):
                    assert reply[:1] in STOPS, f"{request!r} was answered by {reply!r}"


Everything.TestCase.settings = settings(
    max_examples=2000 if os.environ.get("CI") else 400,
    stateful_step_count=40,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestEverything = Everything.TestCase
