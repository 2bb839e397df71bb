"""The client half: a target over a stub.

in:      bytes of the stub, calls of the target port, the time (``now``, set before each of them)
out:     bytes for the stub (``take_output``), replies through the callbacks given
states:  closed · greeting · stopped · running
invariant: each request is answered once, by the stub or with an error; nothing is sent to a running target
         but the interrupt (any byte stops QEMU and spoils its next stop reply)

Source: GDB manual, "Remote Protocol"; quirks of QEMU's stub, as of 7.2, are named where they are handled.
"""

from __future__ import annotations

import binascii
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final

from gdbstubs.dialects import Dialect
from gdbstubs.errors import EBUSY, EIO, ESRCH, RemoteProtocolError, TargetError
from gdbstubs.gather import Answer, LargeRead, ObjectRead, ThreadList
from gdbstubs.link import Link
from gdbstubs.packets import format_thread
from gdbstubs.replies import Reply as RawReply
from gdbstubs.replies import as_data, as_done, as_registers, as_stop
from gdbstubs.rights import Right
from gdbstubs.steps import StepFlags
from gdbstubs.target import (
    ALL_THREADS,
    SIGKILL,
    Action,
    Breakpoint,
    Ended,
    Halted,
    Motion,
    Reply,
    Stop,
    Thread,
    ThreadId,
)
from gdbstubs.wire import Control

LONGEST_REPLY: Final = 1 << 20
_OVERHEAD: Final = 32
"""Bytes that a packet needs beside its data: letter, address, length, frame."""


class State(Enum):
    """Where the connection to the stub stands."""

    CLOSED = "closed"
    GREETING = "greeting"
    STOPPED = "stopped"
    RUNNING = "running"


