"""Byte streams for RSP: descriptors of our own, because a reply should not wait for the reactor's next round.

Twisted's transports put what is written in a buffer and send it when the reactor comes round; ``Stream`` sends at
once when nothing is queued, which saves a round of the loop in each direction (``scripts/bench/rsp_latency.py``
measures a request).  Only public API of the reactor is used.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor, IReadWriteDescriptor, IWriteDescriptor
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from zope.interface import implementer

from kbridge.errors import KbridgeError
from kbridge.transports.endpoints import Endpoint, Tcp, Unix

RECEIVE_BYTES: Final = 65536
MOST_BUFFERED: Final = 8 << 20
"""A peer that does not read loses its connection when this many bytes wait for it."""
CONNECT_SECONDS: Final = 5.0


@implementer(IReadWriteDescriptor)
class Stream:
    """One connected stream socket, watched by the reactor or by a ``StreamPoller``.

    ``received`` is called with what arrives, ``lost`` once with the reason when the connection is gone, by
    whomever it was closed.
    """

    def __init__(
        self,
        reactor: Any,
        connection: socket.socket,
        received: Callable[[bytes], None],
        lost: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        connection.setblocking(False)
        self._socket = connection
        self._received = received
        self._lost = lost
        self._buffered: list[bytes] = []
        self._buffered_bytes = 0
        self._closing = False
        self._connected = True
        self._recv: Callable[[int], bytes] = connection.recv
        self._reactor.addReader(self)

    def fileno(self) -> int:
        """Return the descriptor; -1 once closed."""
        return self._socket.fileno()

    def doRead(self) -> Failure | None:  # noqa: N802 (the reactor's name)
        """Receive once: level-triggered polling calls again where more waits."""
        try:
            data = self._recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            return Failure(ConnectionLost(os.strerror(error.errno or 0)))
        if not data:
            return Failure(ConnectionDone())
        if not self._closing:
            self._received(data)
        return None

    def send(self, data: bytes) -> None:
        """Send now what the socket takes, the rest when it can; the order is kept."""
        if not self._connected or self._closing:
            return
        if self._buffered:
            self._buffer(data)
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The reader sees the same error and reports it, once.
            return
        if sent < len(data):
            self._buffer(data[sent:])
            self._reactor.addWriter(self)

    def _buffer(self, data: bytes) -> None:
        self._buffered.append(data)
        self._buffered_bytes += len(data)
        if self._buffered_bytes > MOST_BUFFERED:
            self.abort(f"the peer left {MOST_BUFFERED} bytes unread")

    def doWrite(self) -> Failure | None:  # noqa: N802 (the reactor's name)
        """Send what waits."""
        data = b"".join(self._buffered)
        try:
            sent = self._socket.send(data) if data else 0
        except BlockingIOError:
            return None
        except OSError as error:
            return Failure(ConnectionLost(os.strerror(error.errno or 0)))
        rest = data[sent:]
        self._buffered = [rest] if rest else []
        self._buffered_bytes = len(rest)
        if not rest:
            self._reactor.removeWriter(self)
            if self._closing:
                self._end("closed")
        return None

    def close(self) -> None:
        """Close once everything was sent."""
        if not self._buffered:
            self._end("closed")
        else:
            self._closing = True

    def abort(self, reason: str) -> None:
        """Close now, whatever waits."""
        self._end(reason)

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802 (the reactor's name)
        """Told by the reactor that reading or writing failed."""
        self._end(
            reason.getErrorMessage() if reason.check(ConnectionLost) else "the peer closed the connection"
        )

    def _end(self, reason: str) -> None:
        if not self._connected:
            return
        self._connected = False
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._socket.close()
        self._buffered.clear()
        lost, self._lost = self._lost, _nobody
        lost(reason)

    def logPrefix(self) -> str:  # noqa: N802 (the reactor's name)
        """Name this descriptor in Twisted's log."""
        return "stream"


def _nobody(reason: str) -> None:
    """Stand in for a listener that has been told already."""


@dataclass(frozen=True, slots=True)
class SocketAccess:
    """Who may connect to a socket: its file's mode, and the group it is given to (None: the process's own)."""

    mode: int = 0o600
    group: int | None = None


PRIVATE: Final = SocketAccess()


