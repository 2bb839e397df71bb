"""Guest memory, read through the machine monitor while the guest runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from kbridge.hypervisors.interface import MOST_READ_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from symbols.reads import Read, Search

_Result = TypeVar("_Result")


class LiveMemory(Protocol):
    """What can read memory of a guest that runs: a ``Machine``."""

    async def read_memory(self, address: int, length: int) -> bytes:
        """Return what is mapped of ``length`` bytes, from the first on; raises ``MachineError``."""


async def drive(
    search: Search[_Result], read: Callable[[tuple[Read, ...]], Awaitable[tuple[bytes, ...]]]
) -> _Result:
    """Drive a search with what ``read`` gives for each batch; raises what either raises."""
    try:
        batch = next(search)
        while True:
            batch = search.send(await read(batch))
    except StopIteration as done:
        result: _Result = done.value
        return result


class MonitorMemory:
    """Virtual memory as the first processor sees it at that moment: nothing in the guest is stopped."""

    def __init__(self, machine: LiveMemory) -> None:
        self._machine = machine

    async def _read(self, address: int, length: int) -> bytes:
        """Read in pieces that the monitor takes; nobody else is served while it reads one."""
        data = b""
        while len(data) < length:
            wanted = min(length - len(data), MOST_READ_BYTES)
            piece = await self._machine.read_memory(address + len(data), wanted)
            data += piece
            if len(piece) < wanted:
                break
        return data

    async def run(self, search: Search[_Result]) -> _Result:
        """Drive a search with what is in memory; raises what the search does, and ``MachineError``."""
        return await drive(search, self._batch)

    async def _batch(self, reads: tuple[Read, ...]) -> tuple[bytes, ...]:
        return tuple([await self._read(one.address, one.length) for one in reads])
