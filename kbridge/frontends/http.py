"""The control socket: the HTTP API of a relay, on a unix socket.

    Listener ──▶ ControlChannel (twisted.web's HTTP/1.1) ──▶ ControlRequest ──▶ a row of ``routes``
                        └──────────── upgraded ───────────▶ WebSocket ──▶ SocketSession

Limits: ``MAX_CONNECTIONS``; a head of 16 KiB in 64 lines, a body of ``MAX_BODY_BYTES``; ``REQUEST_SECONDS`` for
a request to arrive whole, and as long between two of a connection.  An answer may take as long as it takes.
"""

from __future__ import annotations

import json
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, connectionDone
from twisted.web import http

from kbridge.frontends import websockets
from kbridge.frontends.answering import Answering
from kbridge.frontends.problems import PROBLEM_TYPE, Kind, Problem
from kbridge.peers import user_of
from kbridge.transports.streams import PRIVATE, Listener, SocketAccess

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from twisted.internet.interfaces import IAddress, IDelayedCall
    from twisted.python.failure import Failure

    from kbridge.daemon import Daemon
    from kbridge.frontends.log_stream import LogStream
    from kbridge.frontends.sessions import SocketSession

MAX_CONNECTIONS: Final = 128
MAX_BODY_BYTES: Final = 65536
REQUEST_SECONDS: Final = 30


class ControlSocket:
    """Serves the API of ``daemon`` at ``path``."""

    def __init__(self, reactor: Any, daemon: Daemon, path: Path, access: SocketAccess = PRIVATE) -> None:
        self._reactor = reactor
        self._path = path
        self._access = access
        self._listener: Listener | None = None
        self._factory = ControlFactory(reactor, daemon)

    def start(self) -> None:
        """Listen; raises ``KbridgeError`` when the socket cannot be made."""
        self._listener = Listener(self._reactor, self._path, self._accepted, self._access)

    async def stop(self) -> None:
        """Stop listening, end all connections; returns when they are gone."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._factory.end()

    def guest_gone(self) -> None:
        """Have those who follow a guest that is no longer there told so."""
        for channel in tuple(self._factory.channels):
            channel.wake()

    def _accepted(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if len(self._factory.channels) >= MAX_CONNECTIONS:
            _refuse(connection)
            return
        # The reactor has a descriptor of its own afterwards.
        self._reactor.adoptStreamConnection(connection.fileno(), connection.family, self._factory)
        connection.close()


def _answer(problem: Problem) -> bytes:
    """Return a whole answer for a connection that is not to go on."""
    body = json.dumps(problem.as_json()).encode()
    kind = problem.kind
    head = f"HTTP/1.1 {kind.status} {kind.title}\r\nContent-Type: {PROBLEM_TYPE}\r\nConnection: close\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _refuse(connection: socket.socket) -> None:
    try:
        connection.send(_answer(Problem(Kind.BUSY, f"{MAX_CONNECTIONS} connections are open", "close some")))
    except OSError:
        # The peer is gone already: nobody to tell.
        return
    finally:
        connection.close()


class ControlFactory(Factory):
    """Makes the channels of a control socket and knows those that are open."""

    noisy = False

    def __init__(self, reactor: Any, daemon: Daemon) -> None:
        self.reactor = reactor
        self.daemon = daemon
        self.channels: set[ControlChannel] = set()
        self._ended: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> Any:  # noqa: N802 (Twisted's name)
        """Make a channel."""
        channel = ControlChannel(self)
        # What twisted.web's own factory sets.
        channel.callLater = self.reactor.callLater
        channel.timeOut = REQUEST_SECONDS
        return channel

    def log(self, request: http.Request) -> None:
        """Write no access log: what changes something is on the guest's time line."""

    def gone(self, channel: ControlChannel) -> None:
        """Forget a channel."""
        self.channels.discard(channel)
        if self._ended is not None and not self.channels:
            ended, self._ended = self._ended, None
            ended.callback(None)

    async def end(self) -> None:
        """End all connections; returns when they are gone."""
        if self.channels:
            self._ended = Deferred()
            for channel in tuple(self.channels):
                channel.end()
            await self._ended


