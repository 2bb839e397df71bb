"""Making a running kernel enter kgdb from outside: a byte on kgdb's own port is no way in.

in          ``enter``, with what tells whether a stop arrived
out         BREAK and ``g`` on the console's line, by it or by the machine monitor; a non-maskable interrupt; a pause
states      resting; trying the ways, one at a time
invariant   a way is over before the next is tried, and so is a call; the way that worked last is tried first, also by
            the next relay

Whether the kernel stands cannot be seen here.  Linux (6.1) writes ``Entering kdb`` to kgdb's port only before the
first packet it ever gets, and nothing once a debugger has detached: its stop is seen by what answers a ``?`` (see
``docs/kgdb.md``).  So the caller looks, and must have looked *before* it asks: BREAK and ``g`` that reach a kernel
which stands are kept by its serial port, and stop it again once it runs.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol, assert_never

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from kbridge import way_in
from kbridge.config import BreakInWay
from kbridge.errors import GuestError, KbridgeError, RecordError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kbridge.breaks import Breaks
    from kbridge.hypervisors.interface import Machine

WAIT_SECONDS: Final = 2.0
"""How long a stop may take after a way was tried; a guest under software emulation takes 0.3 s."""
MAX_HEARD_BYTES: Final = 16384
"""How much of what the console said meanwhile is searched for the kernel's own words."""

Arrived = Callable[[float], Awaitable[bool]]
"""Waits until the kernel stands in kgdb: True as soon as it does, False after so many seconds."""


class Recording(Protocol):
    """What a console said, by absolute offset: a ``Ring``."""

    @property
    def head(self) -> int:
        """The offset after the last byte."""

    def read(self, offset: int, length: int) -> bytes | None:
        """Return bytes from ``offset`` on, None where they are gone."""


