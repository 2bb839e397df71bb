"""Bringing a kernel to the prompt of kdb, its own debugger for who sits at its console.

in          the line that console and kgdb share, the ways into kgdb
out         a kernel at ``[1]kdb> ``; an error that says where it stands instead
states      runs → by a way in → stands; stands, waiting for a debugger → by ``$3#33`` → prompt
invariant   no debugger is attached, and none is taken from the kernel; where there is no prompt the kernel runs again

Linux enters kdb at its first stop, and kgdb at the first after a debugger was there: then only a packet leads back
(kernel/debug/gdbstub.c, "Escape into back into kdb").  A debugger that comes to a kernel at the prompt takes over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from twisted.internet.task import deferLater

from kbridge.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kbridge.breakin import BreakIn
    from kbridge.config import BreakInWay

PROMPT_SECONDS: Final = 3.0
"""How long kdb may take to print its greeting; at 9600 baud it takes a quarter of a second."""
LOOK_SECONDS: Final = 0.02
TAIL_BYTES: Final = 1 << 14
"""What kdb prints between its greeting and the first full screen, and more."""
_GREETING: Final = b"Entering kdb"
_MORE: Final = b"\nmore> "


class KdbLine(Protocol):
    """The line that console and kgdb share, as far as kdb goes."""

    @property
    def is_attended(self) -> bool:
        """Whether a debugger uses the kernel's stub."""

    @property
    def stands(self) -> bool:
        """Whether the kernel is in kgdb or kdb, as far as the line shows."""

    @property
    def at_prompt(self) -> bool:
        """Whether kdb waits for a command."""

    def ask_for_kdb(self) -> None:
        """Have a kernel that stands go on to kdb; raises ``LineError``."""

    def let_go(self) -> None:
        """Have a kernel that stands run; raises ``LineError``."""

    def press(self, key: bytes) -> None:
        """Send a key that no user typed; raises ``LineError``."""


async def past_more(reactor: Any, line: KdbLine, said: bytes) -> None:
    """Have kdb go on to its prompt where it waits for a key at a full screen; it answers no debugger there.

    ``said``: the end of what the console said.  An oops is longer than the 24 lines that kdb takes for a screen
    (kernel/debug/kdb/kdb_io.c, ``vkdb_printf``; ``q`` leaves the rest out).  Returns once the prompt is there, or after
    ``PROMPT_SECONDS``.  Raises ``LineError``.
    """
    if line.is_attended or not said.endswith(_MORE) or _GREETING not in said[-TAIL_BYTES:]:
        return
    line.press(b"q")
    end = reactor.seconds() + PROMPT_SECONDS
    while not line.at_prompt and reactor.seconds() < end:
        await deferLater(reactor, LOOK_SECONDS)


async def to_prompt(reactor: Any, guest: str, line: KdbLine, ways: BreakIn) -> BreakInWay | None:
    """Bring a kernel to kdb's prompt; returns the way that led in, None where it stood already.

    Raises ``GuestError`` where a debugger is attached, where no way leads in, and where no prompt comes: the kernel
    runs then as before.
    """

    async def until(condition: Callable[[], bool], seconds: float) -> bool:
        end = reactor.seconds() + seconds
        while not condition():
            if reactor.seconds() >= end:
                return False
            await deferLater(reactor, LOOK_SECONDS)
        return True

    _check_free(guest, line)
    way = None
    if not line.stands:
        way = await ways.enter(lambda seconds: until(lambda: line.stands, seconds))
        _check_free(guest, line)
    if line.at_prompt:
        return way
    line.ask_for_kdb()
    if await until(lambda: line.at_prompt or line.is_attended, PROMPT_SECONDS) and line.at_prompt:
        return way
    _check_free(guest, line)
    line.let_go()
    raise GuestError(
        f"{guest} shows no prompt of kdb",
        why=f"none came within {PROMPT_SECONDS:g} s from a kernel that stood in kgdb; it was let go",
        todo="was it built with CONFIG_KGDB_KDB? A debugger can be attached without",
    )


def _check_free(guest: str, line: KdbLine) -> None:
    if line.is_attended:
        raise GuestError(
            f"{guest} cannot be brought to kdb",
            why="a debugger is attached, and has its kernel",
            todo="have it leave first: `kbridge ls` shows whose it is",
        )
