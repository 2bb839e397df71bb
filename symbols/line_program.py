"""Rows of one line number program: which line each address is of.

The rows are those that the program emits, in its order; a sequence ends with a row whose file is ``END``, and its
address is the first that does not belong to it.  Of several rows with one address the last counts, as other readers
have it.

Source: DWARF 5, 6.2 "Line Number Information"; versions 2 to 5, 32 and 64 bits, little-endian.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from symbols.errors import SymbolError

if TYPE_CHECKING:
    from collections.abc import Callable

END: Final = -1
"""In the place of a file's number: the sequence ends here."""
MOST_FILES: Final = 65_535
MOST_BYTES: Final = 64 << 20
"""Of one program."""
_WORD: Final = (1 << 64) - 1
_LAP: Final = 4096
"""Bytes after which it is asked whether all that is wanted is there."""
_PATH, _DIRECTORY_INDEX = 1, 2
_COPY, _ADVANCE_PC, _ADVANCE_LINE, _SET_FILE, _SET_COLUMN = 1, 2, 3, 4, 5
_CONST_ADD_PC, _FIXED_ADVANCE_PC = 8, 9
_NOTHING: Final = frozenset((6, 7, 10, 11))
"""Opcodes that change what is not read here: whether a row is a statement, a block, the end of a prologue."""
_END_SEQUENCE, _SET_ADDRESS = 1, 2
_LENGTHS: Final = bytes((0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1))
"""Operands of the standard opcodes."""
_FIXED_FORMS: Final = {0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x1E: 16}
_STRP, _LINE_STRP, _STRING, _UDATA, _BLOCK = 0x0E, 0x1F, 0x08, 0x0F, 0x09


Row = tuple[int, int, int]
"""Address, number of the file as ``Rows.names`` counts or ``END``, line; 0 for none."""


class Rows:
    """The rows of one program, and the names of its files."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.names: list[str | None] = []
        """By the number that rows have; None for one that there is not."""

    def name(self, file: int) -> str | None:
        """Return the name of a row's file; None where the program has none of that number."""
        return self.names[file] if 0 <= file < len(self.names) else None

    def between(self, low: int, high: int) -> list[tuple[int, int, str | None, int]]:
        """Return pieces that have an address in a range, by address: the first, the first behind, file and line."""
        found = [
            (start, end, self.name(file), line)
            for (start, file, line), (end, _, _) in pairwise(self.rows)
            if start < high and end > low and start < end and file != END
        ]
        found.sort(key=itemgetter(0))
        return found

    def at(self, address: int) -> tuple[str | None, int] | None:
        """Return file and line of an address; None outside of all sequences."""
        return next(((file, line) for _, _, file, line in self.between(address, address + 1)), None)


def read(
    data: bytes,
    line_text: Callable[[int], str],
    text: Callable[[int], str],
    wanted: tuple[int, int] = (0, 1 << 64),
) -> Rows:
    """Run the program that ``data`` begins with, at least to the end of what is ``wanted`` of a sequence.

    ``line_text`` and ``text`` give the strings of ``.debug_line_str`` and ``.debug_str``.  Raises ``SymbolError``.
    """
    try:
        return _Program(data, {_LINE_STRP: line_text, _STRP: text}, wanted).run()
    except (struct.error, IndexError, OverflowError) as error:
        raise SymbolError(f"a line number program is damaged: {error}") from error


