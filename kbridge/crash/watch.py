"""One guest, watched for its death: by what its console says, what its machine does, and by its silence.

    ring ──cursor──▶ Detector ──▶┐
    machine monitor ────────────▶├──▶ crashes, for the desk
    time ───────────────────────▶┘

in          the ring's bytes, events of the machine, time
out         ``Noticed``
states      alive; a report is coming (its end is waited for); dead (until the next boot)
invariant   every byte that the ring still holds is looked at once; one death is told once, however many signs it has
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from kbridge.console.readers import Cursor, Gap
from kbridge.crash.detector import CrashEnds, Detector
from kbridge.crash.facts import How, Noticed
from kbridge.crash.kinds import Kind
from kbridge.crash.sweep import Follow
from kbridge.crash.words import PANIC, SILENCE, WARNINGS, fatal, in_debugger, of_title
from kbridge.hypervisors.interface import RunState
from kbridge.transports.lines import LineState

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall

    from kbridge.crash.detector import Event
    from kbridge.crash.knowledge import Library
    from kbridge.crash.sweep import Sweep
    from kbridge.debuginfo.finders import Finder
    from kbridge.guest import Guest
    from kbridge.hypervisors.interface import MachineEvent

PIECE_BYTES: Final = 1 << 16
PIECES_A_TURN: Final = 16
"""Then the other consoles have their turn."""
SETTLE_SECONDS: Final = 0.1
"""How long after the machine's own word the line may still bring the end of the report; as often as it does,"""
MOST_SETTLES: Final = 10
PREPARE_SECONDS: Final = 5.0
"""How long after the first text the index of the kernel's file is made, if there is none."""
GONE_SECONDS: Final = 2.0
"""How long a monitor may be away before its machine is taken to be gone."""
LOOK_BACK: Final = 1 << 18
"""Bytes before a reset in which a kernel must have said something for it to be that kernel's."""
ORDERLY_BYTES: Final = 1 << 12
"""Bytes before a reset in which a kernel says that it resets the machine."""
BY_KEY: Final = "due to Keyboard Entry"
KDUMP: Final = "it saves its own memory (kdump)"
PRINTED: Final = "the text may be of a log that somebody had printed"
RESET: Final = "its memory is the next boot's already"
GONE: Final = "its machine is gone"
_KERNEL: Final = re.compile(rb"\[ *\d{1,9}\.\d{6}\]|Linux version ")
_ORDERLY: Final = re.compile(
    rb"reboot: |sysrq: Resetting|kexec_core: Starting new kernel|Rebooting in \d+ seconds"
)


