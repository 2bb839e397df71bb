"""``kbridge console``."""

from __future__ import annotations

import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from kbridge.console_client import ConsoleClient
from kbridge.control import RelayDown, relay
from kbridge.options import relay_options
from kbridge.terminal import Command, Escapes, raw

if TYPE_CHECKING:
    from types import FrameType

HISTORY_BYTES: Final = 4096
KEY_BYTES: Final = 4096
HELP: Final = """\
~.  leave the console
~b  send BREAK
~~  send one ~
~?  this help
(each only at the start of a line)"""


@click.command("console")
@relay_options
@click.argument("guest")
@click.option("--read-only", is_flag=True, help="Look on; what you type is not sent.")
def command(control: str | None, config: str | None, guest: str, *, read_only: bool) -> None:
    """Look at, and type on, a guest's console.

    Shows the last lines, then what comes.  The first who types holds the pen until he leaves; others look on.
    At the start of a line `~.` leaves, `~b` sends BREAK, `~?` helps.
    """
    with ConsoleClient(relay(control, config), guest, read_only=read_only, history=HISTORY_BYTES) as client:
        end = Visit(client, guest, sys.stdin.fileno(), sys.stdout.fileno(), read_only=read_only).run()
    if end:
        raise RelayDown(f"the console of {guest} was closed", why=end)


class _Ended(Exception):
    """A signal ends the visit."""


class Visit:
    """One person's visit to a console, between a terminal and the relay."""

    def __init__(self, client: ConsoleClient, guest: str, keys: int, screen: int, *, read_only: bool) -> None:
        self._client = client
        self._guest = guest
        self._keys = keys
        self._screen = screen
        self._read_only = read_only
        self._escapes = Escapes()
        self._holder: str | None = None
        self._at_line_start = True

    def run(self) -> str:
        """Stay until the person leaves; return why the relay ended it, or nothing if the person did."""
        mode = "read only; " if self._read_only else ""
        try:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, self._signalled)
            with raw(self._keys):
                self._say(f"{self._guest}: {mode}~. leaves, ~? helps")
                end = self._loop()
        except _Ended:
            end = ""
        # The terminal makes its own line ends again.
        start = b"" if self._at_line_start else b"\n"
        self._write(start + f"[kbridge: left {self._guest}]\n".encode())
        return end

    def _loop(self) -> str:
        watched: list[Any] = [self._client, self._keys]
        # What came with the answer to our joining is here already.
        ready: list[Any] = [self._client] if self._client.pending else []
        while True:
            ready = ready or select.select(watched, [], [])[0]
            if self._client in ready:
                for message in self._client.receive():
                    self._show(message)
                if self._client.ended:
                    return self._client.ended
            if self._keys in ready:
                typed = os.read(self._keys, KEY_BYTES)
                if not typed:
                    if os.isatty(self._keys):
                        return ""
                    # A pipe's end: go on looking, as long as the relay does.
                    watched.remove(self._keys)
                elif not self._typed(typed):
                    return ""
            ready = []

    def _typed(self, typed: bytes) -> bool:
        for meant in self._escapes.feed(typed):
            match meant:
                case bytes():
                    self._client.type(meant)
                case Command.LEAVE:
                    return False
                case Command.HELP:
                    self._say(HELP)
                case Command.BREAK:
                    self._client.ask({"type": "break"})
        return True

    def _show(self, message: bytes | dict[str, Any]) -> None:
        if isinstance(message, bytes):
            self._write(message)
            self._at_line_start = message.endswith(b"\n")
            return
        match message:
            case {"type": "pen", "holder": holder, "mine": mine}:
                if holder != self._holder and not mine:
                    self._say(f"{holder} holds the pen" if holder else "the pen is free")
                self._holder = holder
            case {"type": "line", "state": state, "reason": reason}:
                if state != "open":
                    self._say(f"the line is {state}" + (f": {reason}" if reason else ""))
            case {"type": "gap", "lost": lost}:
                self._say(f"{lost} bytes were lost here: this terminal is too slow")
            case {"type": "notice", "text": text}:
                self._say(str(text))
            case _:
                # A newer relay may say more: none of it is for this version.
                return

    def _say(self, words: str) -> None:
        start = b"" if self._at_line_start else b"\r\n"
        lines = b"".join(f"[kbridge: {line}]\r\n".encode() for line in words.splitlines())
        self._write(start + lines)
        self._at_line_start = True

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._screen, view) :]

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        raise _Ended
