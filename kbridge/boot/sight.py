"""What a dialogue with a boot loader or a guest sees: the screen, the state, the last lines, an entry's text.

Pure.  Reads a loader's menu and editor off the screen model, in the terms of its recipe: entries and which is chosen,
lines over the rows that they wrap to, where the cursor is in them.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kbridge.boot.states import Recogniser

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbridge.boot.screen import Screen
    from kbridge.boot.states import State

MAX_LINES: Final = 200
"""Lines that are kept."""
_BARE_PROMPT: Final = re.compile(r"(?:[^\s\[\]][^\s\[\]]{0,60} ?)?[#$] ")
_TOP: Final = re.compile(r"^[ ]{0,8}[+┌╔][-─═]{20}")
_BOTTOM: Final = re.compile(r"^([ ]{0,8}[+└╚])([-─═]{20,})")


@dataclass(frozen=True, slots=True)
class Frame:
    """Rows and columns within a frame of a loader's; the last ones are not in it."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line of an editor's text."""

    row: int
    rows: int
    text: str
    """Without blanks at its end."""


class Sight:
    """The view of one console."""

    def __init__(self, on_line: Callable[[str, bool], None]) -> None:
        """``on_line`` is called with each line that can be believed or not, as ``Recogniser`` says."""
        self._on_line = on_line
        self.recogniser = Recogniser(self._line)
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._count = 0

    @property
    def screen(self) -> Screen:
        """The screen."""
        return self.recogniser.screen

    @property
    def state(self) -> State:
        """Where the guest was last seen."""
        return self.recogniser.state

    @property
    def program(self) -> str:
        """Who showed that."""
        return self.recogniser.program

    def reset(self) -> None:
        """Begin anew, as the machine did."""
        self.recogniser.reset()
        self._lines.clear()

    # ── lines ───────────────────────────────────────────────────────────────────────────────────────────────

    def _line(self, text: str, body: str, _offset: int, believed: bool) -> None:
        self._lines.append(text)
        self._count += 1
        self._on_line(body, believed)

    def mark(self) -> int:
        """Return the number of the next line, for ``since``."""
        return self._count

    def since(self, mark: int) -> list[str]:
        """Return the lines from number ``mark`` on, of those that are kept."""
        many = min(max(self._count - mark, 0), len(self._lines))
        return list(self._lines)[len(self._lines) - many :]

    def last(self, many: int) -> list[str]:
        """Return the last lines."""
        return self.since(self._count - many)

    def typed(self) -> str:
        """Return what stands in the cursor's line up to the cursor."""
        return self.screen.line_to_cursor()

    @property
    def prompted(self) -> bool:
        """Whether the cursor stands behind what may be a shell's prompt, though no rule of ``states`` knows it."""
        return _BARE_PROMPT.fullmatch(self.typed()) is not None

    @property
    def blank(self) -> bool:
        """Whether the screen shows nothing."""
        return not any(self.screen.display())

    # ── a frame ─────────────────────────────────────────────────────────────────────────────────────────────

    def frame(self) -> Frame | None:
        """Return the frame on the screen."""
        rows = self.screen.display()
        top = next((y for y, row in enumerate(rows) if _TOP.match(row)), None)
        if top is None:
            return None
        # Where firmware mirrors what a loader draws there are two, of which the higher one's bottom was written over.
        for y in range(len(rows) - 1, top + 1, -1):
            found = _BOTTOM.match(rows[y])
            if found is not None:
                # UEFI's corner may be one character with the line before it: the left one tells the column.
                return Frame(top + 1, y, found.end(1), found.end(2))
        return None

    def within(self, frame: Frame) -> list[str]:
        """Return the rows of a frame."""
        return [
            self.screen.row(y).ljust(frame.right)[frame.left : frame.right]
            for y in range(frame.top, frame.bottom)
        ]

    def chosen(self) -> tuple[int, str] | None:
        """Return the row and the text of a menu's chosen entry, once it alone is drawn as chosen, to its end."""
        screen = self.screen
        rows = [y for y in range(screen.rows) if screen.reversed(y)]
        if len(rows) != 1:
            return None
        y = rows[0]
        frame = self.frame()
        first, end = screen.reversed_span(y)
        if frame is not None:
            whole = first <= frame.left and end >= frame.right - 1
        else:
            # Behind what was drawn last the cursor stands until the next is drawn.
            whole = (y, end) != (screen.y, screen.x)
        return (y, screen.reversed(y)) if whole else None

    def entries(self, mark: str) -> list[str]:
        """Return the entries that a menu shows, without the sign of the chosen one."""
        frame = self.frame()
        if frame is not None:
            rows = self.within(frame)
            return [row.strip().removeprefix(mark).strip() for row in rows if row.strip()]
        chosen = self.chosen()
        if chosen is None:
            return []
        top = self.top_entry(chosen[0])
        rows = self.screen.display()[top:]
        many = next((n for n, row in enumerate(rows) if not row.strip()), len(rows))
        return [row.strip().removeprefix(mark).strip() for row in rows[:many]]

    def top_entry(self, row: int) -> int:
        """Return the row of the first entry of the menu that ``row`` belongs to."""
        frame = self.frame()
        if frame is not None:
            return frame.top
        while row > 0 and self.screen.row(row - 1).strip():
            row -= 1
        return row

    def text_lines(self, frame: Frame, wraps: str) -> list[TextLine]:
        """Return an editor's lines."""
        found: list[TextLine] = []
        text = ""
        first = frame.top
        for y, row in enumerate(self.within(frame), frame.top):
            if row.endswith(wraps) and y + 1 < frame.bottom:
                text += row[: -len(wraps)]
                continue
            found.append(TextLine(first, y + 1 - first, (text + row).rstrip()))
            text = ""
            first = y + 1
        return found

    def line_at_cursor(self, frame: Frame, wraps: str) -> TextLine | None:
        """Return the line that the cursor is in."""
        y = self.screen.y
        return next(
            (line for line in self.text_lines(frame, wraps) if line.row <= y < line.row + line.rows), None
        )

    def cursor_in(self, line: TextLine, frame: Frame, wraps: str) -> int:
        """Return how many characters of ``line`` are before the cursor."""
        width = frame.right - frame.left - len(wraps)
        return (self.screen.y - line.row) * width + self.screen.x - frame.left