class ControlChannel(http.HTTPChannel):
    """One connection."""

    maxHeaders = 64  # noqa: N815 (Twisted's name)
    factory: ControlFactory
    transport: Any

    callLater: Callable[..., IDelayedCall]  # noqa: N815 (Twisted's name)

    def __init__(self, factory: ControlFactory) -> None:
        http.HTTPChannel.__init__(self)
        self.factory = factory
        self.requestFactory = ControlRequest
        self.user = ""
        self._socket: websockets.WebSocket | None = None
        self._stream: LogStream | None = None
        self._deaf = False
        self._full = False
        self._answered: http.Request | None = None

    def connectionMade(self) -> None:  # noqa: N802 (Twisted's name)
        """Begin."""
        self.user = user_of(self.transport.getHandle())
        self.factory.channels.add(self)
        http.HTTPChannel.connectionMade(self)

    def resetTimeout(self) -> None:  # noqa: N802 (Twisted's name)
        """Leave the deadline of a request as it is: one that comes byte by byte must end too."""

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 (Twisted's name)
        """Take what the peer sent."""
        if self._socket is not None:
            self._socket.dataReceived(data)
        elif not self._deaf:
            http.HTTPChannel.dataReceived(self, data)

    def rawDataReceived(self, data: bytes) -> None:  # noqa: N802 (Twisted's name)
        """Take what is no line: a body, or frames that came together with the request for the upgrade."""
        if self._socket is not None:
            self._socket.dataReceived(data)
        else:
            http.HTTPChannel.rawDataReceived(self, data)

    def pauseProducing(self) -> None:  # noqa: N802 (Twisted's name)
        """Told by the transport that the peer does not read as fast: read no more of what it sends.

        Twisted's own goes on reading while an answer is under way, and keeps it all.
        """
        self._full = True
        http.HTTPChannel.pauseProducing(self)
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:  # noqa: N802 (Twisted's name)
        """Told by the transport that it is empty."""
        self._full = False
        self.transport.resumeProducing()
        http.HTTPChannel.resumeProducing(self)
        if self._answered is not None:
            answered, self._answered = self._answered, None
            http.HTTPChannel.requestDone(self, answered)

    def requestDone(self, request: http.Request) -> None:  # noqa: N802 (Twisted's name)
        """Go on to the next request, once the peer has read the answer: a thousand fit in one read of ours."""
        if self._full:
            self._answered = request
        else:
            http.HTTPChannel.requestDone(self, request)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802 (Twisted's name)
        """End."""
        if self._socket is not None:
            self._socket.connectionLost(reason)
        http.HTTPChannel.connectionLost(self, reason)
        self.factory.gone(self)

    @property
    def daemon(self) -> Daemon:
        """The relay."""
        return self.factory.daemon

    @property
    def reactor(self) -> Any:
        """The reactor."""
        return self.factory.reactor

    def upgrade(self, connection: Any, answer: bytes, session: SocketSession) -> None:
        """Become a WebSocket; there is no way back."""
        transport = self.transport
        transport.unregisterProducer()
        transport.write(answer)
        self._socket = websockets.WebSocket(self.factory.reactor, transport, connection, session)
        self._socket.start()

    def refuse_body(self) -> None:
        """Answer that the body is too large, and hear no more of it."""
        self._deaf = True
        self.transport.write(_answer(Problem(Kind.TOO_LARGE, f"a body has at most {MAX_BODY_BYTES} bytes")))
        http.HTTPChannel.loseConnection(self)

    def stream(self, stream: LogStream | None) -> None:
        """Remember the stream that is being sent, or that there is none."""
        self._stream = stream

    def wake(self) -> None:
        """Have a session or stream look whether it has ended."""
        if self._socket is not None:
            self._socket.wake()
        if self._stream is not None:
            self._stream.wake()

    def end(self) -> None:
        """End: the relay stops."""
        if self._socket is not None:
            self._socket.close(1001, "the relay stops")
        else:
            self.transport.abortConnection()


class ControlRequest(http.Request):
    """One request."""

    channel: ControlChannel
    content: BytesIO
    _too_large = False

    def gotLength(self, length: int | None) -> None:  # noqa: N802 (Twisted's name)
        """Keep the body in memory, where it is bounded; Twisted would fill a file without end."""
        self.content = BytesIO()
        self._check_size(length or 0)

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802 (Twisted's name)
        """Take a piece of the body."""
        self._check_size(self.content.tell() + len(data))
        if not self._too_large:
            self.content.write(data)

    def _check_size(self, size: int) -> None:
        if size > MAX_BODY_BYTES and not self._too_large:
            self._too_large = True
            self.channel.refuse_body()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:  # noqa: N802 (Twisted's name)
        """Serve the request, which has arrived whole."""
        if self._too_large:
            return
        self.content.seek(0)
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.process()

    def process(self) -> None:
        """Serve the request."""
        Answering(self, self.channel).start()
