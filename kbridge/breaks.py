"""BREAK on a guest's console: over its line, in each way that this kind of line has, or by the machine monitor.

in          the console's endpoint as configured, its line where it is open for use, the monitor; each may be missing
out         BREAK, by one way; which ways there are
invariant   a way that cannot be gone says why, and sends nothing
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from kbridge.config import BreakInWay
from kbridge.errors import KbridgeError, LineError
from kbridge.transports.endpoints import Break

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbridge.hypervisors.interface import Machine
    from kbridge.transports.endpoints import Endpoint

_OVER_LINE: Final = {
    Break.SERIAL: BreakInWay.SERIAL_BREAK,
    Break.TELNET: BreakInWay.TELNET_BREAK,
    Break.RFC2217: BreakInWay.RFC2217_BREAK,
}
_BREAKS: Final = {way: how for how, way in _OVER_LINE.items()}


class SysrqLine(Protocol):
    """What a BREAK and a key are sent on: a ``ConsoleLine``, or the line that kgdb shares with one."""

    async def send_break(self, how: Break) -> None:
        """Hold the line in BREAK for a moment; raises ``LineError`` when that cannot be done."""

    def write(self, data: bytes) -> None:
        """Send a key; raises ``LineError``."""


class Breaks:
    """BREAK on one guest's console; the module's text says how."""

    def __init__(
        self, console: Endpoint | None, line: Callable[[], SysrqLine | None], machine: Machine | None
    ) -> None:
        self._console = console
        self._line = line
        self._machine = machine

    @property
    def ways(self) -> tuple[BreakInWay, ...]:
        """The ways that this guest has, the line's own first."""
        if self._console is None:
            return ()
        over_line = tuple(_OVER_LINE[how] for how in self._console.breaks)
        return over_line if self._machine is None else (*over_line, BreakInWay.MONITOR_BREAK)

    async def send(self, way: BreakInWay) -> None:
        """Send BREAK.  Raises ``LineError`` or ``MachineError``."""
        line = self._line()
        if self._console is None or line is None:
            raise LineError("BREAK was not sent", why="the guest has no console", todo="configure `console`")
        if way is BreakInWay.MONITOR_BREAK:
            if self._machine is None:
                raise LineError("BREAK was not sent", why="no machine monitor", todo="configure `qmp`")
            await self._machine.send_break(str(self._console))
            return
        await line.send_break(_BREAKS[way])

    async def send_somehow(self) -> BreakInWay:
        """Send BREAK by the first way that can be gone, and return it.  Raises as ``send`` does, for the first."""
        first: KbridgeError | None = None
        for way in self.ways:
            try:
                await self.send(way)
            except KbridgeError as error:
                first = first or error
            else:
                return way
        raise first or self.missing

    @property
    def missing(self) -> LineError:
        """What to say where there is no way at all."""
        if self._console is None:
            return LineError("BREAK was not sent", why="the guest has no console", todo="configure `console`")
        return LineError(
            f"BREAK cannot be sent on {self._console}",
            why="this kind of line has none, and there is no machine monitor",
            todo="configure `qmp`, or a telnet:, rfc2217: or serial: console",
        )

    def press(self, key: bytes) -> None:
        """Send a SysRq key.  Raises ``LineError``."""
        line = self._line()
        if line is None:
            raise LineError("no key was sent", why="the guest has no console", todo="configure `console`")
        line.write(key)
