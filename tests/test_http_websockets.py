"""WebSockets of a real relay: consoles and logs, and peers that do everything wrong."""

from __future__ import annotations

import base64
import json
import os
import pwd
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from relay_lab import RelayProcess, read_all, wait_for

from kbridge.console_client import ConsoleClient
from kbridge.control import Control, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    relay = RelayProcess(captures=False)
    relay.start()
    yield relay
    relay.close()


@pytest.fixture(autouse=True)
def _disconnected(relay: RelayProcess) -> Iterator[None]:
    yield
    relay.disconnect()


class Joined:
    """One who joined a console, and what was said to it."""

    def __init__(self, client: ConsoleClient) -> None:
        self.client = client
        self.data = bytearray()
        self.said: list[dict[str, Any]] = []

    def until(self, condition: Callable[[], Any]) -> Any:
        def look() -> Any:
            if condition():
                return condition()
            for message in self.client.messages(0.05):
                if isinstance(message, bytes):
                    self.data += message
                else:
                    self.said.append(message)
                if condition():
                    break
            return condition()

        return wait_for(look, f"what was waited for; there were {bytes(self.data[-200:])!r} and {self.said}")

    def told(self, kind: str, **fields: Any) -> bool:
        return any({"type": kind, **fields}.items() <= message.items() for message in self.said)

    def heard(self, words: str) -> bool:
        return any(words in message.get("text", "") for message in self.said)


@contextmanager
def joined(relay: RelayProcess, *, read_only: bool = False, history: int = 0) -> Iterator[Joined]:
    with ConsoleClient(Control(relay.control), "web1", read_only=read_only, history=history) as client:
        yield Joined(client)


def upgrade(relay: RelayProcess, path: str, early: bytes = b"") -> socket.socket:
    """Upgrade by hand; `early` goes out together with the request."""
    connection = relay.connect()
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        + early
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        assert piece, head
        head += piece
    assert head.startswith(b"HTTP/1.1 101"), head
    return connection


def frame(opcode: int, payload: bytes, *, last: bool = True) -> bytes:
    """A masked frame with a mask of zeros."""
    length = len(payload)
    if length < 126:
        size = bytes([0x80 | length])
    elif length < 65536:
        size = b"\xfe" + length.to_bytes(2, "big")
    else:
        size = b"\xff" + length.to_bytes(8, "big")
    return bytes([opcode | (0x80 if last else 0)]) + size + bytes(4) + payload


def close_code(data: bytes) -> int:
    """The code of the close frame that `data` ends with."""
    at = data.rfind(b"\x88")
    assert at >= 0, data
    return int.from_bytes(data[at + 2 : at + 4], "big")


def test_console_bytes_go_both_ways_unchanged(relay: RelayProcess) -> None:
    every = bytes(range(256))
    with joined(relay) as one:
        relay.far.say(every)
        one.until(lambda: one.data == every)
        one.client.type(every)
        assert relay.far.hear(256) == every


def test_who_takes_one_message_at_a_time_misses_and_repeats_none(relay: RelayProcess) -> None:
    said = b"".join(b"%06d\n" % number for number in range(40_000))
    with joined(relay) as one:
        relay.far.say(said)
        deadline = time.monotonic() + 30
        while len(one.data) < len(said):
            assert time.monotonic() < deadline, bytes(one.data[-80:])
            # The generator is dropped after its first message.
            message = next(one.client.messages(1), b"")
            one.data += message if isinstance(message, bytes) else b""
        assert one.data == said


def test_frames_that_come_with_the_request_count(relay: RelayProcess) -> None:
    connection = upgrade(relay, "/guests/web1/console", frame(2, b"early"))
    assert relay.far.hear(5) == b"early"
    connection.close()
    wait_for(lambda: relay.json("GET", "/guests/web1")[1]["console"]["pen"] is None, "the pen's release")


def test_a_window_of_history_begins_with_a_whole_line(relay: RelayProcess) -> None:
    relay.recorded(b"\r\n" + b"".join(b"line %04d\r\n" % number for number in range(100)))
    with joined(relay, history=100) as one:
        one.until(lambda: one.data.endswith(b"line 0099\r\n"))
        assert one.data.startswith(b"line 009")
        assert len(one.data) <= 100