class BreakIn:
    """The ways into one guest's kgdb.

    ``ways`` are as configured; of ``sysrq`` those are made that ``breaks`` has.  ``machine`` is the monitor, if any.
    ``said`` is the console's record, in which the kernel's refusals are looked for.  ``memory`` is the file in
    which is kept what worked, if it is to be.  ``seek`` has the stub asked although nothing shows that the kernel
    stands, and tells whether it was: a kernel in kgdb that has lost its debugger reads BREAK and key, and says nothing.
    ``turn_pages`` has a kdb that waits in the middle of what it prints go on, and tells whether it does: it would take
    BREAK for a key that turns a page, and ``g`` for the beginning of a command.
    """

    _log = Logger()

    def __init__(
        self,
        guest: str,
        ways: Sequence[BreakInWay],
        *,
        breaks: Breaks,
        machine: Machine | None,
        said: Recording,
        memory: Path | None = None,
        seek: Callable[[], bool] | None = None,
        turn_pages: Callable[[], bool] | None = None,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._guest = guest
        self._asks_break = BreakInWay.SYSRQ in ways
        self._configured = tuple(dict.fromkeys(each for way in ways for each in _meant(way, breaks)))
        self._breaks = breaks
        self._machine = machine
        self._said = said
        self._memory = memory
        self._seek = seek
        self._turn_pages = turn_pages
        self._wait_seconds = wait_seconds
        self._turn = DeferredLock()
        self.worked: BreakInWay | None = None
        """What led in last, if anything has."""
        if memory is not None:
            try:
                self.worked = way_in.read(memory, self._configured)
            except RecordError as error:
                self._log.warn("{guest}: {error}", guest=guest, error=str(error))

    @property
    def ways(self) -> tuple[BreakInWay, ...]:
        """The ways in the order in which they are tried next."""
        first = () if self.worked is None else (self.worked,)
        return tuple(dict.fromkeys((*first, *self._configured)))

    async def enter(self, arrived: Arrived) -> BreakInWay | None:
        """Try each way until ``arrived`` says that the kernel stands; returns the way that worked.

        None where it stood already: after another call, which is waited for, in kdb's pager, or in silence.  Raises
        ``GuestError`` with what came of each way when none worked.  The kernel may still enter kgdb after that, and
        where it took no SysRq, ``g`` was typed on its console.
        """
        has_waited = self._turn.locked
        await self._turn.acquire()
        try:
            if has_waited and await arrived(0):
                return None
            if self._turn_pages is not None and self._turn_pages() and await arrived(self._wait_seconds):
                return None
            return await self._try_all(arrived)
        finally:
            self._turn.release()

    async def _try_all(self, arrived: Arrived) -> BreakInWay | None:
        failures: list[KbridgeError] = []
        began = self._said.head
        is_answered = False  # by the kernel: BREAK and g arrive, and other ways to send them change nothing
        for way in self.ways:
            if is_answered and way not in (BreakInWay.NMI, BreakInWay.PAUSE):
                continue
            mark = self._said.head
            try:
                await self._send(way)
            except KbridgeError as error:
                failures.append(error)
                continue
            if way is not BreakInWay.PAUSE and await arrived(self._wait_seconds):
                self._remember(way)
                return way
            heard = self._said.read(mark, MAX_HEARD_BYTES) or b""
            is_answered = is_answered or _has_answered(heard)
            failures.append(self._unanswered(way, heard))
        if not failures:
            raise self._no_way()
        is_silent = self._said.head == began
        if is_silent and self._seek is not None and self._seek() and await arrived(self._wait_seconds):
            return None
        first, *more = failures
        why = "; ".join([first.why or first.what, *(str(error) for error in more)])
        raise GuestError(f"{self._guest} was not broken into: {first.what}", why=why, todo=first.todo)

    def _no_way(self) -> GuestError:
        if self._asks_break:
            missing = self._breaks.missing
            return GuestError(
                f"{self._guest} was not broken into: {missing.what}", why=missing.why, todo=missing.todo
            )
        return GuestError(
            f"{self._guest} runs, and there is no way to break into it",
            why="`break_in` is empty",
            todo="have the kernel enter kgdb itself (echo g > /proc/sysrq-trigger), or set `break_in`",
        )

    def _remember(self, way: BreakInWay) -> None:
        if way is self.worked:
            return
        self.worked = way
        if self._memory is not None:
            try:
                way_in.write(self._memory, self._configured, way)
            except RecordError as error:
                # The guest is broken into all the same; the next relay tries the ways in their order.
                self._log.error("{guest}: {error}", guest=self._guest, error=str(error))

    async def _send(self, way: BreakInWay) -> None:
        match way:
            case BreakInWay.NMI:
                await self._monitor("an NMI was not injected").nmi()
            case BreakInWay.PAUSE:
                await self._monitor("the machine was not paused").pause()
            case _:
                await self._breaks.send(way)
                self._breaks.press(b"g")

    def _monitor(self, what: str) -> Machine:
        if self._machine is None:
            raise GuestError(what, why="no machine monitor", todo="configure `qmp`")
        return self._machine

    def _unanswered(self, way: BreakInWay, heard: bytes) -> GuestError:
        """Say why a way may not have worked, by the kernel's own words where there are any."""
        match way:
            case BreakInWay.NMI:
                why = f"no stop came within {self._wait_seconds:g} s"
                if b"Uhhuh. NMI received" in heard:
                    why = "the kernel took it for none of its own and went on"
                return GuestError(
                    "an NMI was injected",
                    why=why,
                    todo='break in by "sysrq": x86 kernels do not enter kgdb at an NMI',
                )
            case BreakInWay.PAUSE:
                return GuestError(
                    "the machine was paused as the last resort",
                    why="its kernel stands, but not in kgdb, and answers no debugger",
                    todo=f"`kbridge power {self._guest} resume` lets it run",
                )
            case BreakInWay.SYSRQ:
                raise AssertionError("the ways that it means were tried")
            case (
                BreakInWay.SERIAL_BREAK
                | BreakInWay.TELNET_BREAK
                | BreakInWay.RFC2217_BREAK
                | BreakInWay.MONITOR_BREAK
            ):
                return _sysrq_failure(f"BREAK and g were sent ({way.value})", heard, self._wait_seconds)
            case _:
                assert_never(way)


def _meant(way: BreakInWay, breaks: Breaks) -> tuple[BreakInWay, ...]:
    return breaks.ways if way is BreakInWay.SYSRQ else (way,)


# drivers/tty/sysrq.c, __handle_sysrq(): the words for a masked key, and for one that nobody registered.
_DISABLED: Final = b"This sysrq operation is disabled"
_HELP: Final = b"sysrq: HELP"
_ECHO: Final = re.compile(rb"\Ag|\ng\Z")
"""The key where a program echoes it: first of all, or last on a new line."""


def _has_answered(heard: bytes) -> bool:
    return _DISABLED in heard or _HELP in heard


def _sysrq_failure(what: str, heard: bytes, seconds: float) -> GuestError:
    if _DISABLED in heard:
        return GuestError(
            what,
            why="the kernel says that this SysRq operation is disabled",
            todo="allow it in the guest: sysctl kernel.sysrq=1, or a value with bit 8",
        )
    if _HELP in heard:
        return GuestError(
            what,
            why="the kernel knows no SysRq g: it has no kgdb, or kgdb has no port",
            todo="boot it with kgdboc=PORT, or echo PORT > /sys/module/kgdboc/parameters/kgdboc",
        )
    if _ECHO.search(heard):
        return GuestError(
            what,
            why=f"no stop came within {seconds:g} s, and the g was typed on the console",
            todo="set kernel.sysrq to 1, or a value with bit 8: 0 makes a key of it; or the BREAK was lost on its way",
        )
    return GuestError(
        what,
        why=f"no stop came within {seconds:g} s, and the kernel said nothing of SysRq",
        todo="see that kernel.sysrq is not 0 (the g was then typed on the console), that this line is the kernel's "
        "console, and that the guest takes interrupts",
    )
