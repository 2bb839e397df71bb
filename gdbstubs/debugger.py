"""A debugger of our own: what crash capture, scripts and tests use where a person would use gdb.

It works on a relay's ``GUEST/gdb`` or on any other stub, without I/O: bytes in, bytes out, results through
callbacks.  ``kbridge.rsp_client`` wraps it in sockets and coroutines.

    debugger = Debugger(on_words=print)
    debugger.connected(attached)            # then carry bytes both ways
    debugger.registers(None, show)          # of the thread that stopped

in:      bytes of the stub, operations, the time (given to each event)
out:     bytes for the stub (``take_output``); each operation's callback, exactly once
states:  those of ``client.State``
invariant: every stop is told once to each operation that waits for it

A resume from an address where this session has a breakpoint gets past it first (``passing.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gdbstubs.client import State, StubClient
from gdbstubs.dialects import RELAY, Dialect
from gdbstubs.errors import EBUSY, EINVAL, ENOSYS, TargetError
from gdbstubs.passing import INSTRUCTIONS, Passing
from gdbstubs.registers import Description
from gdbstubs.target import (
    ANY_THREAD,
    Action,
    Breakpoint,
    Halted,
    Motion,
    Reply,
    Stop,
    T,
    Thread,
    ThreadId,
)

MOST_WAITING: Final = 64


class Debugger:
    """One debugger's session with a stub; the module's text says how.

    ``on_words`` is called with text that the stub prints for its user, such as why something is refused;
    ``break_in`` makes a target stop whose stub cannot be asked to, such as kgdb's.  A ``thread`` of None is the one
    that stopped last.
    """

    def __init__(
        self,
        *,
        on_words: Callable[[str], None],
        dialect: Dialect = RELAY,
        break_in: Callable[[], None] | None = None,
    ) -> None:
        self._client = StubClient(dialect, on_words, break_in)
        self._waiting: list[Reply[Stop]] = []
        self._passing: Passing | None = None
        """What gets a resume past a breakpoint of this session; it goes on afterwards."""

    # -- the connection -------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._client.state

    def connected(self, done: Reply[Stop], now: float = 0.0) -> None:
        """Greet the stub on a new connection; answers with why the target stands still.

        A relay stops a running guest for its controller; an observer is told of a stop with signal 0 instead.
        """
        self._client.now = now
        self._client.connected(done)

    def closed(self, reason: str) -> None:
        """Take note that the connection is gone: everything that waits is answered."""
        self._client.closed(reason)

    def receive(self, data: bytes, now: float = 0.0) -> None:
        """Take bytes of the stub.  Raises a ``ProtocolError`` when the connection must be closed."""
        self._client.now = now
        self._client.receive(data)

    def take_output(self) -> bytes:
        """Return what to send to the stub now."""
        return self._client.take_output()

    @property
    def deadline(self) -> float | None:
        """When ``expire`` wants to be called, in the caller's monotonic seconds; None while nothing is asked."""
        return self._client.deadline

    def expire(self, now: float) -> None:
        """Act on a passed deadline.  Raises a ``ProtocolError`` when the connection must be closed."""
        self._client.now = now
        self._client.expire()

    # -- registers and memory -------------------------------------------------------------------------------

    @property
    def description(self) -> Description | None:
        """Which registers there are; None where the stub does not say, or was not asked yet."""
        return self._client.description

    def registers(self, thread: ThreadId | None, done: Reply[dict[str, int | None]]) -> None:
        """Read all general registers by their names; None for one that is not available."""
        description = self._client.description
        if description is None:
            done(self._unknown())
            return

        def read(text: bytes | TargetError) -> None:
            done(text if isinstance(text, TargetError) else description.values(text))

        self._of(thread, lambda one: self._client.read_registers(one, read), done)

    def write_register(self, thread: ThreadId | None, name: str, value: int, done: Reply[None]) -> None:
        """Write one register by its name."""
        description = self._client.description
        if description is None:
            done(self._unknown())
            return
        register = description.names.get(name)
        if register is None:
            done(TargetError(EINVAL, f"there is no register {name!r}"))
            return
        if not 0 <= value < 1 << (8 * register.size):
            done(
                TargetError(EINVAL, f"{value:#x} does not fit in {name}, which has {8 * register.size} bits")
            )
            return
        order = description.byte_order
        number, data = register.number, value.to_bytes(register.size, order)
        self._of(thread, lambda one: self._client.write_register(one, number, data, done), done)

    def read_memory(
        self, address: int, length: int, done: Reply[bytes], thread: ThreadId | None = None
    ) -> None:
        """Read virtual memory; fewer bytes where the rest is not mapped, an error where nothing is."""
        if length < 1:
            done(TargetError(EINVAL, f"{length} bytes cannot be read"))
            return
        self._of(thread, lambda one: self._client.read_memory(one, address, length, done), done)

    def write_memory(
        self, address: int, data: bytes, done: Reply[None], thread: ThreadId | None = None
    ) -> None:
        """Write virtual memory; after an error a part may have been written."""
        self._of(thread, lambda one: self._client.write_memory(one, address, data, done), done)

    # -- breakpoints ----------------------------------------------------------------------------------------

    def insert(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Insert a breakpoint or watchpoint."""
        self._client.insert(breakpoint_, done)

    def remove(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Remove a breakpoint or watchpoint."""
        self._client.remove(breakpoint_, done)

    @property
    def inserted(self) -> frozenset[Breakpoint]:
        """What this session has inserted."""
        return frozenset(self._client.inserted)

    # -- running --------------------------------------------------------------------------------------------

    def resume(self, done: Reply[Stop]) -> None:
        """Let the target run; answers when it stands still again, which may take for ever."""
        self._resume((Action(Motion.CONTINUE),), done)

    def step(self, thread: ThreadId | None, done: Reply[Stop]) -> None:
        """Let one thread take one instruction, while the others run."""
        self._step(thread, None, done)

    def step_range(self, thread: ThreadId | None, start: int, end: int, done: Reply[Stop]) -> None:
        """Step one thread until its program counter leaves ``[start, end)``."""
        if start >= end:
            done(TargetError(EINVAL, f"{start:#x} to {end:#x} is no range"))
            return
        self._step(thread, (start, end), done)

    def _step(self, thread: ThreadId | None, within: tuple[int, int] | None, done: Reply[Stop]) -> None:
        def step(one: ThreadId) -> None:
            self._resume((Action(Motion.STEP, one, within), Action(Motion.CONTINUE)), done)

        self._of(thread, step, done)

    def step_back(self, done: Reply[Stop]) -> None:
        """Take one step backwards in a recording."""
        self._resume((Action(Motion.REVERSE_STEP),), done)

    def resume_back(self, done: Reply[Stop]) -> None:
        """Run backwards in a recording, to the last breakpoint or its beginning."""
        self._resume((Action(Motion.REVERSE_CONTINUE),), done)

    def _resume(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        def stopped(stop: Stop | TargetError) -> None:
            self._passing = None
            waiting, self._waiting = self._waiting, []
            for told in (done, *waiting):
                told(stop)

        def go() -> None:
            passing, self._passing = self._passing, None
            self._client.resume(actions, stopped)
            if passing is not None and passing.is_wanted:
                self._client.interrupt()

        if self._passing is not None:
            done(TargetError(EBUSY, "the guest is running"))
            return
        forward = all(action.motion in (Motion.CONTINUE, Motion.STEP) for action in actions)
        if forward and any(one.kind in INSTRUCTIONS for one in self._client.inserted):
            self._passing = Passing(self._client, actions, go, stopped)
            self._passing.start()
        else:
            go()

    def interrupt(self) -> None:
        """Ask a running target to stop; whoever waits for a stop is told."""
        if self._passing is not None:
            self._passing.is_wanted = True
        self._client.interrupt()

    def wait(self, done: Reply[Stop]) -> None:
        """Wait for the next stop of a target that runs; answers at once with the last one where it stands."""
        if self._passing is None and not self._client.waits_for_stop and not self._client.is_resuming:
            self._client.why_stopped(done)
        elif len(self._waiting) < MOST_WAITING:
            self._waiting.append(done)
        else:
            done(TargetError(EBUSY, f"{MOST_WAITING} wait for the next stop already"))

    # -- everything else ------------------------------------------------------------------------------------

    def threads(self, done: Reply[tuple[Thread, ...]]) -> None:
        """List all threads with what the stub says of each."""
        self._client.list_threads(done)

    def monitor(self, command: str, done: Reply[str]) -> None:
        """Give the relay a command, as gdb's ``monitor`` does; answers with what it printed."""
        self._client.monitor(command, done)

    def detach(self, done: Reply[None]) -> None:
        """Leave: the stub removes what this session inserted and leaves the target as it is configured to."""
        self._client.detach(done)

    def _of(self, thread: ThreadId | None, operation: Callable[[ThreadId], None], done: Reply[T]) -> None:
        """Do something with a thread: the one given, or the one that stopped last."""
        if thread is not None:
            operation(thread)
            return

        def told(stop: Stop | TargetError) -> None:
            if isinstance(stop, TargetError):
                done(stop)
                return
            last = stop.thread if isinstance(stop, Halted) else None
            operation(ANY_THREAD if last is None else last)

        self._client.why_stopped(told)

    def _unknown(self) -> TargetError:
        return TargetError(ENOSYS, "the stub does not say which registers it has")