def test_the_first_who_types_holds_the_pen_until_he_leaves(relay: RelayProcess) -> None:
    with joined(relay) as one, joined(relay) as other:
        one.until(lambda: one.told("pen", holder=None))
        other.until(lambda: other.told("pen", holder=None))
        one.client.type(b"a")
        assert relay.far.hear(1) == b"a"
        one.until(lambda: one.told("pen", holder=ME, mine=True))
        other.until(lambda: other.told("pen", holder=ME, mine=False))
        assert not one.told("pen", holder=ME, mine=False)
        other.client.type(b"b")
        other.client.type(b"c")
        other.until(lambda: other.heard("discarded"))
        assert relay.far.is_silent()
        assert len([message for message in other.said if message["type"] == "notice"]) == 1
        one.client.ask({"type": "pen", "action": "release"})
        other.until(lambda: [m for m in other.said if m["type"] == "pen"][-1]["holder"] is None)
        other.client.type(b"d")
        assert relay.far.hear(1) == b"d"


def test_the_pen_can_be_taken_by_force_and_its_holder_is_told(relay: RelayProcess) -> None:
    with joined(relay) as one, joined(relay) as other:
        one.client.ask({"type": "pen", "action": "take"})
        one.until(lambda: one.told("pen", mine=True))
        other.client.ask({"type": "pen", "action": "take"})
        other.until(lambda: other.heard("holds its pen"))
        other.client.ask({"type": "pen", "action": "take", "force": True})
        other.until(lambda: other.told("pen", mine=True))
        one.until(lambda: one.heard("took the pen"))
        one.client.type(b"x")
        one.until(lambda: one.heard("holds its pen"))
        assert relay.far.is_silent()


def test_a_read_only_visitor_does_not_type(relay: RelayProcess) -> None:
    with joined(relay, read_only=True) as one:
        one.client.type(b"rm -rf /\r")
        one.until(lambda: one.heard("read only"))
        assert relay.far.is_silent()


def test_break_that_cannot_be_sent_is_said_so(relay: RelayProcess) -> None:
    with joined(relay) as one:
        one.client.ask({"type": "break", "sysrq": "h"})
        one.until(lambda: one.heard("BREAK cannot be sent"))


def test_a_slow_visitor_is_told_what_it_lost_and_holds_up_nobody(relay: RelayProcess) -> None:
    with joined(relay) as first:
        # What tests before this one said may still be on its way; behind this nothing is.
        relay.far.say(b"<nothing before>")
        first.until(lambda: bytes(first.data).endswith(b"<nothing before>"))
    with joined(relay) as slow, joined(relay) as quick:
        slow.until(lambda: slow.told("line"))
        before = relay.resident_bytes
        block = bytes(65536)
        sent = 0
        for _ in range(120):
            relay.far.say(block)
            sent += len(block)
            quick.until(lambda due=sent: len(quick.data) >= due)
        # Compared by hand: pytest would explain a difference of megabytes for minutes.
        assert len(quick.data) == sent, (len(quick.data) - sent, bytes(one for one in quick.data if one)[:80])
        assert not any(quick.data)
        assert relay.resident_bytes - before < 8 << 20
        slow.until(lambda: slow.told("gap"))
        lost = sum(message["lost"] for message in slow.said if message["type"] == "gap")
        slow.until(lambda: len(slow.data) + lost >= sent)
        assert len(slow.data) + lost == sent
        assert lost > 0