class _Program:
    def __init__(self, data: bytes, texts: dict[int, Callable[[int], str]], wanted: tuple[int, int]) -> None:
        self._data = data
        self._texts = texts
        self._wanted = wanted
        (length,) = struct.unpack_from("<I", data)
        self._at, self._offset_bytes = 4, 4
        if length == 0xFFFFFFFF:
            (length,) = struct.unpack_from("<Q", data, 4)
            self._at, self._offset_bytes = 12, 8
        self._end = self._at + length
        if self._end > len(data) or length > MOST_BYTES:
            raise SymbolError("a line number program is cut off")
        self.rows = Rows()

    # -- the header -----------------------------------------------------------------------------------------

    def run(self) -> Rows:
        (version,) = struct.unpack_from("<H", self._data, self._at)
        self._at += 2
        if not 2 <= version <= 5:
            raise SymbolError(f"a line number program is of version {version}, which is not known")
        if version >= 5:
            self._at += 2
        header_bytes = self._offset()
        start = self._at + header_bytes
        if start > self._end:
            raise SymbolError("the header of a line number program is cut off")
        unit = self._byte()
        operations = self._byte() if version >= 4 else 1
        self._byte()
        (base,) = struct.unpack_from("<b", self._data, self._at)
        self._at += 1
        span = self._byte()
        first_special = self._byte()
        if not span or not first_special or operations > 1:
            raise SymbolError("a line number program is for a machine that is not known")
        lengths = self._data[self._at : self._at + first_special - 1]
        self._at += first_special - 1
        if version >= 5:
            folders = [one[0] for one in self._entries()]
            self.rows.names = [_joined(folders, name, folder) for name, folder in self._entries()]
        else:
            self._old_names()
        self._at = start
        self._execute(unit, base, span, first_special, lengths)
        return self.rows

    def _old_names(self) -> None:
        """Read the lists of folders and files as they are before DWARF 5, where both count from 1."""
        folders = [""]
        while (name := self._string()) and len(folders) <= MOST_FILES:
            folders.append(name)
        names: list[str | None] = [None]
        while (name := self._string()) and len(names) <= MOST_FILES:
            folder = self._number()
            self._number()
            self._number()
            names.append(_joined(folders, name, folder))
        self.rows.names = names

    def _entries(self) -> list[tuple[str, int]]:
        """Read a list of folders or files: name, number of the folder."""
        formats = [(self._number(), self._number()) for _ in range(self._byte())]
        count = self._number()
        if count > MOST_FILES or (count and not formats):
            raise SymbolError("a line number program names more files than there can be")
        found = []
        for _ in range(count):
            name, folder = "", 0
            for content, form in formats:
                value = self._value(form)
                if content == _PATH and isinstance(value, str):
                    name = value
                elif content == _DIRECTORY_INDEX and isinstance(value, int):
                    folder = value
            found.append((name, folder))
        return found

    def _value(self, form: int) -> str | int:
        if form in self._texts:
            return self._texts[form](self._offset())
        if form == _STRING:
            return self._string()
        if form == _UDATA:
            return self._number()
        if form == _BLOCK:
            self._at += self._number()
            return 0
        size = _FIXED_FORMS.get(form)
        if size is None:
            raise SymbolError(f"a line number program has a form that is not known ({form:#x})")
        value = int.from_bytes(self._data[self._at : self._at + size], "little")
        self._at += size
        return value

    # -- pieces ---------------------------------------------------------------------------------------------

    def _byte(self) -> int:
        value = self._data[self._at]
        self._at += 1
        return value

    def _offset(self) -> int:
        value = int.from_bytes(self._data[self._at : self._at + self._offset_bytes], "little")
        self._at += self._offset_bytes
        return value

    def _number(self) -> int:
        value, self._at = unsigned(self._data, self._at)
        return value

    def _string(self) -> str:
        end = self._data.find(b"\0", self._at, self._end)
        if end < 0:
            raise SymbolError("a name in a line number program is cut off")
        value = self._data[self._at : end].decode("utf-8", "replace")
        self._at = end + 1
        return value

    # -- the program ----------------------------------------------------------------------------------------

    def _execute(self, unit: int, base: int, span: int, first_special: int, lengths: bytes) -> None:  # noqa: C901
        """Run the opcodes: nearly all are special ones, which are looked up in two tables, and columns."""
        if lengths[: len(_LENGTHS)] != _LENGTHS[: len(lengths)]:
            raise SymbolError("a line number program has opcodes that are not known")
        data, at, end = self._data, self._at, self._end
        moves = [(code - first_special) // span * unit for code in range(256)]
        turns = [(code - first_special) % span + base for code in range(256)]
        emit = self.rows.rows.append
        low, high = self._wanted
        address, file, line = 0, 1, 1
        begun = _WORD
        while at < end:
            if begun <= low and high <= address:
                # The sequence that has what is wanted is past it.
                emit((address, END, 0))
                return
            pause = min(at + _LAP, end)
            while at < pause:
                code = data[at]
                at += 1
                if code >= first_special:
                    address += moves[code]
                    line += turns[code]
                    emit((address, file, line))
                elif code == _SET_COLUMN:
                    while data[at] >= 0x80:
                        at += 1
                    at += 1
                elif code == _COPY:
                    emit((address, file, line))
                elif code in _NOTHING:
                    pass
                elif code == _ADVANCE_LINE:
                    turn, at = signed(data, at)
                    line += turn
                elif code == _ADVANCE_PC:
                    move, at = unsigned(data, at)
                    address = address + move * unit & _WORD
                elif code == _SET_FILE:
                    file, at = unsigned(data, at)
                elif code == _CONST_ADD_PC:
                    address += moves[255]
                elif code == _FIXED_ADVANCE_PC:
                    address += data[at] | data[at + 1] << 8
                    at += 2
                elif code:
                    at = _skipped(data, at, code, lengths)
                else:
                    size, at = unsigned(data, at)
                    kind = data[at] if size else 0
                    if kind == _END_SEQUENCE:
                        emit((address, END, 0))
                        address, file, line = 0, 1, 1
                        begun = _WORD
                    elif kind == _SET_ADDRESS:
                        address = int.from_bytes(data[at + 1 : at + min(size, 9)], "little")
                        begun = min(begun, address)
                    at += size


def _skipped(data: bytes, at: int, code: int, lengths: bytes) -> int:
    """Return where an opcode ends that changes nothing here: its operands are as many as the header says."""
    for _ in range(lengths[code - 1]):
        _, at = unsigned(data, at)
    return at


def unsigned(data: bytes, at: int) -> tuple[int, int]:
    """Return a number in LEB128, of 64 bits at most, and where it ends.  Raises ``IndexError``."""
    byte = data[at]
    at += 1
    if byte < 0x80:
        return byte, at
    value, shift = byte & 0x7F, 7
    while byte >= 0x80:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return value & _WORD, at


def signed(data: bytes, at: int) -> tuple[int, int]:
    """Return a signed number in LEB128, and where it ends.  Raises ``IndexError``."""
    byte = data[at]
    if byte < 0x80:
        return byte - (byte << 1 & 0x80), at + 1
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if byte & 0x40:
        value -= 1 << shift
    return max(min(value, 1 << 62), -1 << 62), at


def _joined(folders: list[str], name: str, folder: int) -> str | None:
    """Return a file's name as the compiler was told it: what is in the folder that it worked in has its name only."""
    if not name:
        return None
    if name.startswith("/") or not 0 < folder < len(folders) or not folders[folder]:
        return name
    return f"{folders[folder]}/{name}"
