"""Readers of a console ring, each with a cursor of its own: none waits for another, none makes memory grow.

A reader that falls behind by more than the ring is moved on to the oldest byte held, and told how much it
lost.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from kbridge.console.recorder import Recorder
    from kbridge.console.ring import RingView

SEND_BYTES: Final = 131072
SENDS_A_TURN: Final = 4
"""A reader that catches up gives way to the rest of the reactor after so many sends."""
RECEIVE_BYTES: Final = 4096
SOCKET_BYTES: Final = 3 << 16
"""A socket's send buffer, of which the kernel makes twice as much: a reader may be off its core for three sends before
it falls behind, and ten of them stay within the cache of a processor."""


@dataclass(frozen=True, slots=True)
class Data:
    """Console bytes, the first of them at ``offset``."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """``lost`` bytes from ``offset`` on came and went before this reader took them."""

    offset: int
    lost: int


class Cursor:
    """A reader's place in a ring, for readers that ask (HTTP, WebSocket, another process)."""

    def __init__(self, ring: RingView, offset: int | None = None) -> None:
        """Start at ``offset``; ``None`` is the oldest byte held.  An offset past the head is the head."""
        self._ring = ring
        self.offset = ring.oldest if offset is None else min(offset, ring.head)

    @property
    def behind(self) -> int:
        """How many bytes this reader has not taken yet, lost ones included."""
        return self._ring.head - self.offset

    def next(self, max_bytes: int) -> Data | Gap | None:
        """Return the next bytes, what was lost instead of them, or ``None`` when there is nothing yet."""
        ring = self._ring
        while self.offset < ring.head:
            data = ring.read(self.offset, max_bytes)
            if data is not None:
                found = Data(self.offset, data)
                self.offset += len(data)
                return found
            lost = ring.oldest - self.offset
            if lost > 0:
                gap = Gap(self.offset, lost)
                self.offset += lost
                return gap
        return None


def gap_notice(lost: int) -> bytes:
    """Return what a reader of raw bytes sees in place of what it lost."""
    return b"\r\n[kbridge: %d bytes lost]\r\n" % lost


@implementer(IReadWriteDescriptor)
class RingReader:
    """Serves a connected stream socket straight from a recorder's ring.

    Sends at once when bytes come, and asks for writability only after the socket had enough.  What the peer
    sends goes to ``received`` in pieces of at most 4 KB.  ``lost`` is called once with the reason when the
    peer is gone or ``close`` was called.
    """

    def __init__(
        self,
        reactor: Any,
        connection: socket.socket,
        recorder: Recorder,
        *,
        offset: int | None = None,
        received: Callable[[bytes], None] | None = None,
        lost: Callable[[str], None] | None = None,
    ) -> None:
        """Serve from ``offset`` on; ``None`` is the head: only what comes from now on."""
        self._reactor = reactor
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._socket = connection
        self._ring = recorder.ring
        self._received = received
        self._lost = lost
        self._notice = b""
        self._blocked = False
        self.offset = self._ring.head if offset is None else min(offset, self._ring.head)
        """The offset of the next byte to send."""
        self.lost_bytes = 0
        """How many bytes this reader lost because it was too slow."""
        self._connected = True
        self._unwatch = recorder.watch(self._more)
        reactor.addReader(self)
        self._more()

    def tell(self, words: bytes) -> None:
        """Put ``words`` between the console's bytes; the caller sees to it that they are few."""
        self._notice += words
        self._more()

    def close(self) -> None:
        """End the connection."""
        if self._connected:
            self.connectionLost(Failure(ConnectionDone("closed by kbridge")))

    # What the reactor calls.

    def fileno(self) -> int:
        """Return the socket's descriptor; -1 once closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:  # noqa: N802  (Twisted's name)
        """Return the name for logs."""
        return "console reader"

    def doRead(self) -> Failure | None:  # noqa: N802  (Twisted's name)
        """Take what the peer sent."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            return Failure(ConnectionLost(error.strerror or str(error)))
        if not data:
            return Failure(ConnectionDone("the reader left"))
        if self._received is not None:
            self._received(data)
        return None

    def doWrite(self) -> Failure | None:  # noqa: N802  (Twisted's name)
        """Go on sending: the socket has room, or it is our turn again."""
        self._blocked = False
        self._reactor.removeWriter(self)
        return self._send()

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802  (Twisted's name)
        """End: called by the reactor, and by ``close``."""
        if not self._connected:
            return
        self._connected = False
        self._unwatch()
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._socket.close()
        if self._lost is not None:
            self._lost(reason.getErrorMessage())

    def _more(self) -> None:
        """Bytes came: send them, unless the socket has enough already."""
        if not self._blocked:
            failure = self._send()
            if failure is not None:
                self.connectionLost(failure)

    def _send(self) -> Failure | None:
        ring = self._ring
        try:
            for _ in range(SENDS_A_TURN):
                if self._notice:
                    sent = self._socket.send(self._notice)
                    self._notice = self._notice[sent:]
                    if self._notice:
                        break
                behind = ring.oldest - self.offset
                if behind > 0:
                    self.offset += behind
                    self.lost_bytes += behind
                    self._notice = gap_notice(behind)
                    continue
                view = ring.view(self.offset, SEND_BYTES)
                if not view:
                    return None
                sent = self._socket.send(view)
                self.offset += sent
                if sent < len(view):
                    break
            else:
                if self.offset == ring.head and not self._notice:
                    return None
        except BlockingIOError:
            pass
        except OSError as error:
            return Failure(ConnectionLost(error.strerror or str(error)))
        self._blocked = True
        self._reactor.addWriter(self)
        return None
