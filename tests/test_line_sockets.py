from __future__ import annotations

import os
import random
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from line_lab import LineTestCase, MemorySink, reactor, until

from kbridge.errors import LineError
from kbridge.transports import lines
from kbridge.transports import poller as polling
from kbridge.transports.endpoints import Break, Tcp, Unix
from kbridge.transports.lines import MAX_QUEUE_BYTES, LineState
from kbridge.transports.sockets import TcpTransport

if TYPE_CHECKING:
    from kbridge.transports.lines import ConsoleLine


class UnixLines(LineTestCase):
    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = str(Path(folder.name) / "s")

    def listen(self) -> socket.socket:
        Path(self.path).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(2000)
        self.addCleanup(listener.close)
        return listener

    def accept(self, listener: socket.socket, count: int) -> list[socket.socket]:
        peers = [listener.accept()[0] for _ in range(count)]
        for peer in peers:
            self.addCleanup(peer.close)
        return peers

    async def connected(self, sink: MemorySink) -> tuple[ConsoleLine, socket.socket]:
        listener = self.listen()
        line = self.open_line(Unix(self.path), sink)
        peer, _ = listener.accept()
        self.addCleanup(peer.close)
        await self.is_open(line)
        return line, peer

    async def test_a_missing_socket_is_waited_for_and_a_lost_line_comes_back(self) -> None:
        sink = MemorySink()
        line = self.open_line(Unix(self.path), sink)
        changes: list[tuple[LineState, str]] = []
        stop = line.subscribe(lambda state, reason: changes.append((state, reason)))
        assert line.state is LineState.LOST
        assert line.reason == "No such file or directory"
        with pytest.raises(LineError, match="No such file"):
            line.write(b"x")
        listener = self.listen()
        await self.is_open(line)
        peer, _ = listener.accept()
        peer.send(b"hello")
        await until(lambda: sink.data == b"hello")
        peer.send(b" last words")
        peer.close()
        listener.close()
        await until(lambda: line.state is LineState.LOST)
        assert sink.data == b"hello last words"
        again = self.listen()
        await self.is_open(line)
        peer, _ = again.accept()
        peer.send(b", back")
        await until(lambda: sink.data.endswith(b"back"))
        peer.close()
        assert changes == [
            (LineState.OPEN, ""),
            (LineState.LOST, "the other end closed it"),
            (LineState.OPEN, ""),
        ]
        assert sink.notes == ["open", "lost: the other end closed it", "open"]
        stop()
        await line.close()
        assert line.state is LineState.CLOSED
        assert len(changes) == 3
        with pytest.raises(LineError, match="closed by kbridge"):
            line.write(b"x")

    async def test_a_line_whose_other_end_is_known_to_be_back_is_tried_at_once(self) -> None:
        self.patch(lines, "FIRST_RETRY_SECONDS", 3600.0)
        line = self.open_line(Unix(self.path), MemorySink())
        assert line.state is LineState.LOST
        line.hurry()
        assert line.state is LineState.LOST
        self.listen()
        line.hurry()
        await self.is_open(line)
        line.hurry()
        assert line.state is LineState.OPEN

    async def test_writes_are_in_order_and_bounded(self) -> None:
        line, peer = await self.connected(MemorySink())
        chance = random.Random(1)
        sent = b""

        def write_until_refused() -> None:
            nonlocal sent
            while len(sent) < 10_000_000:
                piece = chance.randbytes(chance.randrange(1, 30000))
                line.write(piece)
                sent += piece

        with pytest.raises(LineError, match="does not read"):
            write_until_refused()
        assert len(line._queue) <= MAX_QUEUE_BYTES  # type: ignore[attr-defined]
        peer.setblocking(False)
        got = bytearray()

        def drained() -> bool:
            try:
                got.extend(peer.recv(100_000))
            except BlockingIOError:
                pass
            return len(got) >= len(sent)

        await until(drained)
        assert bytes(got) == sent
        line.write(b"and on")
        await until(lambda: drained() and bytes(got[-6:]) == b"and on")

    async def test_break_cannot_be_sent(self) -> None:
        line, _ = await self.connected(MemorySink())
        assert not line.breaks
        with pytest.raises(LineError, match="machine monitor"):
            await line.send_break(Break.TELNET)

    @pytest.mark.alone
    async def test_a_flood_does_not_starve_the_others_or_the_reactor(self) -> None:
        listener = self.listen()
        sinks = [MemorySink(1 << 16) for _ in range(100)]
        for sink in sinks:
            self.open_line(Unix(self.path), sink)
        peers = self.accept(listener, len(sinks))
        for peer in peers:
            peer.setblocking(False)
        flood = bytes(1 << 16)
        delays: list[float] = []

        def fill() -> None:
            """Keep ten lines full."""
            for peer in peers[:10]:
                try:
                    while True:
                        peer.send(flood)
                except BlockingIOError:
                    continue

        rounds = 0
        while rounds < 20:
            rounds += 1
            fill()
            expected = [sink.ring.head + 1 for sink in sinks[10:]]
            for peer in peers[10:]:
                peer.send(b"x")
            began = reactor.seconds()

            def all_there(expected: list[int] = expected) -> bool:
                fill()
                return [sink.ring.head for sink in sinks[10:]] == expected

            await until(all_there)
            delays.append(reactor.seconds() - began)
        assert sorted(delays)[len(delays) // 2] < 0.5
        assert all(sink.ring.head > len(flood) for sink in sinks[:10])

    async def test_many_trickling_lines_are_coalesced_and_lose_nothing(self) -> None:
        listener = self.listen()
        sinks = [MemorySink(1 << 16) for _ in range(polling.BUSY_LINES * 2)]
        for sink in sinks:
            self.open_line(Unix(self.path), sink)
        peers = self.accept(listener, len(sinks))
        pauses = 0
        for _ in range(50):
            for peer in peers:
                peer.send(b"0123456789")
            tick = reactor.seconds() + 0.002
            await until(lambda tick=tick: reactor.seconds() > tick)  # type: ignore[misc]
            pauses += self.poller._pause is not None
        await until(lambda: all(sink.ring.head == 500 for sink in sinks))
        assert pauses > 0

    async def test_a_line_is_read_at_once_while_few_are_busy(self) -> None:
        """A guest that writes byte by byte into 278 bytes of socket is not held up."""
        sink = MemorySink()
        _, peer = await self.connected(sink)
        for _ in range(20):
            peer.send(b"x" * 10)
            await until(lambda: not self.poller._pause)
            assert self.poller._pause is None
        await until(lambda: sink.ring.head == 200)

    async def test_a_bug_in_one_sink_does_not_end_the_others(self) -> None:
        listener = self.listen()
        broken, whole = MemorySink(), MemorySink()

        def receive(read_into: object) -> int:
            raise ZeroDivisionError("a bug")

        broken.receive = receive  # type: ignore[method-assign]
        first = self.open_line(Unix(self.path), broken)
        self.open_line(Unix(self.path), whole)
        peers = self.accept(listener, 2)

        for peer in peers:
            peer.send(b"text")
        await until(lambda: whole.data == b"text")
        await until(lambda: broken.notes[:2] == ["open", "lost: an internal error; see the log"])
        await first.close()
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    @pytest.mark.alone
    async def test_opening_a_thousand_lines_takes_no_time_to_speak_of(self) -> None:
        listener = self.listen()
        sink = MemorySink()
        began = reactor.seconds()
        lines = [self.open_line(Unix(self.path), sink) for _ in range(400)]
        await until(lambda: all(line.state is LineState.OPEN for line in lines))
        assert reactor.seconds() - began < 3
        self.accept(listener, len(lines))


class TcpLines(LineTestCase):
    async def check(self, host: str, family: socket.AddressFamily, address: str) -> None:
        listener = socket.create_server((address, 0), family=family)
        self.addCleanup(listener.close)
        sink = MemorySink()
        line = self.open_line(Tcp(host, listener.getsockname()[1]), sink)
        assert line.state is LineState.CONNECTING
        await self.is_open(line)
        peer, _ = listener.accept()
        self.addCleanup(peer.close)
        peer.send(b"\xff\r\0 as it is")
        await until(lambda: sink.data == b"\xff\r\0 as it is")
        line.write(b"typed")
        assert peer.recv(10) == b"typed"

    async def test_an_ipv4_address(self) -> None:
        await self.check("127.0.0.1", socket.AF_INET, "127.0.0.1")

    async def test_an_ipv6_address(self) -> None:
        await self.check("::1", socket.AF_INET6, "::1")

    async def test_a_name(self) -> None:
        await self.check("localhost", socket.AF_INET, "127.0.0.1")

    async def test_a_refused_connection_is_said(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        line = self.open_line(Tcp("127.0.0.1", port), MemorySink())
        await until(lambda: line.state is LineState.LOST)
        assert line.reason == os.strerror(111)

    async def test_a_name_without_address_is_said(self) -> None:
        line = self.open_line(Tcp("no-such-host.invalid", 1), MemorySink())
        await until(lambda: line.state is LineState.LOST)
        assert line.reason == "no address for no-such-host.invalid"

    async def test_a_line_closed_while_it_connects_stays_closed(self) -> None:
        sink = MemorySink()
        line = self.open_line(Tcp("localhost", 1), sink)
        await line.close()
        # The same look-up again: its answer comes after the one that the line had asked for.
        await TcpTransport(self.poller, reactor.nameResolver, "localhost", 1)._addresses()
        assert line.state is LineState.CLOSED
        assert sink.notes == []
