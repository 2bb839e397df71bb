"""`GUEST/console`: raw bytes both ways, and the pen."""

from __future__ import annotations

import os
import pwd
import select
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay_lab import RelayProcess, wait_for

from kbridge.console.ring import Ring
from kbridge.frontends import consoles
from kbridge.frontends.window import SCREEN_BYTES, window_start

if TYPE_CHECKING:
    from collections.abc import Iterator

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    relay = RelayProcess(captures=False)
    relay.start()
    yield relay
    relay.close()


@pytest.fixture
def join(relay: RelayProcess) -> Iterator[type[Joined]]:
    Joined.relay = relay
    yield Joined
    relay.disconnect()
    wait_for(lambda: pen(relay) is None, "the pen's release")


def pen(relay: RelayProcess) -> object:
    return relay.json("GET", "/guests/web1")[1]["console"]["pen"]


class Joined:
    relay: RelayProcess

    def __init__(self) -> None:
        self.socket: socket.socket = self.relay.connect(self.relay.runtime / "web1" / "console")
        self.seen = b""

    def until(self, words: bytes) -> bytes:
        """Read until `words` were seen; return what came before them, and forget all of it."""
        while words not in self.seen:
            piece = self.socket.recv(65536)
            assert piece, self.seen
            self.seen += piece
        before, _, self.seen = self.seen.partition(words)
        return before

    def is_silent(self) -> bool:
        return not select.select([self.socket], [], [], 0.3)[0]


def test_the_socket_is_for_its_owner_alone(relay: RelayProcess) -> None:
    assert stat.S_IMODE((relay.runtime / "web1" / "console").stat().st_mode) == 0o600


def test_bytes_go_both_ways_unchanged(relay: RelayProcess, join: type[Joined]) -> None:
    one = join()
    every = bytes(range(256))
    relay.far.say(every)
    one.until(every)
    one.socket.sendall(every)
    assert relay.far.hear(256) == every


def test_who_joins_sees_the_last_screen_from_a_lines_start(relay: RelayProcess, join: type[Joined]) -> None:
    relay.recorded(b"\r\n" + b"".join(b"line %05d\r\n" % number for number in range(1000)) + b"login: ")
    shown = join().until(b"login: ")
    assert shown.startswith(b"line ")
    assert SCREEN_BYTES - 20 < len(shown) < SCREEN_BYTES


def test_another_does_not_type_and_is_told_so_once(relay: RelayProcess, join: type[Joined]) -> None:
    one, other = join(), join()
    one.socket.sendall(b"a")
    assert relay.far.hear(1) == b"a"
    assert pen(relay) == ME
    other.socket.sendall(b"b")
    other.until(f"[kbridge: {ME} holds its pen: what you type is discarded]\r\n".encode())
    other.socket.sendall(b"c")
    assert relay.far.is_silent()
    assert other.is_silent()
    one.socket.close()
    wait_for(lambda: pen(relay) is None, "the pen's release")
    other.socket.sendall(b"d")
    assert relay.far.hear(1) == b"d"
    assert pen(relay) == ME


def test_one_who_does_not_read_holds_up_nobody(relay: RelayProcess, join: type[Joined]) -> None:
    join()
    quick = join()
    before = relay.resident_bytes
    for number in range(100):
        relay.far.say(bytes(65536) + b"end %d" % number)
        quick.until(b"end %d" % number)
    assert relay.resident_bytes - before < 8 << 20


def test_no_more_readers_than_there_may_be(relay: RelayProcess, join: type[Joined]) -> None:
    for _ in range(consoles.MAX_READERS):
        join()
    last = join()
    last.until(b"connected already]\r\n")
    assert last.socket.recv(10) == b""


def test_the_relay_has_met_no_bug(relay: RelayProcess) -> None:
    assert "Traceback" not in relay.errors.read_text()


@given(st.binary(max_size=9000), st.integers(0, 5000))
def test_a_window_is_within_its_limit_and_begins_with_a_line_where_it_can(data: bytes, limit: int) -> None:
    ring = Ring.anonymous(65536)
    window = ring.window()
    window[: len(data)] = data
    ring.advance(len(data))
    start = window_start(ring, limit)
    assert max(0, len(data) - limit) <= start <= len(data)
    shown = data[start:]
    begins_a_line = start == 0 or data[start - 1] == 0x0A
    first_newline = data.find(b"\n", max(0, len(data) - limit))
    assert begins_a_line or first_newline in (-1, len(data) - 1) or not shown
    ring.close()
