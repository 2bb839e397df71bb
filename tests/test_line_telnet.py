from __future__ import annotations

import itertools
import select
import socket
import threading
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from line_lab import LineTestCase, MemorySink, until

from kbridge.errors import LineError
from kbridge.transports.endpoints import Break, Rfc2217, Telnet
from kbridge.transports.lines import LineState
from kbridge.transports.rfc2217 import Rfc2217Codec, command
from kbridge.transports.telnet import (
    BINARY,
    COM_PORT,
    DO,
    DONT,
    ECHO,
    IAC,
    MAX_SUBNEGOTIATION_BYTES,
    SB,
    SE,
    SUPPRESS_GO_AHEAD,
    WILL,
    WONT,
    TelnetCodec,
)

# What QEMU 7.2's telnet=on chardev sends to who connects.
QEMU_GREETING = bytes([IAC, WILL, ECHO, IAC, WILL, SUPPRESS_GO_AHEAD, IAC, WILL, BINARY, IAC, DO, BINARY])
wire_bytes = st.lists(
    st.sampled_from([IAC, WILL, WONT, DO, DONT, SB, SE, 0, 1, 3, 13, 10, 44, 0x61, 0xF3])
    | st.integers(0, 255),
    max_size=60,
).map(bytes)


def fed(codec: TelnetCodec, data: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    text = answer = b""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        piece, reply = codec.receive(data[start:end])
        assert len(piece) <= end - start
        text += piece
        answer += reply
    return text, answer


@given(wire_bytes, st.lists(st.integers(0, 60), max_size=6), st.booleans())
@example(b"\r\0\r\0", [1, 3], False)
@example(b"\xff\xff\r\xff\xff\0", [1, 2, 3, 4], False)
def test_text_and_answers_do_not_depend_on_the_split(data: bytes, cuts: list[int], port: bool) -> None:
    whole, split = (Rfc2217Codec(9600), Rfc2217Codec(9600)) if port else (TelnetCodec(), TelnetCodec())
    for codec in (whole, split):
        codec.greeting()
    assert fed(whole, data, []) == fed(split, data, cuts)


@given(st.binary(max_size=200), st.booleans())
@example(b"\r\n\r\0\r\r\xff", False)
def test_what_one_codec_encodes_another_reads(text: bytes, binary: bool) -> None:
    sender, receiver = TelnetCodec(), TelnetCodec()
    if binary:
        sender.receive(bytes([IAC, DO, BINARY]))
        receiver.receive(bytes([IAC, WILL, BINARY]))
    assert receiver.receive(sender.encode(text))[0] == text


@given(wire_bytes)
def test_answers_never_start_an_endless_exchange(data: bytes) -> None:
    """Two codecs that answer each other fall silent, whatever came first."""
    one, two = TelnetCodec(), TelnetCodec()
    one.greeting()
    _, waiting = one.receive(data)
    for _ in range(10):
        _, waiting = two.receive(waiting)
        _, waiting = one.receive(waiting)
    assert waiting == b""


def test_qemus_options_are_agreed_to() -> None:
    codec = TelnetCodec()
    codec.greeting()
    text, answer = codec.receive(QEMU_GREETING + b"a\r\0b")
    assert text == b"a\r\0b"  # BINARY: nothing is taken away
    assert answer == bytes([IAC, DO, ECHO])  # the rest answers what the greeting asked
    assert codec.enabled_here(BINARY)
    assert codec.enabled_there(BINARY)
    assert codec.encode(b"\r") == b"\r"


def test_other_options_are_refused_once_and_silence_is_kept() -> None:
    codec = TelnetCodec()
    assert codec.receive(bytes([IAC, DO, 24]))[1] == bytes([IAC, WONT, 24])
    assert codec.receive(bytes([IAC, WILL, 34]))[1] == bytes([IAC, DONT, 34])
    assert codec.receive(bytes([IAC, WONT, 34, IAC, DONT, 24]))[1] == b""
    assert codec.receive(bytes([IAC, WILL, ECHO]))[1] == bytes([IAC, DO, ECHO])
    assert codec.receive(bytes([IAC, WILL, ECHO]))[1] == b""
    assert codec.receive(bytes([IAC, WONT, ECHO]))[1] == bytes([IAC, DONT, ECHO])


def test_a_subnegotiation_is_bounded() -> None:
    codec = TelnetCodec()
    start = bytes([IAC, SB, COM_PORT])
    for _ in range(100):
        assert codec.receive(start + bytes(10000)) == (b"", b"")
        start = b""
    assert len(codec._sub) <= MAX_SUBNEGOTIATION_BYTES + 1
    assert codec.receive(bytes([IAC, SE]) + b"text") == (b"text", b"")


def test_rfc2217_sets_the_port_once_agreed_and_notes_the_speed() -> None:
    codec = Rfc2217Codec(115200)
    assert codec.greeting().endswith(bytes([IAC, WILL, COM_PORT]))
    _, answer = codec.receive(bytes([IAC, DO, COM_PORT]))
    assert answer.startswith(bytes.fromhex("fffa2c010001c200fff0"))
    assert codec.receive(command(101, (115200).to_bytes(4, "big"))) == (b"", b"")
    assert codec.far_baud == 115200
    assert codec.receive(bytes([IAC, DO, COM_PORT])) == (b"", b"")


def test_rfc2217_escapes_a_speed_that_has_ff_in_it() -> None:
    assert command(1, (0xFF00).to_bytes(4, "big")) == bytes.fromhex("fffa2c010000ffff00fff0")


class FarPort:
    """A serial port as pyserial's ``PortManager`` sees one, noting what is set."""

    port = "far"
    name = "far"

    def __init__(self) -> None:
        self.notes: list[tuple[str, Any]] = []
        self._values: dict[str, Any] = {
            "baudrate": 9600, "bytesize": 7, "parity": "E", "stopbits": 2, "break_condition": False,
            "cts": True, "dsr": True, "ri": False, "cd": True, "rtscts": False, "xonxoff": False,
            "dtr": True, "rts": True,
        }  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_values", {}):
            self.notes.append((name, value))
            self._values[name] = value
        else:
            object.__setattr__(self, name, value)


class Rfc2217Server:
    """One client served by pyserial's RFC 2217 server code, in a thread."""

    def __init__(self) -> None:
        self.port = FarPort()
        self.received = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._end, self._stop = socket.socketpair()
        self._to_send: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def send(self, text: bytes) -> None:
        self._to_send.append(text)
        self._stop.send(b"w")

    def close(self) -> None:
        self._stop.send(b"q")
        self._thread.join(10)
        for sock in (self._listener, self._end, self._stop):
            sock.close()

    def _serve(self) -> None:
        import serial.rfc2217

        client, _ = self._listener.accept()
        with client:

            class Connection:
                def write(self, data: bytes) -> None:
                    client.sendall(data)

            manager = serial.rfc2217.PortManager(self.port, Connection())
            while True:
                for ready in select.select([client, self._end], [], [])[0]:
                    if ready is self._end:
                        if self._end.recv(1) == b"q":
                            return
                        client.sendall(b"".join(manager.escape(self._to_send.pop(0))))
                    else:
                        data = client.recv(1000)
                        if not data:
                            return
                        self.received += b"".join(manager.filter(data))


class Rfc2217Lines(LineTestCase):
    async def test_against_pyserials_server(self) -> None:
        server = Rfc2217Server()
        self.addCleanup(server.close)
        sink = MemorySink()
        line = self.open_line(Rfc2217("127.0.0.1", server.address[1], 57600), sink)
        await self.is_open(line)
        await until(lambda: ("stopbits", 1) in server.port.notes)
        assert server.port.notes == [("baudrate", 57600), ("bytesize", 8), ("parity", "N"), ("stopbits", 1)]
        assert line.breaks == (Break.RFC2217, Break.TELNET)
        await line.send_break(Break.RFC2217)
        await until(lambda: ("break_condition", False) in server.port.notes)
        assert server.port.notes[4:] == [("break_condition", True), ("break_condition", False)]
        everything = bytes(range(256)) * 5
        line.write(everything)
        await until(lambda: len(server.received) >= len(everything))
        assert server.received == everything
        server.send(everything)
        await until(lambda: len(sink.data) >= len(everything))
        assert sink.data == everything

    async def test_break_is_refused_until_the_server_agreed(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        line = self.open_line(Rfc2217("127.0.0.1", listener.getsockname()[1]), MemorySink())
        await self.is_open(line)
        with pytest.raises(LineError, match="does not take RFC 2217"):
            await line.send_break(Break.RFC2217)
        peer, _ = listener.accept()
        self.addCleanup(peer.close)
        peer.settimeout(5)
        await line.send_break(Break.TELNET)
        heard = b""
        while not heard.endswith(b"\xff\xf3"):
            heard += peer.recv(100)


class TelnetLines(LineTestCase):
    async def test_text_break_and_a_peer_that_closes(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        sink = MemorySink()
        line = self.open_line(Telnet("127.0.0.1", listener.getsockname()[1]), sink)
        await self.is_open(line)
        peer, _ = listener.accept()
        self.addCleanup(peer.close)
        peer.settimeout(0)
        peer.send(QEMU_GREETING + b"boot \xff\xff\r\n")
        await until(lambda: sink.data == b"boot \xff\r\n")
        greeting = peer.recv(100)
        assert greeting.startswith(bytes([IAC, WILL, BINARY, IAC, DO, BINARY]))
        await line.send_break(Break.TELNET)
        await until(lambda: select.select([peer], [], [], 0)[0])
        assert peer.recv(100) == b"\xff\xf3"
        peer.close()
        await until(lambda: line.state is LineState.LOST)
        assert sink.notes[:2] == ["open", "lost: the other end closed it"]

    async def test_a_peer_that_asks_and_does_not_read_is_left(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line = self.open_line(Telnet("127.0.0.1", listener.getsockname()[1]), MemorySink())
        await self.is_open(line)
        peer, _ = listener.accept()
        self.addCleanup(peer.close)
        peer.settimeout(0)
        flood = bytes([IAC, DO, 24]) * 20000

        def lost() -> bool:
            try:
                peer.send(flood)
            except (BlockingIOError, ConnectionError):
                pass
            return line.state is LineState.LOST

        await until(lost)
        assert "does not read the answers" in line.reason
