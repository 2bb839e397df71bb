"""Lines of assembler code, which the index of lines has not: read out of the file once and remembered beside its index.

Reading one takes half a second, and every backtrace goes through a few places of the kernel's entry code.

What is remembered is JSON: a version, and for each address in hexadecimal file and line, null where the file has none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from kbridge.debuginfo.cache import folder, write
from symbols.errors import SymbolError
from symbols.index import Index
from symbols.lines import Frame

MOST_LINES: Final = 4096
MOST_BYTES: Final = 1 << 20
VERSION: Final = 1


class AssemblerLines:
    """Lines of one kernel's file, remembered in ``place``."""

    @classmethod
    def beside(cls, index: Index, path: Path) -> AssemblerLines:
        """Return those of a file, remembered beside its index."""
        return cls(path, folder() / f"{index.build_id}.assembler")

    def __init__(self, path: Path, place: Path) -> None:
        self._path = path
        self._place = place
        self._known: dict[str, Any] | None = None

    def find(self, address: int) -> Frame | None:
        """Return file and line of an address as linked; None where the file has none or cannot be read."""
        if self._known is None:
            self._known = _recalled(self._place)
        key = f"{address:x}"
        if key not in self._known:
            self._known[key] = self._read(address)
            self._remember(self._known)
        row = self._known[key]
        return None if row is None else Frame(None, row[0], row[1])

    def _read(self, address: int) -> list[Any] | None:
        from symbols.dwarf_unit import line_at  # noqa: PLC0415 (it is large, and seldom needed)

        try:
            with self._path.open("rb") as stream:
                found = line_at(stream, address)
        except (OSError, SymbolError):
            # A line is worth having, not worth failing for.
            return None
        return None if found is None or found.file is None else [found.file, found.line]

    def _remember(self, known: dict[str, Any]) -> None:
        while len(known) > MOST_LINES:
            del known[next(iter(known))]
        try:
            write(self._place, [json.dumps({"version": VERSION, "lines": known}).encode()])
        except OSError:
            # It is read again the next time.
            return


def _recalled(place: Path) -> dict[str, Any]:
    try:
        with place.open("rb") as file:
            said = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if (
        not isinstance(said, dict)
        or said.get("version") != VERSION
        or not isinstance(said.get("lines"), dict)
    ):
        return {}
    return {key: row for key, row in said["lines"].items() if _is_row(row)}


def _is_row(row: Any) -> bool:
    match row:
        case None | [str(), int() | None]:
            return True
        case _:
            return False
