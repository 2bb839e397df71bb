"""A core file's virtual memory, for searches in it: as a processor that has the kernel mapped sees it.

in          searches (``symbols.reads``)
out         what they find; ``ImageError`` where the file is damaged
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from symbols.kaslr import INTERRUPT_TABLE

if TYPE_CHECKING:
    from kbridge.crash.core_file import CoreFile
    from kbridge.memory.paging import Tables
    from symbols.reads import Search

_Result = TypeVar("_Result")


def kernel_tables(core: CoreFile) -> Tables | None:
    """Return the page tables of a processor that has the kernel mapped, else of any; None where none translates.

    Raises ``ImageError``.
    """
    known = [one for number in range(len(core.processors)) if (one := core.tables(number)) is not None]
    mapping = (one for one in known if core.page(one, INTERRUPT_TABLE) is not None)
    return next(mapping, known[0] if known else None)


class CoreMemory:
    """Virtual memory; the module's text says how.  Raises ``ImageError``."""

    def __init__(self, core: CoreFile) -> None:
        self._core = core
        self.tables = kernel_tables(core)

    def read(self, address: int, length: int) -> bytes:
        """Return what is mapped, from the first byte on.  Raises ``ImageError``."""
        return self._core.read_virtual(self.tables, address, length)

    def search(self, search: Search[_Result]) -> _Result:
        """Drive a search; raises what it raises, and ``ImageError``."""
        try:
            batch = next(search)
            while True:
                batch = search.send(tuple(self.read(one.address, one.length) for one in batch))
        except StopIteration as done:
            result: _Result = done.value
            return result

    async def run(self, search: Search[_Result]) -> _Result:
        """Drive a search, for those who wait for it."""
        return self.search(search)
