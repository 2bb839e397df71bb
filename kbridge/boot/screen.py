"""A terminal's screen: console bytes in, rows of text out, and word of each row that was written.

Pure, and bounded whatever comes: rows and columns are fixed, a control sequence has at most 64 bytes, a string
(a title, a clipboard) at most 256.  No input is an error.  What a screen shows and what its watcher is told are
functions of the bytes alone, never of how they were cut into pieces.

Control functions are those of ECMA-48 and the VT102 that boot loaders, firmware and shells send; others are read
and ignored.  Text is UTF-8; a byte that is none is a character of code page 437, which UEFI draws frames with (some
pairs of those are UTF-8 by chance).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COLUMNS: Final = 80
ROWS: Final = 60
"""More than a serial terminal has: UEFI draws menus of 50 rows, and lines that scroll do not care."""
MAX_SEQUENCE: Final = 64
MAX_STRING: Final = 256
"""A string that is longer, or goes over the end of a line, is none: its beginning was noise."""
_MAX_NUMBER: Final = 9999
_MAX_NUMBERS: Final = 16
_TAB: Final = 8

_RUN: Final = re.compile(rb"[\x20-\x7e]+")
_PROMPT_END: Final = re.compile(r"[#$%>):] ")
"""What a prompt may end with."""
_ENTER: Final = 0x1B
_STRING_BEGINS: Final = b"]P_^X"
_ONE_MORE: Final = b" #%()*+-./"


class Watcher(Protocol):
    """Who is told what is written."""

    def line(self, text: str, start: int, end: int) -> None:
        """The cursor left a row in which something was written.

        ``text`` is the whole line, over the rows that it was wrapped to, with the blanks that were written at its
        end.  The byte at ``start`` wrote its first character since it was last left, the one before ``end`` made the
        cursor leave.
        """

    def prompt(self, text: str, start: int, end: int) -> None:
        """What stands in a row up to the cursor, ``text``, ends as a prompt may: with a sign and a blank."""


class _Row:
    """One row: its characters up to the last one written, and which of them are reversed."""

    __slots__ = ("continues", "dirty", "reversed", "start", "text")

    def __init__(self) -> None:
        self.text = ""
        self.reversed: set[int] | None = None
        self.dirty = False
        self.start = 0
        self.continues = False
        """Whether it goes on with the line of the row above."""


class Screen:
    """A screen of ``columns`` and ``rows``, empty at first, with the cursor at its top left."""

    def __init__(self, watcher: Watcher | None = None, *, columns: int = COLUMNS, rows: int = ROWS) -> None:
        self.columns = columns
        self.rows = rows
        self.offset = 0
        """How many bytes were fed."""
        self._watcher = watcher
        self._sequence = bytearray()
        self._state: Callable[[bytes, int], int] = self._ground
        self._string_bytes = 0
        self._string_ends = False
        self._character = b""
        self._reset()

    def _reset(self) -> None:
        self._lines = [_Row() for _ in range(self.rows)]
        self.x = 0
        self.y = 0
        self.cursor_shown = True
        """Whether it is to be seen; who hides it while drawing is done when it is."""
        self._wraps = False
        """Whether the cursor is past the last column: the next character goes to the next row."""
        self._reverse = False
        self._top = 0
        self._bottom = self.rows - 1
        self._saved = (0, 0, False)

    def feed(self, data: bytes) -> None:
        """Write ``data``."""
        at = 0
        base = self.offset
        while at < len(data):
            before = at
            at = self._state(data, at)
            self.offset = base + at
            assert at > before

    def row(self, number: int) -> str:
        """Return a row's text, from 0 at the top, without blanks at its end."""
        return self._lines[number].text.rstrip()

    def display(self) -> list[str]:
        """Return all rows."""
        return [line.text.rstrip() for line in self._lines]

    def line_to_cursor(self) -> str:
        """Return what stands in the cursor's line, over the rows that it was wrapped to, up to the cursor."""
        first = self.y
        while first > 0 and self._lines[first].continues:
            first -= 1
        before = "".join(row.text.ljust(self.columns) for row in self._lines[first : self.y])
        row = self._lines[self.y].text
        return before + (row if self._wraps else row[: self.x].ljust(self.x))

    def reversed(self, number: int) -> str:
        """Return the characters of a row that are shown in reverse, such as a menu's chosen entry."""
        line = self._lines[number]
        return "" if line.reversed is None else "".join(line.text[x] for x in sorted(line.reversed)).strip()

    def reversed_span(self, number: int) -> tuple[int, int]:
        """Return the first column of a row that is shown in reverse and the one behind the last; (0, 0) if none is."""
        columns = self._lines[number].reversed
        return (min(columns), max(columns) + 1) if columns else (0, 0)

    # ── bytes ───────────────────────────────────────────────────────────────────────────────────────────────

    def _ground(self, data: bytes, at: int) -> int:
        if not self._character:
            run = _RUN.match(data, at)
            if run is not None:
                self._write(run[0].decode("ascii"), self.offset)
                return run.end()
        byte = data[at]
        if byte >= 0x80 or self._character:
            return at + self._more_of_character(byte)
        if byte == _ENTER:
            self._sequence.clear()
            self._state = self._escape
        else:
            self._control(byte)
        return at + 1

    def _more_of_character(self, byte: int) -> int:
        """Take a byte of a character of several; return 0 or 1 bytes used: one that does not fit begins anew."""
        begun = self._character
        if begun and not 0x80 <= byte <= 0xBF:
            self._character = b""
            for single in begun:
                self._put(bytes([single]).decode("cp437"))
            # It is looked at again, in the state that is now.
            return self._again(byte)
        self._character = begun + bytes([byte])
        if not begun and not 0xC2 <= byte <= 0xF4:
            self._character = b""
            self._put(bytes([byte]).decode("cp437"))
            return 1
        whole = 2 if self._character[0] < 0xE0 else 3 if self._character[0] < 0xF0 else 4
        if len(self._character) == whole:
            given, self._character = self._character, b""
            try:
                self._put(given.decode("utf-8"))
            except UnicodeDecodeError:
                for single in given:
                    self._put(bytes([single]).decode("cp437"))
        return 1

    def _again(self, byte: int) -> int:
        return self._ground(bytes([byte]), 0)

    def _put(self, character: str) -> None:
        # A C1 control, or what joins the character before it, has no place of its own.
        if character.isprintable():
            self._write(character, self.offset)

    def _control(self, byte: int) -> None:
        match byte:
            case 0x08:
                self._wraps = False
                self.x = max(self.x - 1, 0)
            case 0x09:
                self._wraps = False
                self.x = min((self.x // _TAB + 1) * _TAB, self.columns - 1)
            case 0x0A | 0x0B | 0x0C:
                self._leave()
                self._down()
            case 0x0D:
                self._leave()
                self._wraps = False
                self.x = 0
            case _:
                pass

    def _escape(self, data: bytes, at: int) -> int:
        byte = data[at]
        self._state = self._ground
        if byte == 0x5B:
            self._state = self._control_sequence
        elif byte in _STRING_BEGINS:
            self._string_bytes = 0
            self._string_ends = False
            self._state = self._string
        elif byte in _ONE_MORE:
            self._state = self._one_more
        elif byte < 0x20 or byte >= 0x7F:
            return self._ground(data, at)
        else:
            self._simple(byte)
        return at + 1

    def _one_more(self, data: bytes, at: int) -> int:
        self._state = self._ground
        return at + 1 if 0x20 <= data[at] < 0x7F else self._ground(data, at)

    def _string(self, data: bytes, at: int) -> int:
        byte = data[at]
        self._string_bytes += 1
        if self._string_ends or byte in b"\x07\x18\x1a":
            self._state = self._ground
            return at + 1 if not self._string_ends or byte == 0x5C else self._escape(data, at)
        if byte in b"\r\n" or self._string_bytes > MAX_STRING:
            self._state = self._ground
            return self._ground(data, at)
        self._string_ends = byte == _ENTER
        return at + 1

    def _control_sequence(self, data: bytes, at: int) -> int:
        byte = data[at]
        if 0x40 <= byte <= 0x7E:
            self._state = self._ground
            self._act(chr(byte))
        elif 0x20 <= byte <= 0x3F and len(self._sequence) < MAX_SEQUENCE:
            self._sequence.append(byte)
        elif byte == _ENTER:
            self._sequence.clear()
            self._state = self._escape
        elif byte < 0x20 and byte not in b"\x18\x1a\r\n":
            self._control(byte)
        else:
            # Too long, or no part of a sequence: it was noise.
            self._state = self._ground
            return self._ground(data, at)
        return at + 1

    # ── acting ──────────────────────────────────────────────────────────────────────────────────────────────

    def _simple(self, byte: int) -> None:
        match byte:
            case 0x37:
                self._saved = (self.x, self.y, self._reverse)
            case 0x38:  # 8
                self._leave()
                self.x, self.y, self._reverse = self._saved
                self._wraps = False
            case 0x44 | 0x45:  # D, E
                self._leave()
                self._down()
                if byte == 0x45:
                    self.x = 0
            case 0x4D:  # M
                self._leave()
                self._up()
            case 0x63:  # c
                self._leave()
                self._reset()
            case _:
                pass

    def _act(self, final: str) -> None:
        given = self._sequence.decode("ascii")
        if given == "?25" and final in "hl":
            self.cursor_shown = final == "h"
        if given[:1] in ("<", "=", ">", "?") or any(sign in given for sign in " !\"#$%&'()*+,-./"):
            return
        numbers = [
            min(int(part), _MAX_NUMBER) if part.isdecimal() else 0
            for part in given.replace(":", ";").split(";")[:_MAX_NUMBERS]
        ]
        if final == "m":
            self._attributes(numbers)
            return
        action = self._ACTIONS.get(final)
        if action is not None:
            action(self, numbers)

    def _attributes(self, numbers: list[int]) -> None:
        if 38 in numbers or 48 in numbers:  # colours of many numbers, which are no attributes
            numbers = [number for number in numbers[:1] if number not in (38, 48)]
        for number in numbers:
            # UEFI has no reverse: it writes black on light grey.
            if number in (7, 47, 107):
                self._reverse = True
            elif number in (0, 27, 40, 49):
                self._reverse = False

    def _to(self, numbers: list[int]) -> None:
        self._leave()
        self.y = min(max(numbers[0], 1), self.rows) - 1
        self.x = min(max(numbers[1] if len(numbers) > 1 else 1, 1), self.columns) - 1
        self._wraps = False

    def _to_row(self, numbers: list[int]) -> None:
        self._leave()
        self.y = min(max(numbers[0], 1), self.rows) - 1
        self._wraps = False

    def _to_column(self, numbers: list[int]) -> None:
        self.x = min(max(numbers[0], 1), self.columns) - 1
        self._wraps = False

    def _move(self, across: int, down: int) -> None:
        if down:
            self._leave()
        self.x = min(max(self.x + across, 0), self.columns - 1)
        low = self._bottom if self.y <= self._bottom else self.rows - 1
        high = self._top if self.y >= self._top else 0
        self.y = min(max(self.y + down, high), low)
        self._wraps = False

    def _erase_screen(self, numbers: list[int]) -> None:
        self._leave()
        match numbers[0]:
            case 0:
                self._erase(self.y, self.x, self.columns)
                rows = range(self.y + 1, self.rows)
            case 1:
                self._erase(self.y, 0, self.x + 1)
                rows = range(self.y)
            case 2 | 3:
                rows = range(self.rows)
            case _:
                return
        for y in rows:
            self._lines[y] = _Row()

    def _erase_line(self, numbers: list[int]) -> None:
        match numbers[0]:
            case 0:
                self._erase(self.y, self.x, self.columns)
            case 1:
                self._erase(self.y, 0, self.x + 1)
            case 2:
                self._erase(self.y, 0, self.columns)
            case _:
                pass

    def _erase(self, y: int, begin: int, end: int) -> None:
        line = self._lines[y]
        if not line.dirty:
            line.start = self.offset
            line.dirty = bool(line.text)
        text = line.text
        line.continues = line.continues and begin > 0
        line.text = text[:begin] if end >= len(text) else text[:begin] + " " * (end - begin) + text[end:]
        _keep(line, lambda x: x < begin or end <= x < len(line.text))

    def _insert_lines(self, numbers: list[int]) -> None:
        if self._top <= self.y <= self._bottom:
            self._leave()
            for _ in range(min(max(numbers[0], 1), self._bottom + 1 - self.y)):
                del self._lines[self._bottom]
                self._lines.insert(self.y, _Row())
            self.x = 0
            self._wraps = False

    def _delete_lines(self, numbers: list[int]) -> None:
        if self._top <= self.y <= self._bottom:
            self._leave()
            for _ in range(min(max(numbers[0], 1), self._bottom + 1 - self.y)):
                del self._lines[self.y]
                self._lines.insert(self._bottom, _Row())
            self.x = 0
            self._wraps = False

    def _change_characters(self, numbers: list[int], kind: str) -> None:
        line = self._lines[self.y]
        many = min(max(numbers[0], 1), self.columns - self.x)
        text = line.text.ljust(self.x)
        rest = text[self.x :]
        blanks = " " * many
        match kind:
            case "insert":
                line.text = (text[: self.x] + blanks + rest)[: self.columns]
            case "delete":
                line.text = text[: self.x] + rest[many:]
            case _:
                line.text = text[: self.x] + blanks + rest[many:]
        _keep(line, lambda x: x < self.x)
        if not line.dirty:
            line.start = self.offset
            line.dirty = True

    def _margins(self, numbers: list[int]) -> None:
        self._leave()
        top = max(numbers[0], 1)
        bottom = (numbers[1] if len(numbers) > 1 else 0) or self.rows
        if top < bottom <= self.rows:
            self._top, self._bottom = top - 1, bottom - 1
            self.x = self.y = 0
            self._wraps = False

    def _save(self, _numbers: list[int]) -> None:
        self._simple(0x37)

    def _restore(self, _numbers: list[int]) -> None:
        self._simple(0x38)

    _ACTIONS: ClassVar[Mapping[str, Callable[[Screen, list[int]], None]]] = {
        "@": lambda self, numbers: self._change_characters(numbers, "insert"),
        "A": lambda self, numbers: self._move(0, -max(numbers[0], 1)),
        "B": lambda self, numbers: self._move(0, max(numbers[0], 1)),
        "C": lambda self, numbers: self._move(max(numbers[0], 1), 0),
        "D": lambda self, numbers: self._move(-max(numbers[0], 1), 0),
        "G": _to_column,
        "H": _to,
        "J": _erase_screen,
        "K": _erase_line,
        "L": _insert_lines,
        "M": _delete_lines,
        "P": lambda self, numbers: self._change_characters(numbers, "delete"),
        "X": lambda self, numbers: self._change_characters(numbers, "erase"),
        "d": _to_row,
        "f": _to,
        "r": _margins,
        "s": _save,
        "u": _restore,
    }

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, text: str, offset: int) -> None:
        """Write characters, of which the one at ``offset`` is the first and each has a byte."""
        done = 0
        while done < len(text):
            continues = self._wraps and self._wrap(offset + done)
            part = text[done : done + self.columns - self.x]
            self._write_part(part, offset + done, continues=continues)
            done += len(part)

    def _write_part(self, part: str, offset: int, *, continues: bool) -> None:
        line = self._lines[self.y]
        begin, end = self.x, self.x + len(part)
        if not begin:
            line.continues = continues
        if not line.dirty:
            line.dirty = True
            line.start = offset
        old = line.text
        line.text = old.ljust(begin) + part if len(old) <= begin else old[:begin] + part + old[end:]
        if self._reverse:
            line.reversed = (line.reversed or set()).union(range(begin, end))
        elif line.reversed:
            line.reversed.difference_update(range(begin, end))
        self._wraps = end >= self.columns
        self.x = min(end, self.columns - 1)
        if self._watcher is None or line.continues:
            return
        for found in _PROMPT_END.finditer(line.text, max(begin - 1, 0), end):
            if found.end() > begin:
                shown = line.text[: found.end()]
                self._watcher.prompt(shown, line.start, offset + found.end() - begin)

    def _wrap(self, offset: int) -> bool:
        """Go to the next row for the character at ``offset``; return whether that goes on with this one's line."""
        fills = self.y == self._bottom and self._lines[self._top].dirty
        if fills:
            # What follows is a line of its own: the beginning of this one is about to leave the screen.
            self._leave(offset)
        self.x = 0
        self._down()
        return not fills

    def _down(self) -> None:
        self._wraps = False
        if self.y == self._bottom:
            del self._lines[self._top]
            self._lines.insert(self._bottom, _Row())
        elif self.y < self.rows - 1:
            self.y += 1

    def _up(self) -> None:
        self._wraps = False
        if self.y == self._top:
            del self._lines[self._bottom]
            self._lines.insert(self._top, _Row())
        elif self.y > 0:
            self.y -= 1

    def _leave(self, offset: int | None = None) -> None:
        """Tell of the cursor's line where something was written in it; the byte at ``offset`` leaves it."""
        last = self.y
        line = self._lines[last]
        first = last
        while first > 0 and self._lines[first].continues:
            first -= 1
        if first == last:
            if not line.dirty:
                return
            text, start = line.text, line.start
            line.dirty = False
        else:
            rows = self._lines[first : last + 1]
            written = [row for row in rows if row.dirty]
            if not written:
                return
            text = "".join(row.text.ljust(self.columns) for row in rows)
            start = min(row.start for row in written)
            for row in rows:
                row.dirty = False
        if self._watcher is not None:
            self._watcher.line(text, start, (self.offset if offset is None else offset) + 1)


def _keep(line: _Row, wanted: Callable[[int], bool]) -> None:
    if line.reversed:
        line.reversed = {x for x in line.reversed if wanted(x)}
