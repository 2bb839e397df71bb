"""Making a running kernel enter kgdb from outside: a byte on kgdb's own port is no way in.

in          ``enter``, with what tells whether a stop arrived
out         BREAK and ``g`` on the console's line, or a non-maskable interrupt by the machine monitor
states      resting; trying the ways, one at a time
invariant   a way is tried once a call and is over before the next; the way that worked last is tried first

Whether the kernel stands cannot be seen here.  Linux (6.1) writes ``Entering kdb`` to kgdb's port only before the
first packet it ever gets, and nothing once a debugger has detached: its stop is seen by what answers a ``?`` (see
``docs/kgdb.md``).  So the caller looks, and must have looked *before* it asks: BREAK and ``g`` that reach a kernel
which stands are kept by its serial port, and stop it again once it runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol, assert_never

from kbridge.config import BreakInWay
from kbridge.errors import GuestError, KbridgeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbridge.hypervisors.interface import Machine
    from kbridge.transports.endpoints import Endpoint

WAIT_SECONDS: Final = 2.0
"""How long a stop may take after a way was tried; a guest under software emulation takes 0.3 s."""
MAX_HEARD_BYTES: Final = 16384
"""How much of what the console said meanwhile is searched for the kernel's own words."""

Arrived = Callable[[float], Awaitable[bool]]
"""Waits until the kernel stands in kgdb: True as soon as it does, False after so many seconds."""


class SysrqLine(Protocol):
    """What a BREAK and a key are sent on: a ``ConsoleLine``, or the line that kgdb shares with one."""

    @property
    def can_break(self) -> bool:
        """Whether ``send_break`` works on this kind of line."""

    async def send_break(self) -> None:
        """Hold the line in BREAK for a moment; raises ``LineError`` when that cannot be done."""

    def write(self, data: bytes) -> None:
        """Send a key; raises ``LineError``."""


class Recording(Protocol):
    """What a console said, by absolute offset: a ``Ring``."""

    @property
    def head(self) -> int:
        """The offset after the last byte."""

    def read(self, offset: int, length: int) -> bytes | None:
        """Return bytes from ``offset`` on, None where they are gone."""


class BreakIn:
    """The ways into one guest's kgdb.

    ``console`` is the line's endpoint as configured, ``line`` gives the line where it is open for use, ``machine`` is
    the monitor; each may be missing.  ``said`` is the console's record, in which the kernel's refusals are looked for.
    """

    def __init__(
        self,
        guest: str,
        ways: Sequence[BreakInWay],
        *,
        console: Endpoint | None,
        line: Callable[[], SysrqLine | None],
        machine: Machine | None,
        said: Recording,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._guest = guest
        self._ways = list(dict.fromkeys(ways))
        self._console = console
        self._line = line
        self._machine = machine
        self._said = said
        self._wait_seconds = wait_seconds
        self._busy = False

    @property
    def ways(self) -> tuple[BreakInWay, ...]:
        """The ways in the order in which they are tried next."""
        return tuple(self._ways)

    async def enter(self, arrived: Arrived) -> BreakInWay:
        """Try each way until ``arrived`` says that the kernel stands; returns the way that worked.

        Raises ``GuestError`` with what came of each when none did.  The kernel may still enter kgdb after that, and
        where it took no SysRq, ``g`` was typed on its console.  One call at a time.
        """
        assert not self._busy, "one break-in at a time"
        self._busy = True
        try:
            return await self._try_all(arrived)
        finally:
            self._busy = False

    async def _try_all(self, arrived: Arrived) -> BreakInWay:
        if not self._ways:
            raise GuestError(
                f"{self._guest} runs, and there is no way to break into it",
                why="`break_in` is empty",
                todo="have the kernel enter kgdb itself (echo g > /proc/sysrq-trigger), or set `break_in`",
            )
        failures: list[KbridgeError] = []
        for way in tuple(self._ways):
            mark = self._said.head
            try:
                await self._send(way)
            except KbridgeError as error:
                failures.append(error)
                continue
            if await arrived(self._wait_seconds):
                self._ways.remove(way)
                self._ways.insert(0, way)
                return way
            failures.append(self._unanswered(way, self._said.read(mark, MAX_HEARD_BYTES) or b""))
        first, *more = failures
        why = "; ".join([first.why or first.what, *(str(error) for error in more)])
        raise GuestError(f"{self._guest} was not broken into: {first.what}", why=why, todo=first.todo)

    async def _send(self, way: BreakInWay) -> None:
        match way:
            case BreakInWay.SYSRQ:
                await self._send_sysrq()
            case BreakInWay.NMI:
                if self._machine is None:
                    raise GuestError(
                        "an NMI was not injected", why="no machine monitor", todo="configure `qmp`"
                    )
                await self._machine.nmi()
            case _:
                assert_never(way)

    async def _send_sysrq(self) -> None:
        line = self._line()
        if line is None or self._console is None:
            raise GuestError("BREAK was not sent", why="the guest has no console", todo="configure `console`")
        if line.can_break:
            await line.send_break()
        elif self._machine is not None:
            await self._machine.send_break(str(self._console))
        else:
            raise GuestError(
                f"BREAK was not sent on {self._console}",
                why="this kind of line has none, and there is no machine monitor",
                todo="configure `qmp`, or a telnet:, rfc2217: or serial: console",
            )
        line.write(b"g")

    def _unanswered(self, way: BreakInWay, heard: bytes) -> GuestError:
        """Say why a way may not have worked, by the kernel's own words where there are any."""
        match way:
            case BreakInWay.SYSRQ:
                return _sysrq_failure(heard, self._wait_seconds)
            case BreakInWay.NMI:
                why = f"no stop came within {self._wait_seconds:g} s"
                if b"Uhhuh. NMI received" in heard:
                    why = "the kernel took it for none of its own and went on"
                return GuestError(
                    "an NMI was injected",
                    why=why,
                    todo='break in by "sysrq": x86 kernels do not enter kgdb at an NMI',
                )
            case _:
                assert_never(way)


def _sysrq_failure(heard: bytes, seconds: float) -> GuestError:
    # drivers/tty/sysrq.c, __handle_sysrq(): the words for a masked key, and for one that nobody registered.
    if b"This sysrq operation is disabled" in heard:
        return GuestError(
            "BREAK and g were sent",
            why="the kernel says that this SysRq operation is disabled",
            todo="allow it in the guest: sysctl kernel.sysrq=1, or a value with bit 8",
        )
    if b"sysrq: HELP" in heard:
        return GuestError(
            "BREAK and g were sent",
            why="the kernel knows no SysRq g: it has no kgdb, or kgdb has no port",
            todo="boot it with kgdboc=PORT, or echo PORT > /sys/module/kgdboc/parameters/kgdboc",
        )
    return GuestError(
        "BREAK and g were sent",
        why=f"no stop came within {seconds:g} s, and the kernel said nothing of SysRq",
        todo="see that kernel.sysrq is not 0 (the g was then typed on the console), that this line is the kernel's "
        "console, and that the guest takes interrupts",
    )