class StubClient:
    """A stub as a ``Target``; the module's text says how.

    ``on_words`` is called with text that the stub prints while the target runs.
    """

    def __init__(self, dialect: Dialect, on_words: Callable[[str], None]) -> None:
        self.dialect = dialect
        self.now = 0.0
        self.state = State.CLOSED
        self.inserted: set[Breakpoint] = set()
        """What stands in the stub now, as far as it told us."""
        self.interrupt_sent = False
        """Whether the stop to come (or the last one) follows an interrupt of ours."""
        self._on_words = on_words
        self._link = Link(LONGEST_REPLY)
        self._lost = TargetError(EIO, "there is no connection to the stub")
        self._forget()

    def _forget(self) -> None:
        """Forget all that belongs to one connection."""
        self._waiting: deque[Answer] = deque()
        self._queue: deque[tuple[bytes, Answer]] = deque()
        self._deadline: float | None = None
        self._question: Answer | None = None
        self._stopped: Reply[Stop] | None = None
        self._last_stop: Stop | TargetError = TargetError(EBUSY, "the stub has not been asked yet")
        self._texts: dict[ThreadId, bytes] = {}
        self._selected: ThreadId | None = None
        self._misselected = False
        self._packet_size = self.dialect.packet_size
        self._features: frozenset[bytes] = frozenset()
        self._resumes: frozenset[bytes] = frozenset()
        self._threads: tuple[Thread, ...] | None = None
        self._thread_texts: tuple[bytes, ...] = ()
        self._threads_wanted: list[Reply[tuple[Thread, ...]]] = []
        self._registers: dict[ThreadId, bytes] = {}
        self._registers_wanted: dict[ThreadId, list[Reply[bytes]]] = {}
        self._used_registers = self._used_threads = False
        self._descriptions: dict[str, bytes | None] = {}
        self._resuming = self._interrupt_wanted = False
        self.steps = StepFlags(self._ask)

    # -- the connection -------------------------------------------------------------------------------------

    def connected(self, done: Reply[Stop]) -> None:
        """Greet the stub on a new connection; answers with why the target stands still."""
        self._forget()
        self.inserted.clear()
        self.interrupt_sent = False
        self.state = State.GREETING
        self._link = Link(
            LONGEST_REPLY,
            runs=True,
            timeout=self.dialect.acknowledge_timeout,
            window=self.dialect.pipeline,
            alternating=self.dialect.pipeline == 1,
            late=self.dialect.acknowledge_late,
        )
        offers = b"swbreak+;hwbreak+;vContSupported+;xmlRegisters=i386"
        if self.dialect.multiprocess:
            offers = b"multiprocess+;" + offers
        self._ask(b"qSupported:" + offers, lambda reply: self._greeted(reply, done))

    def _greeted(self, reply: RawReply, done: Reply[Stop]) -> None:
        if isinstance(reply, TargetError):
            done(reply)
            return
        self._learn(reply)
        if b"QStartNoAckMode+" in self._features:
            self._ask(b"QStartNoAckMode", self._unacknowledged)
        self._ask(b"vCont?", self._resumes_known)
        self.steps.learn()

        def why(answer: RawReply) -> None:
            stop = as_stop(answer)
            if not isinstance(stop, TargetError):
                self._arrived()
                self._last_stop = stop
            done(stop)

        # The question clears all breakpoints in QEMU and kgdb: a clean slate.
        self._question = why
        self._ask(b"?", why)

    def _learn(self, reply: bytes) -> None:
        self._features = frozenset(reply.split(b";"))
        for feature in self._features:
            name, _, value = feature.partition(b"=")
            if name == b"PacketSize":
                try:
                    self._packet_size = min(max(int(value, 16), 64), LONGEST_REPLY)
                except ValueError:
                    raise RemoteProtocolError(f"the stub announces PacketSize {value[:20]!r}") from None

    def _unacknowledged(self, reply: RawReply) -> None:
        if reply == b"OK":
            self._link.start_no_ack()

    def _resumes_known(self, reply: RawReply) -> None:
        if isinstance(reply, bytes) and reply.startswith(b"vCont;"):
            self._resumes = frozenset(reply.split(b";")[1:])

    def closed(self, reason: str) -> None:
        """Take note that the connection is gone: everything that waits is answered with an error."""
        if self.state is State.CLOSED:
            return
        waiting = [*self._waiting, *(answer for _, answer in self._queue)]
        stopped = self._stopped
        self._forget()
        self._link.output.clear()
        self.state = State.CLOSED
        self._lost = TargetError(EIO, reason)
        for answer in waiting:
            answer(self._lost)
        if stopped is not None:
            stopped(Ended(signal=SIGKILL, words=reason))

    def take_output(self) -> bytes:
        """Return what to send to the stub now."""
        output = self._link.output
        if not output:
            return b""
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return data

    @property
    def deadline(self) -> float | None:
        """When ``expire`` wants to be called, in monotonic seconds."""
        if self.state is State.CLOSED:
            return None
        link = self._link.deadline
        if link is None or self._deadline is None:
            return self._deadline if link is None else link
        return min(self._deadline, link)

    def expire(self) -> None:
        """Act on passed deadlines.

        Raises ``RemoteProtocolError`` for a stub that does not answer, ``LinkFailed`` for one that does not
        acknowledge: the connection must be closed.
        """
        if self._deadline is not None and self.now >= self._deadline:
            raise RemoteProtocolError(f"the stub did not answer within {self.dialect.request_timeout:g} s")
        self._link.expire(self.now)

    def receive(self, data: bytes) -> None:
        """Take bytes of the stub.  Raises a ``ProtocolError`` when the connection must be closed."""
        for event in self._link.receive(data, self.now):
            if self.state is State.CLOSED:
                return
            if isinstance(event, bytes):
                if self.state is State.RUNNING:
                    self._while_running(event)
                else:
                    self._answered(event)
            elif event is Control.OVERLONG:
                raise RemoteProtocolError(f"the stub sent a packet of more than {LONGEST_REPLY} bytes")
            # Notifications belong to non-stop mode, which is never asked for; a stub sends no interrupts.

    def _answered(self, payload: bytes) -> None:
        waiting = self._waiting
        if not waiting:
            return
        if payload[:1] == b"T" and waiting[0] is not self._question:
            # QEMU reports the stop that connecting caused before anything was asked.
            return
        answer = waiting.popleft()
        self._deadline = self.now + self.dialect.request_timeout if waiting else None
        answer(payload)
        if self._queue:
            self._send_queued()

    def _while_running(self, payload: bytes) -> None:
        if payload[:1] == b"O" and payload != b"OK":
            try:
                self._on_words(binascii.unhexlify(payload[1:]).decode("utf-8", "replace"))
            except binascii.Error:
                raise RemoteProtocolError(f"the stub printed {payload[:20]!r}") from None
        elif payload[:1] == b"F":
            # Semihosting asks for a file operation of the debugger; the host's files are not for guests.
            self._link.send(b"F-1,1", self.now)
        else:
            self._halt(as_stop(payload))

    def _halt(self, stop: Stop | TargetError) -> None:
        used_registers, used_threads = self._used_registers, self._used_threads
        self._arrived()
        self._last_stop = stop
        self.steps.restore()
        if not isinstance(stop, TargetError):
            self.steps.stopped(stop)
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped(stop)
        # Who was told may have gone on already, or left: nothing may follow a resume or a detach.
        if (
            self._is_idle()
            and isinstance(stop, Halted)
            and stop.thread is not None
            and self.dialect.pipeline > 1
        ):
            # A debugger asks at each stop what it asked at the last one: have it ready.
            if used_registers:
                self.read_registers(stop.thread, _ignored)
            if used_threads:
                self.list_threads(_ignored)
            self._used_registers = self._used_threads = False

    def _is_idle(self) -> bool:
        return self.state is State.STOPPED and not self._waiting

    def _arrived(self) -> None:
        self.state = State.STOPPED
        self._selected = None
        self.forget_registers()
        self._threads = None
        self._used_registers = self._used_threads = False

    def forget_registers(self) -> None:
        """Forget the registers read at this stop, because something may have changed them."""
        self._registers = {}
        self._registers_wanted = {}

    def assume_stopped(self, stop: Stop) -> None:
        """Believe another witness, the machine monitor, that a running target stands still."""
        if self.state is State.RUNNING:
            self._halt(stop)

    def assume_running(self) -> None:
        """Believe the machine monitor that somebody else has resumed the target."""
        if self.state is State.STOPPED:
            self.state = State.RUNNING
            self.interrupt_sent = False

    @property
    def is_resuming(self) -> bool:
        """Whether a resume waits for what was asked before it."""
        return self._resuming

    @property
    def waits_for_stop(self) -> bool:
        """Whether somebody is told of the next stop."""
        return self._stopped is not None

    def await_stop(self, done: Reply[Stop]) -> None:
        """Wait for the next stop of a target that somebody else has resumed."""
        if self.state is State.RUNNING and self._stopped is None:
            self._stopped = done
        else:
            done(self._refusal() or self._last_stop)

    # -- asking ---------------------------------------------------------------------------------------------

    def _ask(self, payload: bytes, answer: Answer) -> None:
        waiting = self._waiting
        if self._queue or len(waiting) >= self.dialect.pipeline:
            self._queue.append((payload, answer))
            return
        if not waiting:
            self._deadline = self.now + self.dialect.request_timeout
        waiting.append(answer)
        self._link.send(payload, self.now)

    def _send_queued(self) -> None:
        while self._queue and len(self._waiting) < self.dialect.pipeline:
            payload, answer = self._queue.popleft()
            if not self._waiting:
                self._deadline = self.now + self.dialect.request_timeout
            self._waiting.append(answer)
            self._link.send(payload, self.now)

    def _refusal(self) -> TargetError | None:
        """Why nothing can be asked now, or None."""
        match self.state:
            case State.STOPPED | State.GREETING:
                return None
            case State.RUNNING:
                return TargetError(EBUSY, "the guest is running")
            case State.CLOSED:
                return self._lost

    def _ask_of(
        self, thread: ThreadId, payload: bytes, read: Callable[[RawReply], object], done: Callable[..., None]
    ) -> None:
        """Ask something of one thread, selecting it first."""
        if self.state is not State.STOPPED and (refusal := self._refusal()) is not None:
            done(refusal)
            return
        if thread != self._selected:
            self._selected = thread
            self._ask(b"Hg" + self._thread_text(thread), self._thread_selected)

        def answer(reply: RawReply) -> None:
            # A stub that refused Hg answers for the thread selected before: that is nobody's answer.
            done(TargetError(ESRCH, f"there is no thread {thread:x}") if self._misselected else read(reply))

        self._ask(payload, answer)

    def _thread_selected(self, reply: RawReply) -> None:
        self._misselected = reply != b"OK" and not isinstance(reply, TargetError)
        if self._misselected:
            self._selected = None

    def _thread_text(self, thread: ThreadId) -> bytes:
        text = self._texts.get(thread)
        if text is None:
            text = format_thread(thread)
            if self.dialect.multiprocess:
                text = b"p1." + text
        return text

    # -- the target port ------------------------------------------------------------------------------------

    @property
    def right(self) -> Right:
        """Who has the stub may do everything."""
        return Right.CONTROLLER

    @property
    def reverses(self) -> bool:
        """Whether the stub announced that it can run backwards."""
        return {b"ReverseStep+", b"ReverseContinue+"} <= self._features

    def attach(self, done: Reply[None]) -> None:
        """Tell whether there is a connection to the stub, which holds the target."""
        done(self._lost if self.state is State.CLOSED else None)

    def why_stopped(self, done: Reply[Stop]) -> None:
        """Tell the last stop reply again, without asking the stub."""
        done(self._refusal() or self._last_stop)

    def read_registers(self, thread: ThreadId, done: Reply[bytes]) -> None:
        """Read all general registers; asked once a stop."""
        self._used_registers = True
        known = self._registers.get(thread)
        if known is not None and self.state is State.STOPPED:
            done(known)
            return
        wanted = self._registers_wanted.get(thread)
        if wanted is not None:
            wanted.append(done)
            return
        # What is written meanwhile replaces both dictionaries, and this answer is then not kept.
        registers, all_wanted = self._registers, self._registers_wanted
        waiting = all_wanted[thread] = [done]

        def read(result: bytes | TargetError) -> None:
            all_wanted.pop(thread, None)
            if not isinstance(result, TargetError):
                registers[thread] = result
            for tell in waiting:
                tell(result)

        self._ask_of(thread, b"g", as_registers, read)

    def write_registers(self, thread: ThreadId, data: bytes, done: Reply[None]) -> None:
        """Write all general registers."""
        self.forget_registers()
        self._ask_of(thread, b"G" + binascii.hexlify(data), as_done, done)

    def read_register(self, thread: ThreadId, number: int, done: Reply[bytes]) -> None:
        """Read one register."""
        self._ask_of(thread, b"p%x" % number, as_registers, done)

    def write_register(self, thread: ThreadId, number: int, value: bytes, done: Reply[None]) -> None:
        """Write one register."""
        self.forget_registers()
        self._ask_of(thread, b"P%x=%s" % (number, binascii.hexlify(value)), as_done, done)

    def read_memory(self, thread: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        """Read memory; what is larger than a packet of the stub is put together from several."""
        most = (self._packet_size - _OVERHEAD) // 2
        if length <= most:
            self._ask_of(thread, b"m%x,%x" % (address, length), as_data, done)
            return

        def read(start: int, size: int, part: Reply[bytes]) -> None:
            self._ask_of(thread, b"m%x,%x" % (start, size), as_data, part)

        LargeRead(read, address, length, most, done).start()

    def write_memory(self, thread: ThreadId, address: int, data: bytes, done: Reply[None]) -> None:
        """Write memory in pieces that fit in the stub's packets, up to the first that fails."""
        most = (self._packet_size - _OVERHEAD - 16) // 2
        pieces = deque((start, data[start : start + most]) for start in range(0, len(data) or 1, most))

        def written(result: TargetError | None) -> None:
            if result is not None or not pieces:
                done(result)
                return
            start, piece = pieces.popleft()
            packet = b"M%x,%x:%s" % (address + start, len(piece), binascii.hexlify(piece))
            self._ask_of(thread, packet, as_done, written)

        written(None)

    def insert(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Insert a breakpoint or watchpoint."""
        if (refusal := self._refusal()) is not None:
            done(refusal)
            return
        # Until the stub refuses it, it may stand: better removed once too often than left behind.
        self.inserted.add(breakpoint_)

        def answer(reply: RawReply) -> None:
            error = as_done(reply)
            if isinstance(reply, bytes) and error is not None:
                self.inserted.discard(breakpoint_)
            done(error)

        self._ask(b"Z" + _breakpoint_text(breakpoint_), answer)

    def remove(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Remove a breakpoint or watchpoint."""
        if (refusal := self._refusal()) is not None:
            done(refusal)
            return

        def answer(reply: RawReply) -> None:
            error = as_done(reply)
            if error is None:
                self.inserted.discard(breakpoint_)
            done(error)

        self._ask(b"z" + _breakpoint_text(breakpoint_), answer)

    def resume(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        """Let the target run, after everything asked before was answered."""
        if (refusal := self._refusal()) is not None:
            done(refusal)
            return
        self._resuming = True
        self._resume(self.steps.settle(actions), done)

    def _resume(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        if (refusal := self._refusal()) is not None:
            self._resuming = self._interrupt_wanted = False
            done(refusal)
            return
        if self._waiting or self._queue:
            self._resume_later(actions, done)
            return
        self._resuming = False
        self.state = State.RUNNING
        self.interrupt_sent = False
        self._stopped = done
        if b"c" in self._resumes and b"s" in self._resumes:
            payload = b"vCont" + b"".join(self._action_text(action) for action in actions)
        else:
            payload = b"s" if any(action.motion is Motion.STEP for action in actions) else b"c"
        self._link.send(payload, self.now)
        if self._interrupt_wanted:
            self._interrupt_wanted = False
            self.interrupt()

    def _resume_later(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        """Hang the resume on the answer to the last request."""

        def then(reply: RawReply) -> None:
            last(reply)
            self._resume(actions, done)

        if self._queue:
            payload, last = self._queue.pop()
            self._queue.append((payload, then))
        else:
            last = self._waiting.pop()
            self._waiting.append(then)

    def _action_text(self, action: Action) -> bytes:
        text = b";" + action.motion.value.encode("ascii")
        return text if action.thread == ALL_THREADS else text + b":" + self._thread_text(action.thread)

    def interrupt(self) -> None:
        """Send the interrupt byte to a running target; a second one before the stop is not sent."""
        if self.state is State.RUNNING and not self.interrupt_sent:
            self.interrupt_sent = True
            self._link.send_interrupt()
        elif self._resuming:
            self._interrupt_wanted = True

    def list_threads(self, done: Reply[tuple[Thread, ...]]) -> None:
        """List all threads with what the stub says of each; asked once a stop."""
        self._used_threads = True
        if self._threads is not None:
            done(self._threads)
            return
        if (refusal := self._refusal()) is not None:
            done(refusal)
            return
        waiting = self._threads_wanted
        waiting.append(done)
        if len(waiting) > 1:
            return
        texts: dict[ThreadId, bytes] = {}

        def listed(result: tuple[Thread, ...] | TargetError) -> None:
            if not isinstance(result, TargetError):
                self._texts = texts
                self._thread_texts = tuple(texts.values()) if self.dialect.pipeline > 1 else ()
                if self.state is State.STOPPED:
                    self._threads = result
            self._threads_wanted = []
            for tell in waiting:
                tell(result)

        ThreadList(self._ask, self._thread_texts, texts.__setitem__, listed).start()

    def is_alive(self, thread: ThreadId, done: Reply[bool]) -> None:
        """Tell whether a thread exists."""

        def listed(result: tuple[Thread, ...] | TargetError) -> None:
            done(result if isinstance(result, TargetError) else any(one.id == thread for one in result))

        self.list_threads(listed)

    def read_description(self, annex: str, done: Reply[bytes | None]) -> None:
        """Read a whole file of the target description; asked once a connection."""
        if annex in self._descriptions:
            done(self._descriptions[annex])
            return
        if (refusal := self._refusal()) is not None:
            done(refusal)
            return

        def read(result: bytes | TargetError) -> None:
            if result is self._lost:
                done(result)
                return
            self._descriptions[annex] = None if isinstance(result, TargetError) else result
            done(self._descriptions[annex])

        if b"qXfer:features:read+" in self._features:
            ObjectRead(self._ask, "features", annex, self._packet_size - _OVERHEAD, read).start()
        else:
            done(None)

    def detach(self, done: Reply[None]) -> None:
        """Send ``D``: the stub removes what is left and lets the target run."""
        if (refusal := self._refusal()) is not None:
            done(refusal)
            return

        def answer(reply: RawReply) -> None:
            error = as_done(reply)
            if error is None:
                self.inserted.clear()
            done(error)

        def plain(reply: RawReply) -> None:
            if as_done(reply) is None or isinstance(reply, TargetError):
                answer(reply)
            else:
                # QEMU refuses it when any debugger before us has negotiated processes.
                self._ask(b"D;1", answer)

        if self.dialect.multiprocess:
            self._ask(b"D;1", answer)
        else:
            self._ask(b"D", plain)


def _ignored(result: object) -> None:
    """Take no note: asked for only to be remembered."""


def _breakpoint_text(breakpoint_: Breakpoint) -> bytes:
    return b"%x,%x,%x" % (breakpoint_.kind.value, breakpoint_.address, breakpoint_.size)
