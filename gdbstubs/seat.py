"""One session's share of the guest: a ``Target`` whose right comes and goes with control.

in:      operations of the session's server half; what ``Sharing`` tells
out:     operations on the shared stub, answers
states:  outside · arriving · here · gone
invariant: each resume is answered once; reads answer for the stop that this session has seen, or not at all
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gdbstubs.effects import SessionId
from gdbstubs.errors import EIO, ESRCH, TargetError
from gdbstubs.rights import Right
from gdbstubs.target import (
    Action,
    Breakpoint,
    BreakpointKind,
    Ended,
    Halted,
    Motion,
    Reply,
    Stop,
    Thread,
    ThreadId,
)

if TYPE_CHECKING:
    from gdbstubs.passage import Passage
    from gdbstubs.registers import Description
    from gdbstubs.sharing import Sharing

_UNAVAILABLE = b"xx" * 8
"""One register that cannot be read; debuggers look at the first letter, whatever its length."""
_WATCHES = (BreakpointKind.WRITE, BreakpointKind.READ, BreakpointKind.ACCESS)


class Seat:
    """One session's target: attaches when first needed, and keeps what belongs to the session.

    ``say`` tells the session's user something.  ``observes``: it asked never to be given control by coming first.
    ``admin``: it may force control.
    """

    def __init__(
        self,
        sharing: Sharing,
        session: SessionId,
        name: str,
        say: Callable[[str], None],
        *,
        observes: bool = False,
        admin: bool = False,
    ) -> None:
        self.session = session
        self.name = name
        self.say = say
        self.observes = observes
        self.admin = admin
        self.live = False
        """Whether memory may be read while the guest runs."""
        self.seen = -1
        """The number of the stop that this session was told last; -1 before the first."""
        self.standing: frozenset[Breakpoint] = frozenset()
        """Its breakpoints as they were at its last resume."""
        self.steps_over: ThreadId | None = None
        """The thread that is to step only to get past a breakpoint of this session, as a debugger's `continue` asks."""
        self.retell = 0
        """The stop that ended such a step, told again when the debugger then goes on by itself."""
        self.stepped: ThreadId | None = None
        """The thread that was named at the present stop because it was to step, whatever thread stopped."""
        self._stepped_off: frozenset[Breakpoint] | None = None
        """What it wanted at a step of one thread alone that showed it a stop which it had not seen.

        gdb begins so to continue from a place where its breakpoint is not inserted yet, inserts it, and goes on.
        """
        self._wanted: set[Breakpoint] = set()
        self._sharing = sharing
        self._client = sharing.client
        self._stops = sharing.stops
        self._is_here = False
        self._gone: TargetError | None = None
        self._waiting: deque[tuple[Callable[[], None], Callable[[TargetError], Any]]] = deque()
        self._stopped: Reply[Stop] | None = None

    @property
    def is_attached(self) -> bool:
        """Whether this session works on the guest now."""
        return self._is_here

    @property
    def controls(self) -> bool:
        """Whether this session holds control."""
        return self._sharing.control.holder is self

    @property
    def waits(self) -> bool:
        """Whether it waits for a stop."""
        return self._stopped is not None

    @property
    def wanted(self) -> frozenset[Breakpoint]:
        """The breakpoints that this session wants inserted at its next resume."""
        return frozenset(self._wanted)

    # -- told by Sharing ------------------------------------------------------------------------------------

    def attached(self) -> None:
        """Carry out what waited for the guest to be attached."""
        self._is_here = True
        self.seen = self._stops.present or -1
        while self._waiting and self._is_here:
            self._waiting.popleft()[0]()

    def attach_failed(self, error: TargetError) -> None:
        """Answer what waited with the reason."""
        waiting, self._waiting = self._waiting, deque()
        for _, refuse in waiting:
            refuse(error)

    def lost(self, words: str) -> None:
        """Take note that the guest is gone: this session cannot go on with another one under its feet."""
        self._is_here = False
        self.seen = -1
        self._gone = TargetError(EIO, words)
        self.stopped(Ended(words=words))

    def stopped(self, stop: Stop | TargetError) -> None:
        """Answer the resume under way, if there is one."""
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped(stop)

    def close(self) -> None:
        """Leave, because the connection is gone or the session is over."""
        self._is_here = False
        self.seen = -1
        self._gone = TargetError(EIO, "this session has left")
        self._stopped = None
        self._waiting.clear()
        self._sharing.left(self)

    # -- the target port ------------------------------------------------------------------------------------

    @property
    def right(self) -> Right:
        """What this session may do now."""
        holder = self._sharing.control.holder
        if holder is self or (holder is None and not self._is_here and not self.observes):
            return Right.CONTROLLER
        return Right.OBSERVER

    @property
    def reverses(self) -> bool:
        """Whether the stub can run backwards."""
        return self._client.reverses

    @property
    def description(self) -> Description | None:
        """What the text of all registers holds; None where that is not known."""
        return self._client.description

    def _when_here(self, operation: Callable[[], None], refuse: Callable[[TargetError], Any]) -> None:
        if self._is_here:
            operation()
        elif self._gone is not None:
            refuse(self._gone)
        else:
            self._waiting.append((operation, refuse))
            self._sharing.want(self)

    def _at_its_stop(self, operation: Callable[[], None], refuse: Callable[[TargetError], Any]) -> None:
        """Carry out what makes sense only while the guest stands at the stop that this session has seen."""
        if self.seen == self._stops.present:
            operation()
        else:
            self._when_here(
                lambda: (
                    operation()
                    if self.seen == self._stops.present
                    else refuse(self._sharing.why_not_now(self))
                ),
                refuse,
            )

    def attach(self, done: Reply[None]) -> None:
        """Attach the guest: with control if that is free and was not declined, else to observe."""
        self._when_here(lambda: done(None), done)

    def why_stopped(self, done: Reply[Stop]) -> None:
        """Tell the present stop; ``T00`` (no signal) where the guest runs and this session observes."""

        def tell() -> None:
            latest = self._stops.latest
            if latest is None or not self._stops.present:
                done(Halted(0, ThreadId(1)))
                return
            self.seen = latest.number
            done(self.as_told(latest.halted))

        self._when_here(tell, done)

    def read_registers(self, thread: ThreadId, done: Reply[bytes]) -> None:
        """Read all general registers; all unavailable before the first stop that this session sees."""
        if self.stepped is None and self.seen == self._stops.present:
            self._client.read_registers(thread, done)
            return

        def refuse(error: TargetError) -> None:
            if self._is_here and self.seen < 0 and not self._stops.present:
                done(self._client.unavailable_registers())
            else:
                done(error)

        def answer(result: bytes | TargetError) -> None:
            if isinstance(result, TargetError) and result.errno == ESRCH and thread == self.stepped:
                # A task that has exited since, of which gdb is just being told; kgdb shows 0 for any that does not run.
                result = b"0" * self._client.register_text_length
            done(result)

        self._at_its_stop(lambda: self._client.read_registers(thread, answer), refuse)

    def write_registers(self, thread: ThreadId, data: bytes, done: Reply[None]) -> None:
        """Write all general registers."""

        def write() -> None:
            self._sharing.pages.clear()
            self._client.write_registers(thread, data, done)

        self._at_its_stop(write, done)

    def read_register(self, thread: ThreadId, number: int, done: Reply[bytes]) -> None:
        """Read one register."""

        def refuse(error: TargetError) -> None:
            if self._is_here and self.seen < 0 and not self._stops.present:
                done(_UNAVAILABLE)
            else:
                done(error)

        self._at_its_stop(lambda: self._client.read_register(thread, number, done), refuse)

    def write_register(self, thread: ThreadId, number: int, value: bytes, done: Reply[None]) -> None:
        """Write one register."""

        def write() -> None:
            self._sharing.pages.clear()
            self._client.write_register(thread, number, value, done)

        self._at_its_stop(write, done)

    def read_memory(self, thread: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        """Read memory."""
        if self.seen == self._stops.present:
            self._sharing.pages.read(thread, address, length, done)
            return

        def refuse(error: TargetError) -> None:
            if self._is_here and self.live and not self._stops.present:
                self._sharing.read_live(address, length, done)
            else:
                done(error)

        self._at_its_stop(lambda: self._sharing.pages.read(thread, address, length, done), refuse)

    def pass_read(self, thread: ThreadId, address: int, length: int, packet: bytes, passage: Passage) -> bool:
        """Pass a read on, at the stop that this session has seen, past a cache that would not keep it."""
        return (
            self.seen == self._stops.present
            and self._sharing.pages.is_past(address, length)
            and self._client.pass_read(thread, address, length, packet, passage)
        )

    def write_memory(self, thread: ThreadId, address: int, data: bytes, done: Reply[None]) -> None:
        """Write memory."""

        def write() -> None:
            self._sharing.pages.clear()
            self._client.write_memory(thread, address, data, done)

        self._at_its_stop(write, done)

    def insert(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Insert a breakpoint: in the stub for the controller at its stop, else kept until it resumes with control."""

        def inserted(result: TargetError | None) -> None:
            if result is not None:
                self._wanted.discard(breakpoint_)
            done(result)

        def insert() -> None:
            self._wanted.add(breakpoint_)
            if self.controls and self.seen == self._stops.present:
                self._sharing.insert(self, breakpoint_, inserted)
            else:
                done(None)

        self._when_here(insert, done)

    def remove(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Remove a breakpoint, with the next resume."""

        def remove() -> None:
            self._wanted.discard(breakpoint_)
            done(None)

        self._when_here(remove, done)

    def forget_breakpoints(self) -> None:
        """Want none of them any more: they go with the next resume."""
        self._wanted.clear()

    def resume(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        """Let the guest run until its next stop; for an observer, wait for that."""

        def resume() -> None:
            self._stopped = done
            if self._stepped_off is not None and all(
                one.kind in _WATCHES for one in self.wanted - self._stepped_off
            ):
                self.retell = 0
            self._stepped_off = None
            lags = self._stops.present and self.seen != self._stops.present
            if lags and len(actions) == 1 and actions[0].motion is Motion.STEP:
                self._stepped_off, self.retell = self.wanted, self._stops.present
            removed = self.standing - self.wanted
            is_past = actions[0].motion is Motion.STEP and any(one.kind not in _WATCHES for one in removed)
            self.steps_over = actions[0].thread if is_past else None
            if self.steps_over is None or self.controls:
                self.standing = self.wanted
            self._sharing.resume(self, actions)

        def refuse(error: TargetError) -> None:
            # A debugger that waits for a guest that is gone must not be told that it merely stopped.
            done(Ended(words=str(error)) if error is self._gone else error)

        self._when_here(resume, refuse)

    def interrupt(self) -> None:
        """Stop the guest, or for an observer end its waiting."""
        if self._is_here:
            self._sharing.interrupt(self)

    def list_threads(self, done: Reply[tuple[Thread, ...]]) -> None:
        """List the threads; as they were last known while the guest runs."""

        def listed(result: tuple[Thread, ...] | TargetError) -> None:
            if not isinstance(result, TargetError):
                self._sharing.known_threads = result
            done(result)

        def refuse(error: TargetError) -> None:
            done(self._sharing.known_threads if self._is_here else error)

        self._at_its_stop(lambda: self._client.list_threads(listed), refuse)

    def is_alive(self, thread: ThreadId, done: Reply[bool]) -> None:
        """Tell whether a thread exists."""

        def listed(result: tuple[Thread, ...] | TargetError) -> None:
            done(result if isinstance(result, TargetError) else any(one.id == thread for one in result))

        self.list_threads(listed)

    def read_description(self, annex: str, done: Reply[bytes | None]) -> None:
        """Read a file of the target description."""
        self._when_here(lambda: self._client.read_description(annex, done), done)

    def detach(self, done: Reply[None]) -> None:
        """Leave; what was this session's is gone from the stub before the answer is sent."""
        if self._is_here:
            self.close()
            self._sharing.when_settled(lambda: done(None))
        else:
            self.close()
            done(None)

    # -- stops ----------------------------------------------------------------------------------------------

    def as_told(self, halted: Halted, before: str = "") -> Halted:
        """Return a stop with the reason and the words that are this session's."""
        wanted = self.wanted
        known = wanted | self.standing
        reason = halted.reason
        if reason is not None:
            reason = self._own_reason(reason, known)
        words = "; ".join(one for one in (before, halted.words) if one)
        if reason == halted.reason and words == halted.words:
            return halted
        return Halted(halted.signal, halted.thread, reason, words)

    def _own_reason(self, reason: tuple[str, str], known: frozenset[Breakpoint]) -> tuple[str, str] | None:
        """Leave out what is another session's: gdb resumes silently at a breakpoint that it does not know.

        A bare stop at its own breakpoint it explains itself; a watchpoint it must be told of.
        """
        name, value = reason
        match name:
            case "watch" | "rwatch" | "awatch":
                try:
                    address = int(value, 16)
                except ValueError:
                    return None
                own = any(
                    one.kind in _WATCHES and one.address <= address < one.address + max(one.size, 1)
                    for one in known
                )
            case "swbreak" | "hwbreak":
                kind = BreakpointKind.SOFTWARE if name == "swbreak" else BreakpointKind.HARDWARE
                own = self._sharing.armed.is_alone(self) and any(one.kind is kind for one in known)
            case _:
                own = True
        return reason if own else None
