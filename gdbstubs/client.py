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
from functools import partial
from typing import Final, TypeGuard

from gdbstubs.dialects import Dialect, InterruptBy
from gdbstubs.errors import EBUSY, EIO, ENOSYS, ESRCH, RemoteProtocolError, TargetError
from gdbstubs.gather import Answer, ObjectRead
from gdbstubs.link import Link
from gdbstubs.memory import StubMemory
from gdbstubs.packets import parse_thread
from gdbstubs.passage import Passage
from gdbstubs.ranges import RangeStep, is_ranged
from gdbstubs.reclaim import reclaim
from gdbstubs.registers import Description
from gdbstubs.replies import Reply as RawReply
from gdbstubs.replies import as_data, as_done, as_error, as_stop
from gdbstubs.resumes import Features, inability, resume_text, thread_to_select
from gdbstubs.rights import Right
from gdbstubs.steps import StepFlags
from gdbstubs.stub_registers import StubRegisters
from gdbstubs.stub_threads import StubThreads
from gdbstubs.target import (
    ANY_THREAD,
    FAULTS,
    SIGINT,
    SIGKILL,
    SIGTRAP,
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
from gdbstubs.wire import Control

LONGEST_REPLY: Final = 1 << 20
MOST_WORDS: Final = 1 << 20
"""Characters that a stub may print in answer to one command."""
OWED_SECONDS: Final = 2.0
"""How long a target is stayed with that somebody's unfinished step may stop once more."""
_LEAVING: Final = TargetError(EBUSY, "the last debugger is leaving")
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

    ``on_words`` is called with text that the stub prints.  ``break_in`` makes a running target stop where the
    stub itself cannot be asked to (``Dialect.interrupt_by``); it may be called more than once.
    """

    def __init__(
        self,
        dialect: Dialect,
        on_words: Callable[[str], None],
        break_in: Callable[[], None] | None = None,
    ) -> None:
        self.dialect = dialect
        self.on_inner_step: Callable[[], None] | None = None
        """Called between the steps of a range, when the target has stopped and is about to be resumed."""
        self.now = 0.0
        self.state = State.CLOSED
        self.inserted: set[Breakpoint] = set()
        """What stands in the stub now, as far as it told us."""
        self.interrupt_sent = False
        """Whether the stop to come (or the last one) follows an interrupt of ours."""
        self._on_words = on_words
        self._break_in = break_in
        self._link = Link(LONGEST_REPLY)
        self._registers = StubRegisters(self._ask_of, dialect.registers, dialect.described)
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
        self._selected: ThreadId | None = None
        self._misselected = False
        self._refused = ANY_THREAD
        self._features = Features(self.dialect.packet_size)
        self._threads = StubThreads(
            self._ask, multiprocess=self.dialect.multiprocess, pipelined=self.dialect.pipeline > 1
        )
        self._used_registers = self._used_threads = False
        self._ahead = (False, False)
        self._resuming = self._interrupt_wanted = False
        self._heard = False
        self._left: Reply[None] | None = None
        self._is_leaving = False
        """Whether the stub has been asked to let the target go: nothing may follow."""
        self._is_staying = False
        """Whether a target was let go that may still stop for a step that is owed."""
        self._stepping: ThreadId | None = None
        self._owed: set[ThreadId] = set()
        """Threads of kgdb whose step another's stop came before: they trap as soon as they run, once."""
        self._is_trapped = False
        """Whether the target stands, and the program counter is just being put back."""
        self._is_sent = True
        """Whether the last resume has left; what comes before that cannot be its stop."""
        self._is_assumed = False
        """Whether the stub's own word of the present stop may still come."""
        self._in_range = False
        self._announced: ThreadId | None = None
        self._asked_again = False
        self._continuing = ANY_THREAD
        self._printed: list[str] | None = None
        self.steps = StepFlags(self._ask)
        self._registers.disconnected()
        self._memory = self._make_memory()

    def _make_memory(self) -> StubMemory:
        return StubMemory(
            self._ask_of,
            self._features.packet_size,
            uploads=b"binary-upload+" in self._features,
            probes=self.dialect.probes_binary,
        )

    # -- the connection -------------------------------------------------------------------------------------

    def connected(self, done: Reply[Stop], *, running: bool | None = None) -> None:
        """Greet the stub on a new connection; answers with why the target stands still.

        Connecting stops a target that ``running`` does not deny to run: by itself, or by breaking in.
        """
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
            framed=True,
        )
        if self.dialect.interrupt_by is InterruptBy.BREAK_IN and running is not False and self._break_in:
            self._break_in()
        if self.dialect.asks_features:
            offers = b"swbreak+;hwbreak+;vContSupported+;xmlRegisters=i386"
            if self.dialect.multiprocess:
                offers = b"multiprocess+;" + offers
            if self.dialect.offers_words:
                offers += b";error-message+"
            self._ask(b"qSupported:" + offers, lambda reply: self._greeted(reply, done))
        else:
            self._registers.learn(None, lambda: self._ask_why(done))

    def _greeted(self, reply: RawReply, done: Reply[Stop]) -> None:
        error = as_error(reply)
        if isinstance(reply, TargetError) or (error is not None and error.errno != ENOSYS):
            done(error or TargetError(EIO))
            return
        self._features = self._features.with_names(reply, LONGEST_REPLY)
        self._memory = self._make_memory()
        if b"QStartNoAckMode+" in self._features:
            self._ask(b"QStartNoAckMode", self._unacknowledged)
        self._ask(b"vCont?", self._resumes_known)
        if self.dialect.sticky_steps:
            self.steps.learn()
        described = b"qXfer:features:read+" in self._features
        self._registers.learn(self._read_document if described else None, lambda: self._ask_why(done))

    def _read_document(self, annex: str, done: Reply[bytes]) -> None:
        ObjectRead(self._ask, "features", annex, self._features.packet_size - _OVERHEAD, done).start()

    def _ask_why(self, done: Reply[Stop]) -> None:
        def why(answer: RawReply) -> None:
            stop = as_stop(answer)
            self._question = None
            if isinstance(stop, Halted) and stop.thread is None and self.dialect.steps_current_only:
                self._ask(b"qC", lambda reply: self._current_known(stop, reply, done))
                return
            self._first_stop(stop, done)

        if self.state is State.CLOSED:
            done(self._lost)
            return
        # The question clears all breakpoints in QEMU and kgdb: a clean slate.
        self._question = why
        self._ask(b"?", why)

    def _current_known(self, stop: Halted, reply: RawReply, done: Reply[Stop]) -> None:
        if isinstance(reply, TargetError):
            done(reply)
            return
        thread = self._announced
        if reply.startswith(b"QC"):
            try:
                thread = parse_thread(reply[2:])
            except ValueError:
                raise RemoteProtocolError(f"the stub says {reply[:20]!r} of the current thread") from None
        self._first_stop(Halted(stop.signal, thread, stop.reason, stop.words), done)

    def _first_stop(self, stop: Stop | TargetError, done: Reply[Stop]) -> None:
        if not isinstance(stop, TargetError):
            self._arrived()
            self._last_stop = stop
        done(stop)

    def _unacknowledged(self, reply: RawReply) -> None:
        if reply == b"OK":
            self._link.start_no_ack()

    def _resumes_known(self, reply: RawReply) -> None:
        if isinstance(reply, bytes):
            self._features = self._features.with_actions(reply)

    def closed(self, reason: str) -> None:
        """Take note that the connection is gone: everything that waits is answered with an error."""
        if self.state is State.CLOSED:
            return
        waiting = [*self._waiting, *(answer for _, answer in self._queue)]
        stopped, left = self._stopped, self._left
        self._forget()
        self._link.output.clear()
        self.state = State.CLOSED
        self._lost = TargetError(EIO, reason)
        for answer in waiting:
            answer(self._lost)
        if left is not None:
            left(self._lost)
        if stopped is not None:
            stopped(Ended(signal=SIGKILL, words=reason))

    def take_output(self) -> bytes:
        """Return what to send to the stub now."""
        output = self._link.output
        if not output:
            return b""
        self._is_sent = True
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
        if self._is_staying and self._deadline is not None and self.now >= self._deadline:
            self._leave()
            return
        if self._deadline is not None and self.now >= self._deadline:
            raise RemoteProtocolError(f"the stub did not answer within {self.dialect.request_timeout:g} s")
        self._link.expire(self.now)

    def acknowledged(self, data: bytes) -> bool:
        """Take bytes of the stub if they acknowledge what was sent and say nothing else, nor lead to anything."""
        return self._left is None and self._link.acknowledged(data, self.now)

    def receive(self, data: bytes) -> None:
        """Take bytes of the stub.  Raises a ``ProtocolError`` when the connection must be closed."""
        for event in self._link.receive(data, self.now):
            self._heard = True
            if self.state is State.CLOSED:
                return
            if isinstance(event, bytes):
                if self.state is State.RUNNING:
                    self._while_running(event[1:-3])
                else:
                    self._answered(event)
            elif event is Control.OVERLONG:
                raise RemoteProtocolError(f"the stub sent a packet of more than {LONGEST_REPLY} bytes")
            # Notifications belong to non-stop mode, which is never asked for; a stub sends no interrupts.
        if self._left is not None and self._link.idle and not self._is_trapped:
            if not self._owed:
                self._leave()
            elif not self._is_staying:
                self._is_staying = True
                self._deadline = self.now + OWED_SECONDS

    def _leave(self) -> None:
        left, self._left, self._deadline = self._left, None, None
        if left is not None:
            left(None)

    def _answered(self, packet: bytes) -> None:
        waiting = self._waiting
        if not waiting:
            return
        letter = packet[1:2]
        if letter == b"O" and packet[1:-3] != b"OK":
            # Text, such as the answer to a command of the stub's own; it is never the reply itself.
            self._print(packet[1:-3])
            return
        if letter in (b"T", b"S") and waiting[0] is not self._question:
            # QEMU reports the stop that connecting caused before anything was asked.
            return
        if letter == b"T" and self.dialect.steps_current_only and not self._asked_again:
            self._announced_stop(packet[1:-3])
            return
        answer = waiting.popleft()
        self._deadline = self.now + self.dialect.request_timeout if waiting else None
        if type(answer) is not Passage:
            answer(packet[1:-3])
        elif self._misselected:
            answer(self._wrong_thread())
        else:
            answer.take(packet)
        if self._queue:
            self._send_queued()

    def _announced_stop(self, payload: bytes) -> None:
        """Ask a kgdb again that was broken into while somebody's connection was remembered.

        It reports that stop as it did to its former debugger, and loses the question that crossed the report; its
        own answer to the question is an ``S``, and names no thread.
        """
        stop = as_stop(payload)
        if isinstance(stop, Halted):
            self._announced = stop.thread
        self._asked_again = True
        self._link.send_anew(b"?", self.now)

    def _print(self, payload: bytes) -> None:
        try:
            words = binascii.unhexlify(payload[1:]).decode("utf-8", "replace")
        except binascii.Error:
            raise RemoteProtocolError(f"the stub printed {payload[:20]!r}") from None
        if self._printed is None:
            self._on_words(words)
        elif sum(map(len, self._printed)) + len(words) > MOST_WORDS:
            raise RemoteProtocolError(f"the stub printed more than {MOST_WORDS} characters")
        else:
            self._printed.append(words)

    def _while_running(self, payload: bytes) -> None:
        if not self._is_sent:
            # Somebody else resumed the target and it stopped again, before our own resume left.
            return
        if payload[:1] == b"O" and payload != b"OK":
            self._print(payload)
        elif payload[:1] == b"F":
            # Semihosting asks for a file operation of the debugger; the host's files are not for guests.
            self._link.send(b"F-1,1", self.now)
        else:
            stop = as_stop(payload)
            if self._may_be_past_breakpoint(stop):
                self._put_back(stop)
            elif not self._goes_on_after(stop):
                self._halt(stop)

    def _goes_on_after(self, stop: Stop | TargetError) -> bool:
        """Continue a target that stopped for the end of a step that nobody waits for any more."""
        thread = stop.thread if isinstance(stop, Halted) else None
        if not isinstance(stop, Halted) or thread not in self._owed or stop.signal != SIGTRAP or stop.reason:
            return False
        self._owed.discard(thread)
        if self._stepping is not None or self.was_interrupted:
            return False
        self.state = State.RUNNING
        self._last_stop = stop
        self._link.send(b"c", self.now)
        return True

    def _note_step(self, stop: Stop | TargetError) -> None:
        """Remember who still has a step to finish in a target that stops for another."""
        if isinstance(stop, Halted) and stop.thread is not None and self.dialect.steps_current_only:
            if self._stepping is not None:
                self._owed.add(self._stepping)
            # A resume clears the flag of the thread that stopped.
            self._owed.discard(stop.thread)

    def _may_be_past_breakpoint(self, stop: Stop | TargetError) -> TypeGuard[Halted]:
        """Whether the stub may have left it to the debugger to put the program counter back."""
        return (
            self.dialect.trap_length > 0
            and isinstance(stop, Halted)
            and stop.signal == SIGTRAP
            and stop.thread is not None
            and stop.thread != self._stepping
            and any(one.kind is BreakpointKind.SOFTWARE for one in self.inserted)
        )

    def _put_back(self, stop: Halted) -> None:
        """Put the program counter back to the breakpoint that was hit, if one was, before anybody hears of it."""
        length, thread, stopped = self.dialect.trap_length, stop.thread, self._stopped
        assert thread is not None
        self._arrived()
        self._last_stop = stop
        self._is_trapped = True

        def settled(result: Stop) -> None:
            if self._stopped is stopped and self._is_trapped:
                self._is_trapped = False
                if not self._goes_on_after(result):
                    self._halt(result)

        def known(counter: int | TargetError) -> None:
            hit = isinstance(counter, int) and any(
                one.kind is BreakpointKind.SOFTWARE and one.address == counter - length
                for one in self.inserted
            )
            description = self._registers.description
            register = None if description is None else description.program_counter
            if not hit or not isinstance(counter, int) or description is None or register is None:
                settled(stop)
                return
            value = (counter - length).to_bytes(register.size, description.byte_order)
            self.write_register(thread, register.number, value, put)

        def put(error: TargetError | None) -> None:
            if error is None:
                settled(Halted(stop.signal, thread, ("swbreak", ""), stop.words))
            else:
                words = (
                    f"the program counter is {length} past a breakpoint and could not be put back: {error}"
                )
                settled(Halted(stop.signal, thread, None, words))

        self.program_counter(thread, known)

    def _halt(self, stop: Stop | TargetError) -> None:
        self._note_step(stop)
        self._arrived()
        self._last_stop = stop
        self.steps.restore()
        self.steps.stopped(stop)
        stopped, self._stopped = self._stopped, None
        in_range = self._in_range
        if stopped is not None:
            stopped(stop)
        if not in_range:
            self._ask_ahead(stop)

    def _ask_ahead(self, stop: Stop | TargetError) -> None:
        """Ask what was asked at the last stop, as a debugger does at each: have it ready."""
        registers, threads = self._ahead
        # Who was told may have gone on already, or left: nothing may follow a resume or a detach.
        if (
            self._is_idle()
            and isinstance(stop, Halted)
            and stop.thread is not None
            and self.dialect.pipeline > 1
        ):
            if registers:
                self.read_registers(stop.thread, _ignored)
            if threads:
                self.list_threads(_ignored)
            self._used_registers = self._used_threads = False

    def _is_idle(self) -> bool:
        return self.state is State.STOPPED and not self._waiting

    def _arrived(self) -> None:
        self.state = State.STOPPED
        self._selected = None
        self.forget_registers()
        self._threads.forget()

    def _departed(self) -> None:
        """Begin a new stop's count of what is asked."""
        self._ahead = (self._used_registers, self._used_threads)
        self._used_registers = self._used_threads = False

    def forget_registers(self) -> None:
        """Forget the registers read at this stop, because something may have changed them."""
        self._registers.forget()

    def assume_stopped(self, stop: Stop) -> None:
        """Believe another witness, the machine monitor, that a running target stands still."""
        if self.state is State.RUNNING:
            self._halt(stop)
            self._is_assumed = True

    def assume_running(self) -> None:
        """Believe the machine monitor that somebody else has resumed the target."""
        if self.state is State.STOPPED:
            self._departed()
            self.state = State.RUNNING
            self.interrupt_sent = False

    @property
    def is_resuming(self) -> bool:
        """Whether a resume waits for what was asked before it, or a stop for what must be asked after it."""
        return self._resuming or self._is_trapped

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
        if self._is_leaving:
            # What goes on by itself, as a long read in pieces does, ends here.
            answer(_LEAVING)
            return
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
        if self._is_leaving and self.state is not State.CLOSED:
            return _LEAVING
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
            self._ask(b"Hg" + self._threads.text(thread), partial(self._thread_selected, thread))

        def answer(reply: RawReply) -> None:
            # A stub that refused Hg answers for the thread selected before: that is nobody's answer.
            done(self._wrong_thread() if self._misselected else read(reply))

        self._ask(payload, answer)

    def _wrong_thread(self) -> TargetError:
        return TargetError(ESRCH, f"there is no thread {self._refused:x}")

    def _thread_selected(self, thread: ThreadId, reply: RawReply) -> None:
        self._misselected = reply != b"OK" and not isinstance(reply, TargetError)
        self._refused = thread
        if self._misselected:
            self._selected = None

    # -- the target port ------------------------------------------------------------------------------------

    @property
    def right(self) -> Right:
        """Who has the stub may do everything."""
        return Right.CONTROLLER

    @property
    def reverses(self) -> bool:
        """Whether the stub announced that it can run backwards."""
        return {b"ReverseStep+", b"ReverseContinue+"} <= self._features.names

    def attach(self, done: Reply[None]) -> None:
        """Tell whether there is a connection to the stub, which holds the target."""
        done(self._lost if self.state is State.CLOSED else None)

    def why_stopped(self, done: Reply[Stop]) -> None:
        """Tell the last stop reply again, without asking the stub."""
        done(self._refusal() or self._last_stop)

    def read_registers(self, thread: ThreadId, done: Reply[bytes]) -> None:
        """Read all general registers; asked once a stop."""
        self._used_registers = True
        if self.state is State.STOPPED:
            self._registers.read(thread, done)
        else:
            done(self._refusal() or TargetError(EBUSY, "the stub has not been asked yet"))

    def write_registers(self, thread: ThreadId, data: bytes, done: Reply[None]) -> None:
        """Write all general registers; those that the stub does not have stay what they are."""
        self._registers.write(thread, data, done)

    def read_register(self, thread: ThreadId, number: int, done: Reply[bytes]) -> None:
        """Read one register."""
        self._registers.read_one(thread, number, done)

    def write_register(self, thread: ThreadId, number: int, value: bytes, done: Reply[None]) -> None:
        """Write one register."""
        self._registers.write_one(thread, number, value, done)

    def program_counter(self, thread: ThreadId, done: Reply[int]) -> None:
        """Tell the address of a thread's next instruction, out of the registers of this stop."""
        if self.state is not State.STOPPED and (refusal := self._refusal()) is not None:
            done(refusal)
        else:
            self._registers.program_counter(thread, done)

    @property
    def register_text_length(self) -> int:
        """How many characters the registers' text has, in every state; 0 where that is not known yet."""
        return self._registers.text_length

    def unavailable_registers(self) -> bytes:
        """Return the text of registers of which none is available, such as a running target's.

        Empty where nothing is known of the stub's registers yet.
        """
        return self._registers.unavailable()

    @property
    def description(self) -> Description | None:
        """What the registers' text holds; None where the stub does not say."""
        return self._registers.description

    def read_memory(self, thread: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        """Read memory; what is larger than a packet of the stub is put together from several."""
        self._memory.read(thread, address, length, done)

    def pass_read(self, thread: ThreadId, address: int, length: int, packet: bytes, passage: Passage) -> bool:
        """Pass a read on, where nothing must be asked or waited for before it."""
        waiting = self._waiting
        if (
            self.state is not State.STOPPED
            or self._is_leaving
            or thread != self._selected
            or not self._memory.fits(length)
            or self._queue
            or len(waiting) >= self.dialect.pipeline
        ):
            return False
        if not waiting:
            self._deadline = self.now + self.dialect.request_timeout
        waiting.append(passage)
        self._link.send_packet(packet, self.now)
        return True

    def write_memory(self, thread: ThreadId, address: int, data: bytes, done: Reply[None]) -> None:
        """Write memory in pieces that fit in the stub's packets, up to the first that fails."""
        self._memory.write(thread, address, data, done)

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

    def reclaim(self, breakpoints: tuple[Breakpoint, ...], done: Callable[[], None]) -> None:
        """Count what a former connection left in the stub as inserted, right after the greeting."""
        if not self.dialect.greeting_forgets:
            # The greeting's question has removed them from QEMU; other stubs are asked one by one.
            self.inserted.update(breakpoints)
            done()
            return

        def ready(error: TargetError | None) -> None:
            if error is not None and self.state is not State.CLOSED:
                self._on_words(f"a processor that hit a breakpoint could not be put back to it: {error}\n")
            done()

        reclaim(self, breakpoints, self._last_stop, self.dialect.trap_length, ready)

    def forget_breakpoints(self) -> None:
        """Do nothing: what stands in the stub is removed by those who share it."""

    def resume(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        """Let the target run, after everything asked before was answered."""
        if (refusal := self._refusal()) is not None:
            done(refusal)
            return
        impossible = inability(actions, self._features, self.dialect, self._stopped_thread())
        if impossible is not None:
            done(impossible)
            return
        self._resuming = True
        self._departed()
        if any(map(is_ranged, actions)) and not self._features.has_ranges:
            self._in_range = True
            RangeStep(_Steps(self), actions, partial(self._range_ended, done)).start()
        else:
            self.resume_once(actions, done)

    def _stopped_thread(self) -> ThreadId | None:
        return self._last_stop.thread if isinstance(self._last_stop, Halted) else None

    def _range_ended(self, done: Reply[Stop], stop: Stop | TargetError) -> None:
        self._in_range = self._resuming = self._interrupt_wanted = False
        if self.state is State.CLOSED and not isinstance(stop, Ended):
            # Lost between two steps, when no stop was awaited: the target ran, and will not be heard of again.
            stop = Ended(words=str(self._lost))
        elif isinstance(stop, Halted) and stop.signal == SIGINT:
            self.interrupt_sent = True
        if self.state is State.STOPPED:
            self._last_stop = stop
        done(stop)
        self._ask_ahead(stop)

    def keep_resuming(self) -> None:
        """Count as resuming although the target stands: the steps of a range go on."""
        self._resuming = True

    def resume_once(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        """Resume as the stub itself can; ``resume`` makes up for the rest."""
        if self._is_assumed:
            # A late stop reply would be taken for the one to this resume: it comes before the answer to a question.
            self._is_assumed = False
            self._ask(b"vCont?", _ignored)
        self._resume(self.steps.settle(actions), done)

    def _resume(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        if (refusal := self._refusal()) is not None:
            self._resuming = self._interrupt_wanted = False
            done(refusal)
            return
        self._select_resumed(actions)
        if self._waiting or self._queue:
            self._after_last(lambda: self._resume(actions, done))
            return
        self._resuming = False
        self.state = State.RUNNING
        self.interrupt_sent = False
        self._stopped = done
        # While one processor steps the others run, and may hit a breakpoint; the one that steps was taken off its own.
        steps = any(action.motion is not Motion.CONTINUE for action in actions)
        self._stepping = self._stopped_thread() if steps else None
        self._is_sent = False
        self._link.send(resume_text(actions, self._features, self._threads.text), self.now)
        if self._interrupt_wanted:
            self._interrupt_wanted = False
            self.interrupt()

    def _select_resumed(self, actions: tuple[Action, ...]) -> None:
        """Tell a stub without ``vCont`` which thread is to step."""
        if self._features.has_vcont or self.dialect.steps_current_only:
            return
        wanted = thread_to_select(actions, self._stopped_thread())
        if wanted != self._continuing:
            self._continuing = wanted
            self._ask(b"Hc" + self._threads.text(wanted), _ignored)

    def _after_last(self, next_: Callable[[], None]) -> None:
        """Do something after the last request that waits was answered."""

        def then(reply: RawReply) -> None:
            last(reply)
            next_()

        if self._queue:
            payload, last = self._queue.pop()
            self._queue.append((payload, then))
        else:
            last = self._waiting.pop()
            self._waiting.append(then)

    def interrupt(self) -> None:
        """Ask a running target to stop; a second interrupt byte before the stop is not sent."""
        if self.state is not State.RUNNING:
            if self._resuming:
                self._interrupt_wanted = True
        elif self.dialect.interrupt_by is InterruptBy.BREAK_IN:
            if self._break_in is None:
                self._on_words(f"{self.dialect.name} cannot be interrupted: nobody knows how to break in\n")
                return
            self.interrupt_sent = True
            self._break_in()
        elif not self.interrupt_sent:
            self.interrupt_sent = True
            self._link.send_interrupt()

    @property
    def is_heard(self) -> bool:
        """Whether the stub has answered on this connection already: a target that greets, stands."""
        return self.state is State.GREETING and self._heard

    def give_up_interrupt(self) -> None:
        """Take note that an interrupt led nowhere: another one may be sent."""
        if self.state is State.RUNNING:
            self.interrupt_sent = False

    @property
    def was_interrupted(self) -> bool:
        """Whether somebody has asked for a stop since the last resume."""
        return self.interrupt_sent or self._interrupt_wanted

    def monitor(self, command: str, done: Reply[str]) -> None:
        """Give the stub a command of its own (``qRcmd``); answers with what it printed.

        For a stub that is another relay: the stub's own monitor of a hypervisor is not for debuggers.
        """
        if (refusal := self._refusal()) is not None:
            done(refusal)
            return
        if self._printed is not None:
            done(TargetError(EBUSY, "another command has not been answered yet"))
            return
        printed = self._printed = []

        def answer(reply: RawReply) -> None:
            self._printed = None
            error = as_error(reply)
            if error is not None or isinstance(reply, TargetError):
                done(error or TargetError(EIO))
                return
            if reply != b"OK":
                data = as_data(reply)
                if isinstance(data, TargetError):
                    done(data)
                    return
                printed.append(data.decode("utf-8", "replace"))
            done("".join(printed))

        self._ask(b"qRcmd," + binascii.hexlify(command.encode()), answer)

    def list_threads(self, done: Reply[tuple[Thread, ...]]) -> None:
        """List all threads with what the stub says of each; asked once a stop."""
        self._used_threads = True
        if self._threads.known is not None:
            done(self._threads.known)
        elif (refusal := self._refusal()) is not None:
            done(refusal)
        else:
            document = b"qXfer:threads:read+" in self._features
            self._threads.list(self._features.packet_size - _OVERHEAD if document else None, done)

    def is_alive(self, thread: ThreadId, done: Reply[bool]) -> None:
        """Tell whether a thread exists."""

        def listed(result: tuple[Thread, ...] | TargetError) -> None:
            done(result if isinstance(result, TargetError) else any(one.id == thread for one in result))

        # Where every thread takes a round trip, asking for one is cheaper than listing all.
        if self._threads.known is None and self.dialect.pipeline == 1 and self.state is State.STOPPED:
            self._threads.is_alive(thread, lambda: self.list_threads(listed), done)
        else:
            self.list_threads(listed)

    def read_description(self, annex: str, done: Reply[bytes | None]) -> None:
        """Read a file of the target description, which is one document; known in every state.

        The first that was asked for holds for the life of this object, whatever stub comes later.
        """
        if self._registers.description is None and (refusal := self._refusal()) is not None:
            done(refusal)
        else:
            done(self._registers.serve(annex))

    def _passing_on(self) -> bytes:
        """Return the resume that leaves a target: one that faulted is to handle its fault, not to repeat it."""
        stop = self._last_stop
        faulted = isinstance(stop, Halted) and stop.signal in FAULTS
        return self.dialect.passes_fault if faulted and self.dialect.passes_fault else b"c"

    def detach(self, done: Reply[None]) -> None:
        """Let the target run and have done with it: by ``D``, which removes what is left, or by a continue."""
        if (refusal := self._refusal()) is not None:
            done(refusal)
            return
        early = self.dialect.detach_waits
        if early and (self._waiting or self._queue):
            self._after_last(lambda: self.detach(done))
            return
        if self.dialect.detach_continues and not self.inserted:
            # It has arrived when it was acknowledged: there is no other answer.
            self.state = State.RUNNING
            self._left = done
            self._stepping = None
            self.interrupt_sent = self._interrupt_wanted = False
            self._deadline = self.now + self.dialect.request_timeout
            self._link.send(self._passing_on(), self.now)
            return

        def answer(reply: RawReply) -> None:
            self._is_leaving = False
            error = as_done(reply)
            if error is None:
                self.inserted.clear()
            done(error)

        def plain(reply: RawReply) -> None:
            if as_done(reply) is None or isinstance(reply, TargetError):
                answer(reply)
            else:
                # QEMU refuses it when any debugger before us has negotiated processes.
                self._ask_last(b"D;1", answer)

        if self.dialect.multiprocess:
            self._ask_last(b"D;1", answer)
        else:
            self._ask_last(b"D", plain)
        if early:
            # Whoever is told of the reply may close the line before its acknowledgement is on the way.
            self._link.output.append(b"+")

    def _ask_last(self, payload: bytes, answer: Answer) -> None:
        """Ask something behind which nothing may be asked.

        QEMU has no current processor once it has let its process go, and reads memory of it nevertheless: it dies of
        that (gdbstub.c, ``handle_detach``, then ``handle_read_mem``; seen with QEMU 7.2).
        """
        self._is_leaving = False
        self._ask(payload, answer)
        self._is_leaving = True


class _Steps:
    """A client as a range steps it."""

    def __init__(self, client: StubClient) -> None:
        self._client = client

    @property
    def was_interrupted(self) -> bool:
        return self._client.was_interrupted

    def step(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        self._client.resume_once(actions, done)

    def locate(self, thread: ThreadId, done: Reply[int]) -> None:
        self._client.keep_resuming()
        self._client.program_counter(thread, done)

    def has_breakpoint(self, address: int) -> bool:
        return any(one.address == address for one in self._client.inserted)

    def stepped(self) -> None:
        if self._client.on_inner_step is not None:
            self._client.on_inner_step()


def _ignored(result: object) -> None:
    """Take no note: asked for only to be remembered."""


def _breakpoint_text(breakpoint_: Breakpoint) -> bytes:
    return b"%x,%x,%x" % (breakpoint_.kind.value, breakpoint_.address, breakpoint_.size)