class CrashWatch:
    """Watches one guest; ``told`` takes what is noticed."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        guest: Guest,
        sweep: Sweep,
        library: Library,
        told: Callable[[Noticed], object],
    ) -> None:
        self._reactor = reactor
        self._guest = guest
        self._sweep = sweep
        self._library = library
        self._is_prepared = self._is_warm = False
        self._told = told
        config = guest.config
        self._detector = Detector(off=() if config.crash_warnings else WARNINGS)
        self._cursor = Cursor(guest.recorder.ring, guest.recorder.ring.head)
        self._detector.reset(self._cursor.offset)
        self._stops: list[Callable[[], None]] = []
        self._follow: Follow | None = None
        self._timers: dict[str, IDelayedCall] = {}
        self._is_dead = False
        self._before_panic = ""
        """The title of an oops of this life behind which nothing of a panic was said yet."""
        self._crash_at = 0.0
        """When the last text of a crash began, in wall-clock seconds since 1970, as the monitor tells its times."""
        self._is_leaving = False
        """The machine has said that it shuts down: that its monitor goes is no news then."""
        self._hands_off = ""
        self._boot = self._cursor.offset
        """Where the console was when the machine was reset last."""
        self._settled_at = 0
        self._settles = 0
        self._said_at = 0.0

    def start(self) -> None:
        """Begin with what comes now."""
        guest = self._guest
        self._said_at = self._now()
        self._follow = Follow(self._sweep, guest.recorder, self._look)
        self._stops.append(self._follow.stop)
        if guest.machine is not None:
            self._stops.append(guest.machine.subscribe(self._machine_event))
        self._listen()

    def _prepare(self) -> None:
        """Have an index of the kernel's file while nobody waits for that: its guest has booted."""
        self._ask(self._library.prepare)

    def _warm(self) -> None:
        """Learn the kernel's file while the rest of a crash's text comes.

        Not before: it takes memory that most guests never need.
        """
        if not self._is_warm:
            self._is_warm = True
            self._ask(self._library.warm)

    def _ask(self, what: Callable[[Finder], None]) -> None:
        guest = self._guest
        learnt = self._in_thread(lambda: what(guest.finder))
        learnt.addErrback(
            lambda failure: self._log.info("{guest}: {why}", guest=guest.name, why=failure.value)
        )

    def stop(self) -> None:
        """End; a report that was coming is told as far as it came."""
        for stop in self._stops:
            stop()
        self._stops = []
        for timer in self._timers.values():
            timer.cancel()
        self._timers = {}

    # -- the console ----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look at what came."""
        cursor, head = self._cursor, self._guest.recorder.ring.head
        if cursor.offset == head:
            return
        was_crash = self._detector.is_crash
        for _ in range(PIECES_A_TURN):
            found = cursor.next(PIECE_BYTES)
            if found is None:
                break
            if isinstance(found, Gap):
                events = self._detector.reset(found.offset + found.lost)
            else:
                events = self._detector.feed(found.data)
            if not was_crash and (events or self._detector.is_crash):
                was_crash = True
                self._crash_at = time.time()
            self._tell(events)
            if cursor.offset >= head:
                # What comes next has its turn with the next sweep.
                break
        else:
            assert self._follow is not None
            self._follow.again()
        self._said_at = self._now()
        if not self._is_prepared:
            self._is_prepared = True
            self._later("prepare", PREPARE_SECONDS, self._prepare)
        if self._detector.is_crash:
            self._warm()
            self._cancel("quiet")
            self._later("quiet", self._guest.config.crash_quiet_seconds, self._settle)

    def _settle(self) -> None:
        """Take a report to be at its end."""
        self._look()
        self._cancel("quiet")
        self._tell(self._detector.settle())

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, CrashEnds):
                self._ended(event)

    def _ended(self, event: CrashEnds) -> None:
        title = event.title
        if title.kind is Kind.KDB and (self._is_dead or self._is_wished(event.text)):
            # A kernel that has died enters it again for whoever asks for its prompt.
            return
        # A guest that was paused in panic() says the rest when it is let go: that it panics, of the same.
        is_rest = self._is_dead and PANIC in event.begin.line and title.title == self._before_panic
        self._before_panic = "" if PANIC in event.text else title.title
        if is_rest:
            return
        # A log that somebody has printed is not to stop a guest.
        doubtful = bool(event.begin.doubt)
        died = not doubtful and fatal(title.kind, event.text)
        self._is_dead = self._is_dead or died
        self._told(
            Noticed(
                How.CONSOLE,
                title.kind.value,
                title.title,
                of_title(title.kind, event.text),
                time.time_ns(),
                fatal=died,
                in_debugger=in_debugger(title.kind, event.text),
                alternatives=title.alternatives,
                function=title.function or None,
                corrupted=title.corrupted,
                begin=event.begin.offset,
                end=event.end,
                hands_off=self._hands_off or (PRINTED if doubtful else ""),
            )
        )

    def _is_wished(self, text: str) -> bool:
        """Whether somebody wanted the kernel's debugger to be entered: by a key, or by attaching to it."""
        relay = self._guest.relay
        return BY_KEY in text or (relay is not None and bool(relay.sessions))

    # -- silence --------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        seconds = self._guest.config.crash_silence_seconds
        if seconds:
            left = self._said_at + seconds - self._now()
            self._later("silence", max(left, SETTLE_SECONDS), self._heard)

    def _heard(self) -> None:
        """See whether the console has been silent for too long."""
        guest, seconds = self._guest, self._guest.config.crash_silence_seconds
        line, machine = guest.line, guest.machine
        runs = machine is None or machine.state.run is RunState.RUNNING
        if line is None or line.state is not LineState.OPEN or not runs or self._is_dead:
            self._said_at = self._now()
        elif self._now() - self._said_at >= seconds:
            self._is_dead = True
            words = f"its console has said nothing for {seconds:g} s, while it runs"
            self._notice(How.SILENCE, SILENCE, "no output", words)
        self._listen()

    # -- the machine ----------------------------------------------------------------------------------------

    def _machine_event(self, event: MachineEvent) -> None:
        match event.name:
            case "machine.panic":
                self._warm()
                self._settles = 0
                self._later("panic", SETTLE_SECONDS, self._panicked)
            case "machine.crashloaded":
                self._hands_off = KDUMP
                self._settles = 0
                self._later("panic", SETTLE_SECONDS, self._panicked)
            case "machine.watchdog":
                self._settle()
                if not self._is_dead:
                    self._is_dead = True
                    self._notice(
                        How.MACHINE,
                        "watchdog",
                        "watchdog fired",
                        "it did not tell its watchdog that it lives",
                    )
            case "machine.reset":
                self._reset(ours=bool(event.data.get("ours")))
            case "machine.shutdown" | "machine.powerdown":
                self._is_leaving = True
            case "machine.lost":
                self._later("gone", GONE_SECONDS, self._gone)
            case "machine.found":
                self._cancel("gone")
                self._alive()
            case "machine.resume":
                self._said_at = self._now()
                # A busy relay reads the monitor's word after what the guest has said since.
                self._look()
                is_late = event.data.get("time", self._crash_at) < self._crash_at
                if not (event.data.get("ours") or self._is_controlled() or is_late):
                    self._go_on()
            case _:
                pass

    def _panicked(self) -> None:
        """Take a panic that the machine told, once the line has brought what was said of it."""
        self._look()
        head = self._guest.recorder.ring.head
        if head != self._settled_at and self._settles < MOST_SETTLES:
            self._settled_at = head
            self._settles += 1
            self._later("panic", SETTLE_SECONDS, self._panicked)
            return
        self._settle()
        if not self._is_dead:
            self._is_dead = True
            self._notice(How.MACHINE, "panic", "kernel panic", "the kernel panicked, as it told its machine")

    def _reset(self, *, ours: bool) -> None:
        self._settle()
        # The next boot may say the same at the same time of its clock, and is not the last one's log.
        self._tell(self._detector.reset())
        ring = self._guest.recorder.ring
        start = max(self._boot, ring.oldest, ring.head - LOOK_BACK)
        said = ring.read(start, ring.head - start) or b""
        unexpected = not (ours or self._is_dead or self._is_leaving) and not _ORDERLY.search(
            said[-ORDERLY_BYTES:]
        )
        if unexpected and _KERNEL.search(said):
            words = "its machine was reset, and its kernel had not said that it would: as by a triple fault"
            self._notice(How.MACHINE, "reset", "unexpected reset", words, hands_off=RESET)
        self._alive()

    def _alive(self) -> None:
        """Begin a life."""
        self._is_dead = self._is_leaving = False
        self._hands_off = self._before_panic = ""
        self._boot = self._guest.recorder.ring.head
        self._said_at = self._now()

    def _go_on(self) -> None:
        """Take a guest that somebody lets go, perhaps from an earlier moment: so a snapshot shows that was loaded."""
        if self._is_dead:
            # What it has said since it was let go is of the life that ends here.
            self._settle()
        self._detector.may_be_put_back()
        self._is_dead = False
        self._hands_off = ""

    def _is_controlled(self) -> bool:
        relay = self._guest.relay
        return relay is not None and any(one.controls for one in relay.sessions)

    def _gone(self) -> None:
        machine = self._guest.machine
        if machine is None or machine.connected or self._is_leaving or self._is_dead:
            return
        self._settle()
        if not self._is_dead:
            self._is_dead = True
            self._notice(
                How.MACHINE, "gone", "guest gone", "its machine ended without a word", hands_off=GONE
            )

    def _notice(self, how: How, kind: str, title: str, words: str, *, hands_off: str = "") -> None:
        head = self._guest.recorder.ring.head
        self._told(
            Noticed(
                how, kind, title, words, time.time_ns(), begin=head, end=head,
                hands_off=hands_off or self._hands_off,
            )
        )  # fmt: skip

    def _in_thread(self, work: Callable[[], None]) -> Deferred[None]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)

    # -- time -----------------------------------------------------------------------------------------------

    def _later(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Call something later, once: a timer of this name that runs is left alone."""
        if name in self._timers:
            return

        def ring() -> None:
            del self._timers[name]
            call()

        self._timers[name] = self._reactor.callLater(seconds, ring)

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _now(self) -> float:
        return float(self._reactor.seconds())
