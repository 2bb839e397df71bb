"""Lines on unix and TCP sockets that the other side listens on."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import TYPE_CHECKING, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface import implementer

from kbridge.errors import LineError

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IHostnameResolver, IHostResolution

    from kbridge.transports.channels import Channel, Waiter
    from kbridge.transports.endpoints import Break

MAX_ADDRESSES: Final = 8
"""Of a host with more addresses only the first are tried."""


class SocketChannel:
    """A connected stream socket, every byte of it text."""

    codec = None

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        # Bound once: these are called for each piece of every line.
        self.fileno = sock.fileno
        self.read_into = sock.recv_into
        self.write = sock.send

    def set_break(self, on: bool, how: Break) -> bytes:
        """Refuse: a socket carries bytes only."""
        raise LineError("cannot send BREAK", why="a socket carries bytes only")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class UnixTransport:
    """A unix stream socket."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def open(self) -> Channel:
        """Connect, answered at once: raises ``OSError`` when it is not there, or its queue is full."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        return SocketChannel(sock)


class TcpTransport:
    """A TCP connection; names are looked up off the reactor, and each address tried in turn."""

    def __init__(self, waiter: Waiter, resolver: IHostnameResolver, host: str, port: int) -> None:
        self._waiter = waiter
        self._resolver = resolver
        self._host = host
        self._port = port

    async def open(self) -> Channel:
        """Connect; raises ``OSError`` or ``LineError``."""
        return SocketChannel(await self.connect())

    async def connect(self) -> socket.socket:
        """Return a connected non-blocking socket, or raise the last address's ``OSError``."""
        failure: Exception = LineError(f"cannot reach {self._host}", why=f"no address for {self._host}")
        for family, address in await self._addresses():
            try:
                return await self._connect(family, address)
            except OSError as error:
                failure = error
        raise failure

    async def _addresses(self) -> list[tuple[socket.AddressFamily, str]]:
        try:
            literal = ipaddress.ip_address(self._host)
        except ValueError:
            found = _Addresses()
            self._resolver.resolveHostName(found, self._host, self._port)
            return await found.done
        return [(socket.AF_INET6 if literal.version == 6 else socket.AF_INET, self._host)]

    async def _connect(self, family: socket.AddressFamily, address: str) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            code = sock.connect_ex((address, self._port))
            if code == errno.EINPROGRESS:
                await self._waiter.writable(sock.fileno())
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            _tune(sock)
        except BaseException:
            sock.close()
            raise
        return sock


def _tune(sock: socket.socket) -> None:
    """Send each key at once, and notice a peer that is gone without a word within about two minutes."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


@implementer(IResolutionReceiver)
class _Addresses:
    """Gathers the addresses that a look-up gives."""

    def __init__(self) -> None:
        self._found: list[tuple[socket.AddressFamily, str]] = []
        self.done: Deferred[list[tuple[socket.AddressFamily, str]]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:  # noqa: N802, N803
        """Begin; the look-up itself cannot be taken back, its answer is then not used."""

    def addressResolved(self, address: IAddress) -> None:  # noqa: N802
        """Take one address."""
        host = getattr(address, "host", None)
        kind = getattr(address, "type", None)
        if isinstance(host, str) and len(self._found) < MAX_ADDRESSES:
            self._found.append((socket.AF_INET6 if kind == "TCP6" else socket.AF_INET, host))

    def resolutionComplete(self) -> None:  # noqa: N802
        """Hand them over."""
        if not self.done.called:
            self.done.callback(self._found)