def test_the_log_is_followed_entry_by_entry(relay: RelayProcess) -> None:
    connection = upgrade(relay, "/guests/web1/log")
    relay.far.say(b"followed")
    data = connection.recv(65536)
    assert data[0] == 0x81
    entry = json.loads(data[2:] if data[1] < 126 else data[4:])
    assert (entry["kind"], entry["text"]) == ("console.text", "followed")
    connection.sendall(frame(1, b"{}"))
    assert close_code(read_all(connection)) == 1008


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(1, b"not json"), 1008),
        (frame(1, b'{"type": "fly"}'), 1008),
        (frame(1, b'{"type": "break", "sysrq": "hh"}'), 1008),
        (frame(1, b"\xff\xfe"), 1007),
        (frame(2, bytes(70_000)), 1009),
        (frame(2, bytes(30_000), last=False) + frame(0, bytes(30_000), last=False) * 3, 1009),
        (frame(1, b"a" * 60_000, last=False) + frame(0, b"a" * 60_000, last=False), 1009),
        (frame(3, b""), 1002),
        (frame(9, bytes(126)), 1002),
        (b"\x82\x01a", 1002),  # not masked
        (frame(8, (1000).to_bytes(2, "big")), 1000),
    ],
)
def test_what_is_wrong_closes_with_its_code(relay: RelayProcess, sent: bytes, code: int) -> None:
    connection = upgrade(relay, "/guests/web1/console?read_only=true")
    connection.sendall(sent)
    assert close_code(read_all(connection)) == code


def test_an_endless_message_in_pieces_does_not_grow(relay: RelayProcess) -> None:
    before = relay.resident_bytes
    connection = upgrade(relay, "/guests/web1/console?read_only=true")
    try:
        connection.sendall(frame(2, bytes(1000), last=False))
        piece = frame(0, b"", last=False) * 10_000
        for _ in range(20):
            connection.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        pytest.fail("empty pieces cost nothing and are no reason to close")
    assert relay.json("GET", "/version")[0] == 200
    assert relay.resident_bytes - before < 4 << 20
    connection.close()


def test_pings_of_one_who_does_not_read_do_not_pile_up(relay: RelayProcess) -> None:
    before = relay.resident_bytes
    connection = upgrade(relay, "/guests/web1/console?read_only=true")
    connection.settimeout(0.5)
    pings = frame(9, bytes(125)) * 500
    sent = 0
    try:
        while sent < 30 << 20:
            sent += connection.send(pings)
    except TimeoutError:
        pass
    assert relay.json("GET", "/version")[0] == 200
    assert relay.resident_bytes - before < 4 << 20
    connection.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Upgrade": "websocket"},
        {"Upgrade": "websocket", "Sec_WebSocket_Version": "13"},
        {"Upgrade": "websocket", "Sec_WebSocket_Version": "8", "Sec_WebSocket_Key": "AA=="},
        {"Upgrade": "websocket", "Sec_WebSocket_Version": "13", "Sec_WebSocket_Key": "AA==", "Host": "\xff"},
    ],
)
def test_an_upgrade_that_is_none_is_refused(relay: RelayProcess, headers: dict[str, str]) -> None:
    status, problem = relay.json("GET", "/guests/web1/console", **headers)
    assert status == 400
    assert "WebSocket" in problem["detail"]


def test_a_console_that_is_not_there_is_a_problem(relay: RelayProcess) -> None:
    for name, kind in (("nobody", "unknown-guest"), ("bare", "not-capable")):
        with pytest.raises(Refused) as caught:
            ConsoleClient(Control(relay.control), name, read_only=True, history=0)
        assert caught.value.kind == kind
        assert name in str(caught.value)


frames = st.builds(
    frame,
    st.integers(0, 15),
    st.binary(max_size=300) | st.just(b'{"type":"pen","action":"take"}'),
    last=st.booleans(),
)
noise = st.binary(max_size=300)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(frames | noise, max_size=12))
def test_random_frames_do_no_harm(relay: RelayProcess, pieces: list[bytes]) -> None:
    connection = upgrade(relay, "/guests/web1/console?read_only=true")
    try:
        for piece in pieces:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
    except OSError:  # the relay closed first, as it may
        pass
    read_all(connection)
    relay.disconnect()
    assert relay.json("GET", "/version")[0] == 200


def test_the_relay_has_met_no_bug_and_kept_its_size(relay: RelayProcess) -> None:
    assert "Traceback" not in relay.errors.read_text()
    assert relay.resident_bytes < 150 << 20
