"""A guest's memory and processors out of a core file: ELF, as it is or as seekable zstd, or kdump's compressed format.

in          a file, addresses
out         physical memory, virtual memory as a processor sees it, registers, VMCOREINFO
invariant   everything in the file is another's word: what it says of itself is bounded before it is believed
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from kbridge.crash import elf_core
from kbridge.crash.core_bytes import Bytes, open_bytes
from kbridge.crash.core_processors import Processor, processors
from kbridge.errors import ImageError
from kbridge.memory import paging
from kbridge.memory.paging import Page, Tables

if TYPE_CHECKING:
    from symbols.reads import Search

MOST_PAGES_KEPT: Final = 1 << 16
SCAN_BYTES: Final = 1 << 20
_Result = TypeVar("_Result")


class CoreFile:
    """One core file; the module's text says how."""

    def __init__(self, source: Bytes, name: str) -> None:
        """Read what stands before the memory.  Raises ``ImageError``."""
        self.name = name
        self.source = source
        try:
            self.head = elf_core.read_head(source.size, source.read)
        except elf_core.CoreError as error:
            raise ImageError(f"{name} is no memory image that can be read", why=str(error)) from error
        if self.head.machine not in elf_core.MACHINES:
            raise ImageError(f"{name} is of machine {self.head.machine}", why="only x86-64 is known")
        self.loads = self.head.loads
        self._starts = [one.physical for one in self.loads]
        self.processors: tuple[Processor, ...] = processors(self.head.notes)
        self._pages: dict[tuple[int, int], Page | None] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file.  Raises ``ImageError``."""
        source = open_bytes(path)
        try:
            return cls(source, str(path))
        except ImageError:
            source.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self.source.close()

    @property
    def size(self) -> int:
        """Bytes of physical memory that are in it."""
        return sum(one.size for one in self.loads)

    # -- physical memory ------------------------------------------------------------------------------------

    def read_physical(self, address: int, length: int) -> bytes:
        """Return what there is of physical memory, from the first byte on.  Raises ``ImageError``."""
        pieces = []
        while length > 0:
            index = bisect_right(self._starts, address) - 1
            if index < 0:
                break
            load = self.loads[index]
            here = min(length, load.physical + load.size - address)
            if here <= 0:
                break
            piece = self.source.read(load.offset + address - load.physical, here)
            pieces.append(piece)
            if len(piece) < here:
                # The page there was left out of the file.
                break
            address, length = address + here, length - here
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def scan(self) -> Iterator[tuple[int, bytes]]:
        """Give all physical memory that is there in pieces, each with its address.  Raises ``ImageError``."""
        for load in self.loads:
            start, end = load.physical, load.physical + load.size
            while start < end:
                wanted = min(SCAN_BYTES, end - start)
                piece = self.read_physical(start, wanted)
                if piece:
                    yield start, piece
                start += len(piece)
                if len(piece) < wanted:
                    start += elf_core.PAGE_BYTES

    def drive_physical(self, search: Search[_Result]) -> _Result:
        """Drive a search whose addresses are physical ones; raises what it raises."""
        try:
            batch = next(search)
            while True:
                batch = search.send(tuple(self.read_physical(one.address, one.length) for one in batch))
        except StopIteration as done:
            result: _Result = done.value
            return result

    # -- virtual memory -------------------------------------------------------------------------------------

    def tables(self, processor: int) -> Tables | None:
        """Return a processor's page tables; None where it translates nothing, or that is not known."""
        if not 0 <= processor < len(self.processors):
            return None
        registers = self.processors[processor].registers
        if "cr3" not in registers or not paging.is_on(registers.get("cr0", 0)):
            return None
        return Tables.of_registers(registers["cr3"], registers.get("cr4", 0))

    def page(self, tables: Tables, address: int) -> Page | None:
        """Return the page of a virtual address, None where nothing is mapped.  Raises ``ImageError``."""
        key = tables.root, address >> 12
        if key in self._pages:
            return self._pages[key]
        found = self.drive_physical(paging.walk_kernel(tables, address))
        if len(self._pages) >= MOST_PAGES_KEPT:
            self._pages.clear()
        self._pages[key] = found
        return found

    def read_virtual(self, tables: Tables | None, address: int, length: int) -> bytes:
        """Return what is mapped of virtual memory, from the first byte on; physical where nothing is translated.

        Raises ``ImageError``.
        """
        if tables is None:
            return self.read_physical(address, length)
        pieces = []
        while length > 0:
            page = self.page(tables, address)
            if page is None:
                break
            offset = address - page.virtual
            here = min(length, page.size - offset)
            piece = self.read_physical(page.physical + offset, here)
            pieces.append(piece)
            if len(piece) < here:
                break
            address, length = address + here, length - here
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
