"""A serial line that is always read: each byte goes straight from the descriptor into the sink.

The sink is a guest's recorder, or what tells packets from text in front of one.

in          readiness of the descriptor; ``write``, ``send_break``, ``close``
out         bytes to the sink; ``line_opened`` and ``line_lost`` to the sink; state changes to listeners
states      CONNECTING → OPEN ⇄ LOST, and from any of them → CLOSED.  LOST tries again by itself, after 0.1
            s at
            first and 5 s at most.
invariant   while OPEN, what the other end sends is read as soon as the poller's turn comes, whoever reads
            the ring
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, assert_never

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from kbridge.errors import LineError
from kbridge.transports.poller import READ, WRITE

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from kbridge.transports.channels import Channel, ReadInto, Transport
    from kbridge.transports.endpoints import Break, Endpoint
    from kbridge.transports.poller import LinePoller, LineReactor

_T = TypeVar("_T")

FIRST_RETRY_SECONDS: Final = 0.1
MAX_RETRY_SECONDS: Final = 5.0
STEADY_SECONDS: Final = 5.0
"""A line that was open so long is tried again at once when it is lost; one that flaps is not."""
OPEN_SECONDS: Final = 10.0
"""Deadline for one attempt to open."""
MAX_QUEUE_BYTES: Final = 65536
"""What may wait to be written to a line."""
BREAK_SECONDS: Final = 0.3
"""How long BREAK is held; a frame at 50 baud lasts 0.2 s."""


class LineState(Enum):
    """Whether the line is there."""

    CONNECTING = "connecting"
    OPEN = "open"
    LOST = "lost"
    CLOSED = "closed"


Listener = Callable[[LineState, str], None]
"""Called with the new state and, for ``LOST``, the reason in words."""


class Sink(Protocol):
    """Where a line's bytes go: a ``Recorder``, or what tells packets from text before one."""

    def receive(self, read_into: ReadInto) -> int | None:
        """Call ``read_into`` once with where the next bytes are to be put, at least one byte long.

        It returns how many it put there, or ``None``, which is to be returned; what it raises is to be passed on.
        """

    def line_opened(self, detail: str) -> None:
        """Note that the line is there."""

    def line_lost(self, detail: str, reason: str) -> None:
        """Note that the line is gone."""


