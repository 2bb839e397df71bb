"""What a dialogue with a boot loader or a guest is made of.

Pure.  A dialogue is a generator: it yields ``Press`` (keys), ``Until`` (what must be seen, and for how long that
may take; it is sent whether it was), ``Note`` (words for the transcript) and ``Ask`` (a secret that is wanting; it is
among the secrets then, unless nobody gave it).  It ends when it is done, or raises ``GaveUp``.
``control`` carries it on.

pace            at most ``WINDOW`` keys are ahead of what the screen shows: half of a UART's queue, however slowly the
                other side draws
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

WINDOW: Final = 8
MAX_REPAIRS: Final = 6
MAX_MOVES: Final = 200
"""Entries of a menu, lines of an editor."""
MAX_PROBES: Final = 5
MASK: Final = "***"
"""What a secret is in a transcript."""

LOADER: Final = "loader"
ROOT: Final = "root"
SECRETS: Final = (LOADER, ROOT)
"""Names of the secrets that may be asked for."""

ECHO: Final = 2.0
"""Seconds for a key to show: a line of 80 columns at 9600 baud takes 0.1, a pause of an emulated machine more."""
DRAW: Final = 10.0
"""Seconds for a screen to be drawn: 4000 bytes at 9600 baud take 4."""
PASSWORD: Final = 30.0
"""Seconds for a password to be checked: GRUB hashes it thousands of times, slowly."""
ANSWER: Final = 120.0
"""Seconds for a person to type a password that is asked for while the guest waits."""


@dataclass(frozen=True, slots=True)
class Press:
    """Keys; ``shown`` stands for them in the transcript."""

    keys: bytes
    shown: str = ""
    boots: bool = False
    """Whether a kernel starts by them: what comes next may be its first line."""


@dataclass(frozen=True, slots=True)
class Until:
    """Wait until something is seen: until ``seen``, called with ``of``, is true."""

    seen: Callable[..., bool]
    seconds: float
    of: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """Words for the transcript."""

    words: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask whoever runs it for the secret of this name, one of ``SECRETS``."""

    secret: str


Step: TypeAlias = Press | Until | Note | Ask
Dialogue: TypeAlias = Generator[Step, bool, None]


class GaveUp(Exception):
    """It cannot be done: what, why, what to do; ``asks`` names the secret that was wanting."""

    def __init__(self, what: str, why: str = "", todo: str = "", *, asks: str = "") -> None:
        super().__init__(what, why, todo)
        self.what = what
        self.why = why
        self.todo = todo
        self.asks = asks
