"""Guest memory, read through the machine monitor while the guest runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from kbridge.errors import MachineError

if TYPE_CHECKING:
    from symbols.reads import Search

MAX_READ_BYTES: Final = 4096
_BYTE: Final = re.compile(r"\b0x([0-9a-f]{2})\b")
_Result = TypeVar("_Result")


class HumanMonitor(Protocol):
    """QEMU's monitor for people, of which only reading is used here."""

    async def human_monitor(self, command: str) -> str:
        """Return the answer to one line."""


class MonitorMemory:
    """Virtual memory as the first processor sees it at that moment: nothing in the guest is stopped."""

    def __init__(self, monitor: HumanMonitor) -> None:
        self._monitor = monitor

    async def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes, none at all where something is not mapped; raises ``MachineError``."""
        if not 0 < length <= MAX_READ_BYTES:
            raise ValueError(f"{length} bytes cannot be read at once")
        # QEMU's text: "fffffe0000000000: 0x40 0x0b 0xe0 …", eight bytes a line.
        text = await self._monitor.human_monitor(f"x /{length}xb {address:#x}")
        data = bytes(
            int(found.group(1), 16)
            for line in text.splitlines()
            for found in _BYTE.finditer(line.partition(":")[2])
        )
        if len(data) == length:
            return data
        if "cannot access memory" in text.lower():
            return b""
        raise MachineError("the monitor's answer to a read of memory is not understood", why=repr(text[:80]))

    async def run(self, search: Search[_Result]) -> _Result:
        """Drive a search with what is in memory; raises what the search does, and ``MachineError``."""
        try:
            batch = next(search)
            while True:
                batch = search.send(tuple([await self.read(read.address, read.length) for read in batch]))
        except StopIteration as done:
            result: _Result = done.value
            return result
