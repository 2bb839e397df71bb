"""A WebSocket (RFC 6455) of the control socket: ``wsproto`` on a transport, with limits and backpressure.

Twisted's own server side keeps messages of any size and cannot refuse an upgrade; this one does both, and
asks its session for messages only while the transport has room.

in          bytes of the peer; the transport's pause and resume; the session's wake-up
out         frames; at most one answer to a ping waits, the latest
states      open; closing (said so, waiting at most ``CLOSE_SECONDS`` for the transport to empty); closed
invariant   kept for a peer: one message of at most ``MAX_MESSAGE_BYTES``, what the transport took before it
            asked to pause, and what the session keeps
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

import h11
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from kbridge.frontends.sessions import SocketSession

MAX_MESSAGE_BYTES: Final = 65536
CLOSE_SECONDS: Final = 5.0
MESSAGES_A_TURN: Final = 16
"""Then the rest of the reactor has its turn."""
_MAX_REASON_BYTES: Final = 120


def accept(headers: list[tuple[bytes, bytes]], target: bytes) -> tuple[Connection, bytes]:
    """Check an upgrade request; return the connection and the bytes that accept it.

    Raises ``ValueError`` with what is wrong.
    """
    handshake = H11Handshake(ConnectionType.SERVER)
    try:
        handshake.initiate_upgrade_connection(headers, target)
        answer = handshake.send(AcceptConnection())
    except (RemoteProtocolError, h11.ProtocolError, UnicodeError) as error:
        raise ValueError(f"this is no WebSocket upgrade: {error}") from error
    connection = handshake.connection
    assert connection is not None
    return connection, answer


class _State(Enum):
    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()


@implementer(IPushProducer)
class WebSocket:
    """One upgraded connection; ``transport`` has no other producer."""

    _log = Logger()

    def __init__(self, reactor: Any, transport: Any, connection: Connection, session: SocketSession) -> None:
        self._reactor = reactor
        self._transport = transport
        self._connection = connection
        self._session = session
        self._state = _State.OPEN
        self._paused = False
        self._pong: Pong | None = None
        self._text: list[str] = []
        self._data = bytearray()
        self._size = 0
        self._pumping = False
        self._turn: Any = None
        self._deadline: Any = None

    def start(self) -> None:
        """Begin; the answer to the upgrade was written."""
        self._transport.registerProducer(self, True)
        self._session.start(self.wake)
        self.wake()

    # What the transport calls.

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 (Twisted's name)
        """Take what the peer sent."""
        if self._state is not _State.OPEN:
            return
        try:
            self._connection.receive_data(data)
            for event in self._connection.events():
                self._take(event)
        except RemoteProtocolError as error:
            self.close(CloseReason.PROTOCOL_ERROR, str(error))

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802 (Twisted's name)
        """End."""
        if self._state is _State.CLOSED:
            return
        was_open = self._state is _State.OPEN
        self._state = _State.CLOSED
        for timer in (self._turn, self._deadline):
            if timer is not None and timer.active():
                timer.cancel()
        if was_open:
            self._session.stop()

    def pauseProducing(self) -> None:  # noqa: N802 (Twisted's name)
        """Send no more: the peer does not read as fast."""
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802 (Twisted's name)
        """Go on sending."""
        self._paused = False
        self._pump()

    def stopProducing(self) -> None:  # noqa: N802 (Twisted's name)
        """The transport is going: ``connectionLost`` follows."""
        self._paused = True

    # Sending.

    def wake(self) -> None:
        """Send what the session has, unless the peer must read first or it happens soon anyway."""
        if not self._paused and self._turn is None:
            self._pump()

    def close(self, code: int, reason: str) -> None:
        """Say goodbye and close when all was sent, or after ``CLOSE_SECONDS``."""
        if self._state is not _State.OPEN:
            return
        self._state = _State.CLOSING
        self._session.stop()
        if self._connection.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            words = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
            self._transport.write(self._connection.send(CloseConnection(code, words)))
        self._transport.unregisterProducer()
        self._deadline = self._reactor.callLater(CLOSE_SECONDS, self._transport.abortConnection)
        self._transport.loseConnection()

    def _pump(self) -> None:
        # A session may wake us from within ``next``; what it has is sent by the loop that runs.
        if self._pumping:
            return
        self._pumping = True
        try:
            self._send_some()
        finally:
            self._pumping = False

    def _send_some(self) -> None:
        if self._pong is not None and not self._paused and self._state is _State.OPEN:
            pong, self._pong = self._pong, None
            self._transport.write(self._connection.send(pong))
        for _ in range(MESSAGES_A_TURN):
            if self._paused or self._state is not _State.OPEN:
                return
            message = self._session.next()
            if message is None:
                if self._session.ended:
                    self.close(CloseReason.GOING_AWAY, self._session.ended)
                return
            event = TextMessage(message) if isinstance(message, str) else BytesMessage(message)
            self._transport.write(self._connection.send(event))
        self._turn = self._reactor.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        self._turn = None
        self.wake()

    # Receiving.

    def _take(self, event: object) -> None:
        if self._state is not _State.OPEN:
            # One of the events before it was the last.
            return
        match event:
            case TextMessage() | BytesMessage():
                self._gather(event)
            case Ping():
                # Only the latest needs an answer (RFC 6455, 5.5.3), and none piles up.
                self._pong = event.response()
                self.wake()
            case CloseConnection(code=code):
                self.close(code, "")
            case _:
                return

    def _gather(self, event: TextMessage | BytesMessage) -> None:
        self._size += len(event.data)
        if self._size > MAX_MESSAGE_BYTES:
            self.close(CloseReason.MESSAGE_TOO_BIG, f"a message has at most {MAX_MESSAGE_BYTES} bytes")
            return
        if isinstance(event, BytesMessage):
            self._data += event.data
        elif event.data:
            self._text.append(event.data)
        if event.message_finished:
            text, data = "".join(self._text), bytes(self._data)
            self._text.clear()
            self._data.clear()
            self._size = 0
            self._deliver(text if isinstance(event, TextMessage) else data)

    def _deliver(self, message: str | bytes) -> None:
        try:
            if isinstance(message, str):
                self._session.text_received(message)
            else:
                self._session.bytes_received(message)
        except ValueError as error:
            self.close(CloseReason.POLICY_VIOLATION, str(error))
