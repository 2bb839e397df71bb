"""RSP sockets: what is sent, in which order, how much is kept, and who may connect."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from kbridge.errors import KbridgeError
from kbridge.transports.endpoints import Pty, Tcp, Unix
from kbridge.transports.streams import MOST_BUFFERED, Listener, SocketAccess, Stream, connect, replace_stale

TIMEOUT = 20


class StreamTest(TestCase):
    def setUp(self) -> None:
        ours, self.far = socket.socketpair()
        self.far.settimeout(TIMEOUT)
        self.addCleanup(self.far.close)
        self.received: list[bytes] = []
        self.lost: list[str] = []
        self.ended: Deferred[None] = Deferred()
        self.ended.addTimeout(TIMEOUT, reactor)
        self.arrived: Deferred[None] | None = None
        self.stream = Stream(reactor, ours, self._received, self._lost)

    def tearDown(self) -> None:
        self.stream.abort("the test is over")

    def _received(self, data: bytes) -> None:
        self.received.append(data)
        if self.arrived is not None:
            arrived, self.arrived = self.arrived, None
            arrived.callback(None)

    def _lost(self, reason: str) -> None:
        self.lost.append(reason)
        if not self.ended.called:
            self.ended.callback(None)

    async def test_bytes_pass_both_ways(self) -> None:
        self.arrived = Deferred()
        self.far.sendall(b"$g#67")
        await self.arrived
        self.stream.send(b"+")
        # At once: nothing waits for the reactor.
        assert self.far.recv(10) == b"+"
        assert self.received == [b"$g#67"]

    async def test_the_end_is_told_once_with_its_reason(self) -> None:
        self.far.close()
        await self.ended
        self.stream.abort("again")
        self.stream.send(b"nobody")
        assert self.lost == ["the peer closed the connection"]

    async def test_what_a_slow_peer_leaves_is_sent_in_order_before_the_close(self) -> None:
        pieces = [bytes([number]) * 100_000 for number in range(30)]
        for piece in pieces:
            self.stream.send(piece)
        self.stream.close()
        assert not self.lost
        heard = bytearray()
        self.far.setblocking(False)
        wanted = b"".join(pieces)
        while len(heard) < len(wanted):
            try:
                heard += self.far.recv(1 << 20)
            except BlockingIOError:
                turn: Deferred[None] = Deferred()
                reactor.callLater(0, turn.callback, None)  # type: ignore[attr-defined]
                await turn
        assert bytes(heard) == wanted
        await self.ended
        assert self.lost == ["closed"]

    async def test_a_peer_that_never_reads_loses_its_connection(self) -> None:
        sent = 0
        while not self.lost:
            self.stream.send(bytes(65536))
            sent += 65536
            assert sent < 2 * MOST_BUFFERED
        assert "unread" in self.lost[0]


class ListenerTest(TestCase):
    def setUp(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="kb-"))
        self.addCleanup(shutil.rmtree, self.dir)
        self.path = self.dir / "gdb"
        self.connections: list[socket.socket] = []
        self.accepted: Deferred[None] = Deferred()

    def listener(self, access: SocketAccess | None = None) -> Listener:
        listener = Listener(reactor, self.path, self._accepted, access or SocketAccess())
        self.addCleanup(listener.close)
        return listener

    def _accepted(self, connection: socket.socket) -> None:
        self.connections.append(connection)
        self.addCleanup(connection.close)
        self.accepted.callback(None)

    async def test_a_connection_is_handed_over(self) -> None:
        self.listener()
        connection = await connect(reactor, Unix(str(self.path)))
        self.addCleanup(connection.close)
        await self.accepted.addTimeout(TIMEOUT, reactor)
        assert len(self.connections) == 1

    def test_the_mode_is_as_configured_and_private_by_default(self) -> None:
        self.listener().close()
        assert not self.path.exists()
        self.listener(SocketAccess(0o660, os.getgid()))
        found = self.path.stat()
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert found.st_gid == os.getgid()

    def test_a_stale_socket_is_replaced(self) -> None:
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(self.path))
        dead.close()
        self.listener()
        assert stat.S_IMODE(self.path.stat().st_mode) == 0o600

    def test_one_that_is_in_use_is_not(self) -> None:
        self.listener()
        with pytest.raises(KbridgeError, match="somebody listens"):
            self.listener()

    def test_what_is_no_socket_is_left_alone(self) -> None:
        self.path.write_text("precious")
        with pytest.raises(KbridgeError, match="no socket"):
            replace_stale(self.path)
        assert self.path.read_text() == "precious"

    def test_closing_leaves_another_relays_socket(self) -> None:
        listener = self.listener()
        self.path.unlink()
        other = socket.socket(socket.AF_UNIX)
        self.addCleanup(other.close)
        other.bind(str(self.path))
        listener.close()
        assert self.path.exists()


class ConnectTest(TestCase):
    async def refusal(self, endpoint: Unix | Tcp | Pty) -> str:
        try:
            (await connect(reactor, endpoint)).close()
        except KbridgeError as error:
            return str(error)
        raise AssertionError("it connected")

    async def test_what_is_not_there_is_named(self) -> None:
        assert "unix:/nonexistent/gdb" in await self.refusal(Unix("/nonexistent/gdb"))
        probe = socket.socket()
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        assert "refused" in await self.refusal(Tcp("127.0.0.1", port))
        assert "cannot carry a debug stub" in await self.refusal(Pty("/dev/pts/0"))

    async def test_tcp_connects_by_name(self) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(server.close)
        connection = await connect(reactor, Tcp("localhost", server.getsockname()[1]))
        self.addCleanup(connection.close)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
