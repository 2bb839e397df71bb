"""How registers and memory of a guest that stands are come by: through its stub, as an observer, or the monitor.

    guest stands ──▶ relay ── a session like any debugger's, which observes ──▶ stub
                └──▶ machine monitor: where there is no stub, or it is the kernel's own (without one: evidence_kgdb.py)

in          a guest that stands
out         ``Evidence``: registers of all processors, searches in memory
invariant   nothing is written and nothing resumed; what was opened is closed, and the guest is left as it was found
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from gdbstubs.dialects import InterruptBy
from gdbstubs.target import ANY_THREAD, Halted
from kbridge.errors import GuestError
from kbridge.hypervisors.examine import parse_registers
from kbridge.hypervisors.qemu import QemuMachine
from kbridge.memory.sources import MonitorMemory, drive
from kbridge.rsp_client import over

if TYPE_CHECKING:
    from gdbstubs.target import Thread
    from kbridge.guest import Guest
    from kbridge.rsp_client import RspClient
    from symbols.reads import Read, Search

NAME: Final = "crash-capture"
"""Of the session; debuggers see it in `monitor status`."""
ATTACH_SECONDS: Final = 5.0
PIECE_BYTES: Final = 1 << 16
_CPU: Final = re.compile(r"CPU#(\d+)")
_Result = TypeVar("_Result")

Registers = dict[str, int]
"""By their names in lower case; those that are not available are left out."""


class Evidence(Protocol):
    """A guest that stands, to be looked at."""

    async def processors(self) -> Sequence[tuple[int, Registers]]:
        """Return the number and the registers of each processor.  Raises ``KbridgeError``."""

    async def run(self, search: Search[_Result]) -> _Result:
        """Drive a search; raises what it raises, and ``KbridgeError``."""

    async def close(self) -> None:
        """Let go of the guest."""


class StubEvidence:
    """By a session of the relay's."""

    def __init__(self, client: RspClient) -> None:
        self._client = client

    async def processors(self) -> Sequence[tuple[int, Registers]]:
        """Return the number and the registers of each processor."""
        found = []
        for index, thread in enumerate(await self._client.threads()):
            values = await self._client.registers(thread.id)
            known = {name: value for name, value in values.items() if value is not None}
            found.append((_number(thread, index), known))
        return found

    async def run(self, search: Search[_Result]) -> _Result:
        """Drive a search."""
        return await drive(search, self._batch)

    async def _batch(self, reads: tuple[Read, ...]) -> tuple[bytes, ...]:
        return tuple(await self._client.read_all([(one.address, one.length) for one in reads], ANY_THREAD))

    async def close(self) -> None:
        """Leave."""
        await self._client.close()


class MonitorEvidence:
    """By the machine monitor: memory as the first processor sees it."""

    def __init__(self, machine: QemuMachine) -> None:
        self._machine = machine
        self._memory = MonitorMemory(machine)

    async def processors(self) -> Sequence[tuple[int, Registers]]:
        """Return the number and the registers of each processor."""
        return parse_registers(await self._machine.human_monitor("info registers -a"))

    async def run(self, search: Search[_Result]) -> _Result:
        """Drive a search."""
        return await self._memory.run(search)

    async def close(self) -> None:
        """Do nothing: the monitor is the guest's."""


async def open_evidence(guest: Guest, reactor: Any) -> Evidence:
    """Look at a guest that stands; raises ``KbridgeError`` where there is no way to."""
    problem = ""
    relay, machine = guest.relay, guest.machine
    if relay is not None and relay.dialect.interrupt_by is not InterruptBy.BREAK_IN:
        _, connection = relay.open_session(NAME, observes=True)
        try:
            client = await over(reactor, f"the stub of {guest.name}", connection, seconds=ATTACH_SECONDS)
        except GuestError as error:
            problem = str(error)
        else:
            if isinstance(client.stop, Halted) and client.stop.signal:
                return StubEvidence(client)
            await client.close()
            problem = "the stub says that the guest runs"
    if isinstance(machine, QemuMachine) and machine.connected:
        return MonitorEvidence(machine)
    if problem:
        raise GuestError(f"{guest.name} cannot be looked at", why=problem)
    raise GuestError(
        f"{guest.name} cannot be looked at",
        why="it has no machine monitor and no debug stub",
        todo="configure `qmp`",
    )


def _number(thread: Thread, index: int) -> int:
    found = _CPU.search(thread.extra)
    return index if found is None else int(found[1])