@implementer(IReadDescriptor)
class Listener:
    """A listening unix socket that hands over connected sockets.

    A stale socket file is replaced; one on which somebody still listens is an error.  The file is removed when
    the listener stops, if it is still ours.  ``listening``: a socket that listens at ``path`` already.
    """

    def __init__(
        self,
        reactor: Any,
        path: Path,
        accepted: Callable[[socket.socket], None],
        access: SocketAccess = PRIVATE,
        listening: socket.socket | None = None,
    ) -> None:
        self._reactor = reactor
        self.path = path
        self._accepted = accepted
        self._socket = listening or self._listen(access)
        self._socket.setblocking(False)
        self._inode = path.stat().st_ino
        self._connected = True
        self._reactor.addReader(self)

    def _listen(self, access: SocketAccess) -> socket.socket:
        path = self.path
        replace_stale(path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The mode must be right from the first moment, not after a chmod.
        old = os.umask(0o777 & ~access.mode)
        try:
            made.bind(str(path))
            if access.group is not None:
                os.chown(path, -1, access.group)
        except OSError as error:
            made.close()
            raise KbridgeError(
                f"cannot make the socket {path}", why=str(error), todo="check the folder and its owner"
            ) from error
        finally:
            os.umask(old)
        made.listen(64)
        return made

    def fileno(self) -> int:
        """Return the descriptor; -1 once closed."""
        return self._socket.fileno()

    def doRead(self) -> None:  # noqa: N802 (the reactor's name)
        """Accept one connection."""
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                # Out of descriptors: the connection stays queued; try again when some may be free.
                self._reactor.removeReader(self)
                self._reactor.callLater(1.0, self._again)
                return
            if error.errno == errno.ECONNABORTED:
                return
            raise
        self._accepted(connection)

    def _again(self) -> None:
        if self._connected:
            self._reactor.addReader(self)

    def close(self) -> None:
        """Stop listening and remove the socket file."""
        if not self._connected:
            return
        self._connected = False
        self._reactor.removeReader(self)
        self._socket.close()
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            pass

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802 (the reactor's name)
        """Told by the reactor when it shuts down."""
        self.close()

    def logPrefix(self) -> str:  # noqa: N802 (the reactor's name)
        """Name this descriptor in Twisted's log."""
        return "listener"


def replace_stale(path: Path) -> None:
    """Remove a socket file on which nobody listens; raise ``KbridgeError`` for anything else in the way."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise KbridgeError(f"{path} is in the way", why="it is no socket", todo="move it away")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(1.0)
        probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise KbridgeError(f"cannot use the socket {path}", why=error.strerror or str(error)) from error
    else:
        raise KbridgeError(
            f"{path} is in use", why="somebody listens on it", todo="is another `kbridge up` running?"
        )
    finally:
        probe.close()


@implementer(IWriteDescriptor)
class _Connecting:
    """A socket whose connection is under way."""

    def __init__(
        self, reactor: Any, connection: socket.socket, done: Deferred[socket.socket], name: str
    ) -> None:
        self._reactor = reactor
        self._socket = connection
        self._done = done
        self._name = name
        self._connected = True
        self._timeout = reactor.callLater(CONNECT_SECONDS, self._failed, "no answer")
        self._reactor.addWriter(self)

    def fileno(self) -> int:
        return self._socket.fileno()

    def doWrite(self) -> None:  # noqa: N802 (the reactor's name)
        problem = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            self._failed(os.strerror(problem))
            return
        self._finish()
        self._done.callback(self._socket)

    def cancel(self) -> None:
        """Give up."""
        if self._connected:
            self._finish()
            self._socket.close()

    def _finish(self) -> None:
        self._connected = False
        self._reactor.removeWriter(self)
        if self._timeout.active():
            self._timeout.cancel()

    def _failed(self, why: str) -> None:
        if self._connected:
            self._finish()
            self._socket.close()
            self._done.errback(KbridgeError(f"cannot connect to {self._name}", why=why))

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802 (the reactor's name)
        # The reactor sees the hang-up first; what caused it is still on the socket.
        problem = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if self._connected else 0
        self._failed(os.strerror(problem) if problem else "the connection was lost")

    def logPrefix(self) -> str:  # noqa: N802 (the reactor's name)
        return "connecting"


async def connect(reactor: Any, endpoint: Endpoint) -> socket.socket:
    """Connect to a unix or tcp endpoint; returns the connected, non-blocking socket.

    Raises ``KbridgeError`` when that fails or takes longer than ``CONNECT_SECONDS``.
    """
    family: int
    address: Any
    match endpoint:
        case Unix():
            family, address = socket.AF_UNIX, endpoint.path
        case Tcp():
            addresses = await _resolve(reactor, endpoint)
            family, address = addresses[0]
        case _:
            raise KbridgeError(f"{endpoint} cannot carry a debug stub", todo="use unix:PATH or tcp:HOST:PORT")
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    if family != socket.AF_UNIX:
        # Requests are small and each is waited for.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        problem = connection.connect_ex(address)
    except OSError as error:
        connection.close()
        raise KbridgeError(f"cannot connect to {endpoint}", why=str(error)) from error
    if problem == 0:
        return connection
    if problem not in (errno.EINPROGRESS, errno.EAGAIN):
        connection.close()
        raise KbridgeError(f"cannot connect to {endpoint}", why=os.strerror(problem))
    if problem == errno.EAGAIN:
        # A unix socket whose backlog is full does not become writable later: say so at once.
        connection.close()
        raise KbridgeError(f"cannot connect to {endpoint}", why="its queue of connections is full")
    waiting: list[_Connecting] = []
    done: Deferred[socket.socket] = Deferred(lambda _: waiting[0].cancel())
    waiting.append(_Connecting(reactor, connection, done, str(endpoint)))
    return await done


async def _resolve(reactor: Any, endpoint: Tcp) -> list[tuple[int, Any]]:
    try:
        found = await deferToThreadPool(
            reactor,
            reactor.getThreadPool(),
            socket.getaddrinfo,
            endpoint.host,
            endpoint.port,
            type=socket.SOCK_STREAM,
        )
    except OSError as error:
        raise KbridgeError(f"cannot find {endpoint.host}", why=str(error)) from error
    return [(family, address) for family, _, _, _, address in found]
