"""Asks a person at the terminal for a secret that a run waits for: not echoed, and no longer than it is wanted.

``getpass`` would wait for ever, also for what nobody needs any more.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOK_SECONDS: Final = 1.0
"""Between two looks whether it is still wanted."""
MAX_BYTES: Final = 1000


def can_ask() -> bool:
    """Whether a person is there: the question stands on stderr."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask_secret(words: str, seconds: float, wanted: Callable[[], bool]) -> str | None:
    """Return what a person types behind ``words``; nothing where that is nothing, or not within ``seconds``.

    ``wanted`` is asked now and then; when it is not any more, nothing is returned.
    """
    terminal = sys.stdin.fileno()
    end = time.monotonic() + seconds
    with _without_echo(terminal):
        _say(words)
        try:
            # A terminal gives a whole line, or at Ctrl-D what there is of it.
            while (left := end - time.monotonic()) > 0:
                if select.select([terminal], [], [], min(left, LOOK_SECONDS))[0]:
                    line = os.read(terminal, MAX_BYTES + 1)
                    return line.decode("utf-8", "surrogateescape").rstrip("\r\n") or None
                if not wanted():
                    break
            return None
        finally:
            _say("\n")


@contextmanager
def _without_echo(terminal: int) -> Iterator[None]:
    before = termios.tcgetattr(terminal)
    quiet = [*before]
    quiet[3] = (before[3] | termios.ICANON | termios.ISIG) & ~termios.ECHO
    # What was typed before the question is no answer to it.
    termios.tcsetattr(terminal, termios.TCSAFLUSH, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


def _say(words: str) -> None:
    sys.stderr.write(words)
    sys.stderr.flush()
