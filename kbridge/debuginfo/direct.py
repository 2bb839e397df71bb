"""Answers out of a file with symbols itself, for who asks once: nothing is made or kept, `symbolic` is not loaded.

Source lines are those of one unit's line number program; calls that were inlined are not told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kbridge.debuginfo.mapping import mapped
from kbridge.errors import KbridgeError
from symbols import linking, table_making
from symbols.dwarf_units import Units
from symbols.errors import SymbolError
from symbols.lines import Frame
from symbols.table import Symbol, Table

if TYPE_CHECKING:
    from symbols.elf import Image


class Direct:
    """A file's symbols and lines; addresses are as linked, a module's as an index of it has them."""

    def __init__(self, image: Image) -> None:
        """Read the symbols.  Raises ``SymbolError``."""
        linked = bytes(linking.link(image)) if linking.is_relocatable(image) else image
        self._table = Table(memoryview(table_making.build(linked)))
        self._units = Units(linked)

    def symbol(self, address: int) -> tuple[Symbol, int] | None:
        """Return the symbol at an address, and the distance from it to the next that is elsewhere."""
        return self._table.at(address)

    def frames(self, address: int) -> tuple[Frame, ...]:
        """Return the innermost call at an address, under the symbol's name.  Raises ``SymbolError``."""
        line, symbol = self._units.line_at(address), self._table.at(address)
        if line is None:
            return ()
        return (Frame(None if symbol is None else symbol[0].name, line[0], line[1] or None),)


@contextmanager
def direct(path: Path) -> Iterator[Direct]:
    """Read a file's symbols.  Raises ``KbridgeError``."""
    try:
        with mapped(path) as image:
            yield Direct(image)
    except (OSError, ValueError, SymbolError) as error:
        raise KbridgeError(
            f"{path} cannot be read", why=str(error), todo="give a vmlinux with symbols"
        ) from error