class ConsoleLine(Protocol):
    """A line as the rest of kbridge sees it."""

    @property
    def state(self) -> LineState:
        """Whether the line is there."""

    @property
    def reason(self) -> str:
        """Why it is not, in words; empty while it is open."""

    @property
    def breaks(self) -> tuple[Break, ...]:
        """The ways in which ``send_break`` works on this kind of line, the best first; the monitor may have another."""

    def write(self, data: bytes) -> None:
        """Send ``data`` in order, all or nothing; raises ``LineError`` when not open or the queue is full."""

    async def send_break(self, how: Break) -> None:
        """Hold the line in BREAK for a moment; raises ``LineError`` when that cannot be done."""

    async def close(self) -> None:
        """Let go of the line for good."""

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` at each change of state, until the function returned is called."""

    def on_words(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call ``listener`` with words for who types, until the function returned is called."""

    def hurry(self) -> None:
        """Try now to open a line that waits to be tried again: something tells that its other end is back."""


class Line:
    """A ``ConsoleLine`` over any transport."""

    # As few pieces of memory as can be, for a thousand lines.
    __slots__ = (
        "_breaks",
        "_channel",
        "_deadline",
        "_delay",
        "_listeners",
        "_name",
        "_opened_at",
        "_opening",
        "_poller",
        "_queue",
        "_reactor",
        "_reason",
        "_receive",
        "_retry",
        "_sink",
        "_state",
        "_transport",
    )
    _log = Logger()

    def __init__(
        self, reactor: LineReactor, poller: LinePoller, endpoint: Endpoint, transport: Transport, sink: Sink
    ) -> None:
        self._reactor = reactor
        self._poller = poller
        self._name = str(endpoint)
        self._breaks = endpoint.breaks
        self._transport = transport
        self._sink = sink
        self._state = LineState.CONNECTING
        self._reason = "not tried yet"
        self._listeners: tuple[Listener, ...] = ()
        self._channel: Channel | None = None
        self._queue = bytearray()
        self._opening: Deferred[Channel] | None = None
        self._deadline: IDelayedCall | None = None
        self._retry: IDelayedCall | None = None
        self._delay = FIRST_RETRY_SECONDS
        self._opened_at = 0.0
        self._receive: Callable[[], int | None]

    @property
    def state(self) -> LineState:
        """Whether the line is there."""
        return self._state

    @property
    def reason(self) -> str:
        """Why it is not, in words; empty while it is open."""
        return self._reason

    @property
    def breaks(self) -> tuple[Break, ...]:
        """The ways in which BREAK goes over this kind of line, the best first."""
        return self._breaks

    def start(self) -> None:
        """Begin to open the line; does not wait for it."""
        self._retry = None
        opening = Deferred.fromCoroutine(self._transport.open())
        self._opening = opening
        if not opening.called:
            self._deadline = self._reactor.callLater(OPEN_SECONDS, opening.cancel)
        opening.addBoth(self._end_deadline)
        opening.addCallbacks(self._opened, self._not_opened)
        opening.addErrback(self._bug)

    def write(self, data: bytes) -> None:
        """Send ``data`` in order, all or nothing; raises ``LineError`` when not open or the queue is full."""
        channel = self._channel
        if channel is None:
            raise LineError(
                f"cannot write to {self._name}", why=self._reason, todo="try again when it is back"
            )
        self._send(channel, channel.codec.encode(data) if channel.codec else data)

    async def send_break(self, how: Break) -> None:
        """Hold the line in BREAK for a moment; raises ``LineError`` when that cannot be done."""
        if how not in self._breaks:
            raise LineError(
                f"cannot send BREAK on {self._name}",
                why="such a line carries bytes only",
                todo="send it through the machine monitor",
            )
        channel = self._channel
        if channel is None:
            raise LineError(f"cannot send BREAK on {self._name}", why=self._reason)
        try:
            self._send(channel, channel.set_break(True, how))
            held: Deferred[None] = Deferred()
            self._reactor.callLater(BREAK_SECONDS, held.callback, None)
            await held
            if channel is not self._channel:
                raise LineError(
                    f"BREAK on {self._name} may not have been seen", why="the line was lost meanwhile"
                )
            self._send(channel, channel.set_break(False, how))
        except OSError as error:
            raise LineError(f"cannot send BREAK on {self._name}", why=error.strerror or str(error)) from error

    async def close(self) -> None:
        """Let go of the line for good."""
        if self._state is LineState.CLOSED:
            return
        if self._channel is not None:
            self._sink.line_lost(self._name, "closed by kbridge")
            self._drop_channel()
        self._change(LineState.CLOSED, "closed by kbridge")
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._opening is not None:
            self._opening.cancel()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` at each change of state, until the function returned is called."""
        self._listeners = (*self._listeners, listener)

        def stop() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not listener)

        return stop

    def on_words(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call ``listener`` with words for who types: a line that carries the console only has none."""
        return lambda: None

    def hurry(self) -> None:
        """Try now to open the line, if it waits to be tried again."""
        if self._retry is not None:
            self._retry.cancel()
            self._delay = FIRST_RETRY_SECONDS
            self.start()

    # Opening and losing.

    def _end_deadline(self, result: _T) -> _T:
        self._opening = None
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()
        return result

    def _opened(self, channel: Channel) -> None:
        if self._state is LineState.CLOSED:
            channel.close()
            return
        self._channel = channel
        self._opened_at = self._reactor.seconds()
        self._receive = partial(self._sink.receive, channel.read_into)
        ready = self._read if channel.codec is None else self._read_coded
        self._poller.add(channel.fileno(), READ, ready, self._broken)
        self._sink.line_opened(self._name)
        self._change(LineState.OPEN, "")
        if channel.codec is not None and self._channel is channel:
            self._send(channel, channel.codec.greeting())

    def _not_opened(self, failure: Failure) -> None:
        if self._state is LineState.CLOSED:
            return
        error = failure.value
        match error:
            case LineError():
                reason = error.why or error.what
            case defer.CancelledError():
                reason = f"no answer within {OPEN_SECONDS:.0f} s"
            case OSError():
                reason = error.strerror or str(error)
            case _:
                failure.raiseException()
        self._try_later()
        if self._state is LineState.LOST:
            self._reason = reason  # still lost: known by the first message
        else:
            self._change(LineState.LOST, reason)

    def _bug(self, failure: Failure) -> None:
        self._log.failure("{name}: bug in opening the line", failure=failure, name=self._name)
        if self._state is not LineState.CLOSED and self._channel is None:
            self._try_later()

    def _lose(self, reason: str) -> None:
        """The open line broke."""
        if self._channel is None:
            return
        self._drop_channel()
        if self._reactor.seconds() - self._opened_at >= STEADY_SECONDS:
            self._delay = FIRST_RETRY_SECONDS
        self._try_later()
        self._sink.line_lost(self._name, reason)
        self._change(LineState.LOST, reason)

    def _broken(self) -> None:
        """A bug showed while the line was read; start over."""
        self._lose("an internal error; see the log")

    def _drop_channel(self) -> None:
        channel, self._channel = self._channel, None
        self._queue.clear()
        if channel is not None:
            self._poller.remove(channel.fileno())
            channel.close()

    def _try_later(self) -> None:
        if self._retry is None:
            self._retry = self._reactor.callLater(self._delay, self.start)
            self._delay = min(self._delay * 2, MAX_RETRY_SECONDS)

    def _change(self, state: LineState, reason: str) -> None:
        self._state = state
        self._reason = reason
        match state:
            case LineState.OPEN:
                self._log.info("{name}: line open", name=self._name)
            case LineState.LOST:
                self._log.warn("{name}: line lost: {reason}", name=self._name, reason=reason)
            case LineState.CLOSED | LineState.CONNECTING:
                self._log.debug("{name}: line {state}", name=self._name, state=state.value)
            case _:
                assert_never(state)
        for listener in self._listeners:
            listener(state, reason)

    # Reading, once each time the poller calls.

    def _read(self, events: int) -> int:
        receive = self._receive
        try:
            count = receive() if events != WRITE else None
        except BlockingIOError:
            count = None
        except OSError as error:
            self._lose(error.strerror or str(error))
            return 0
        if count == 0:
            self._lose("the other end closed it")
            return 0
        if events & WRITE:
            self._flush()
        return count or 0

    def _read_coded(self, events: int) -> int:
        """Read a line on which not every byte is text."""
        channel = self._channel
        assert channel is not None
        codec = channel.codec
        assert codec is not None
        answer = b""
        on_wire: int | None = None

        def read_text_into(window: memoryview) -> int:
            nonlocal answer, on_wire
            wire = bytearray(len(window))
            on_wire = channel.read_into(memoryview(wire))
            if on_wire is None:
                return 0
            # A codec only takes away, so the text fits where the wire's bytes would have.
            text, answer = codec.receive(bytes(wire[:on_wire]))
            window[: len(text)] = text
            return len(text)

        try:
            if events != WRITE:
                self._sink.receive(read_text_into)
            if answer and self._channel is channel:
                self._send(channel, answer)
        except BlockingIOError:
            on_wire = None
        except OSError as error:
            self._lose(error.strerror or str(error))
            return 0
        except LineError:
            self._lose("it sends commands but does not read the answers")
            return 0
        if on_wire == 0:
            self._lose("the other end closed it")
            return 0
        if events & WRITE:
            self._flush()
        return on_wire or 0

    # Writing.

    def _send(self, channel: Channel, data: bytes) -> None:
        """Write at once what can be, queue the rest."""
        if not data:
            return
        if len(self._queue) + len(data) > MAX_QUEUE_BYTES:
            raise LineError(
                f"cannot write to {self._name}",
                why=f"{len(self._queue)} bytes wait already: the other end does not read",
                todo="send less at a time, or wait",
            )
        self._poller.wake()
        waiting = bool(self._queue)
        self._queue += data
        if not waiting and self._flush_some(channel):
            self._poller.change(channel.fileno(), READ | WRITE)

    def _flush(self) -> None:
        channel = self._channel
        if channel is not None and not self._flush_some(channel) and self._channel is channel:
            self._poller.change(channel.fileno(), READ)

    def _flush_some(self, channel: Channel) -> bool:
        """Write once; return whether more is waiting on an open channel."""
        if not self._queue:
            return False
        try:
            count = channel.write(bytes(self._queue))
        except BlockingIOError:
            return True
        except OSError:
            # The read side, which has the last words of the other end, says that and why it is lost.
            self._queue.clear()
            return False
        del self._queue[:count]
        return bool(self._queue)
