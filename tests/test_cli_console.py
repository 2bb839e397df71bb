"""`kbridge console` on a pseudo terminal: escapes, and a terminal that is as it was, whatever happens."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Protocol

import pytest
from relay_lab import SECONDS, RelayProcess, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator


class HasEnvironment(Protocol):
    """What runs a relay, and knows how its commands find it."""

    env: dict[str, str]


class Visitor:
    """A person at a terminal who runs `kbridge console web1`."""

    def __init__(self, relay: HasEnvironment, *options: str) -> None:
        self.terminal, self._far = pty.openpty()
        self.before = termios.tcgetattr(self._far)
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kbridge", "console", "web1", *options],
            env=relay.env,
            stdin=self._far,
            stdout=self._far,
            stderr=self._far,
        )

    def until(self, words: bytes) -> bytes:
        deadline = time.monotonic() + SECONDS
        while words not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, self.seen
            if select.select([self.terminal], [], [], left)[0]:
                self.seen += os.read(self.terminal, 65536)
        before, _, self.seen = self.seen.partition(words)
        return before

    def type(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self._far)[3] & termios.ICANON

    def joined(self) -> None:
        self.until(b"[kbridge: web1: ")
        self.until(b"~. leaves, ~? helps]\r\n")
        wait_for(lambda: self.is_raw, "raw mode")

    def ended(self) -> int:
        """Wait for its end; the terminal is as it was before."""
        self.process.wait(SECONDS)
        assert termios.tcgetattr(self._far) == self.before
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS)
        os.close(self.terminal)
        os.close(self._far)


@pytest.fixture
def relay() -> Iterator[RelayProcess]:
    relay = RelayProcess()
    relay.start()
    yield relay
    relay.close()


@pytest.fixture
def visitors() -> Iterator[list[Visitor]]:
    visitors: list[Visitor] = []
    yield visitors
    for visitor in visitors:
        visitor.close()


def visit(relay: RelayProcess, visitors: list[Visitor], *options: str) -> Visitor:
    visitor = Visitor(relay, *options)
    visitors.append(visitor)
    visitor.joined()
    return visitor


def test_a_visit(relay: RelayProcess, visitors: list[Visitor]) -> None:
    relay.recorded(b"earlier\r\n# ")
    one = visit(relay, visitors)
    one.until(b"earlier\r\n# ")
    one.type(b"\x03\x04\x1a ls ~.\r")
    assert relay.far.hear(10) == b"\x03\x04\x1a ls ~.\r"
    relay.far.say(b"\x1b[1mfile\x1b[0m\r\n")
    one.until(b"\x1b[1mfile\x1b[0m\r\n")
    one.type(b"~?")
    one.until(b"[kbridge: ~b  send BREAK]\r\n")
    one.type(b"~~\r")
    assert relay.far.hear(2) == b"~\r"
    one.type(b"~b")
    one.until(b"BREAK cannot be sent")
    one.type(b"\r~")
    assert relay.far.hear(1) == b"\r"
    assert relay.far.is_silent()
    one.type(b".")
    one.until(b"[kbridge: left web1]\r\n")
    assert one.ended() == 0


def test_the_pen_is_shown(relay: RelayProcess, visitors: list[Visitor]) -> None:
    one, other = visit(relay, visitors), visit(relay, visitors)
    one.type(b"a")
    assert relay.far.hear(1) == b"a"
    other.until(b"holds the pen]\r\n")
    other.type(b"b")
    other.until(b"what you type is discarded]\r\n")
    one.type(b"\r~.")
    assert one.ended() == 0
    assert b"holds the pen" not in one.seen
    other.until(b"the pen is free]\r\n")
    assert relay.far.hear(1) == b"\r"


def test_read_only(relay: RelayProcess, visitors: list[Visitor]) -> None:
    one = visit(relay, visitors, "--read-only")
    one.type(b"x")
    one.until(b"read only: what you type is discarded]\r\n")
    assert relay.far.is_silent()


def test_the_terminal_is_restored_when_the_relay_is_killed(
    relay: RelayProcess, visitors: list[Visitor]
) -> None:
    one = visit(relay, visitors)
    assert relay.process is not None
    relay.process.send_signal(signal.SIGKILL)
    one.until(b"kbridge: the console of web1 was closed: ")
    assert one.ended() == 1


def test_the_end_of_the_relay_is_said(relay: RelayProcess, visitors: list[Visitor]) -> None:
    one = visit(relay, visitors)
    relay.stop()
    one.until(b"kbridge: the console of web1 was closed: ")
    assert one.ended() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_terminal_is_restored_when_it_is_ended(
    relay: RelayProcess, visitors: list[Visitor], number: signal.Signals
) -> None:
    one = visit(relay, visitors)
    one.process.send_signal(number)
    one.until(b"[kbridge: left web1]")
    one.ended()


def test_a_guest_that_leaves_the_configuration_ends_the_visit(
    relay: RelayProcess, visitors: list[Visitor]
) -> None:
    one = visit(relay, visitors)
    relay.write_config("[guests.other]\n")
    assert relay.run("reload").returncode == 0
    one.until(b"web1 left the configuration")
    assert one.ended() == 1


def test_a_line_that_is_lost_and_comes_back_is_told(relay: RelayProcess, visitors: list[Visitor]) -> None:
    one = visit(relay, visitors)
    relay.far.hang_up()
    one.until(b"[kbridge: the line is lost")
    relay.far.say(b"back again")
    one.until(b"back again")


def test_without_a_terminal_it_prints_what_comes(relay: RelayProcess) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kbridge", "console", "web1"],
        env=relay.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"uptime\r")
    process.stdin.flush()
    assert relay.far.hear(7) == b"uptime\r"
    relay.far.say(b"up 3 days\r\n")
    seen = b""
    while b"up 3 days\r\n" not in seen:
        piece = os.read(process.stdout.fileno(), 4096)
        assert piece
        seen += piece
    process.stdin.write(b"~.")
    process.stdin.close()
    process.wait(SECONDS)
    process.stdout.close()
    assert process.returncode == 0
