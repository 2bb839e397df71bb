"""The dialogue with an editor of one row, which shows a part of the kernel's command line: words are added at its end.

invariant   the key that boots is pressed only after what was added was read back, behind what stood there before

What was there is not shown as a whole and is left as it is: where a word is given twice the kernel takes the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge.boot.dialogue import DRAW, ECHO, MAX_REPAIRS, WINDOW, GaveUp, Note, Press, Until
from kbridge.boot.menus import reach_menu
from kbridge.boot.recipes import LineEditor

if TYPE_CHECKING:
    from collections.abc import Generator

    from kbridge.boot.dialogue import Dialogue, Step
    from kbridge.boot.recipes import Recipe
    from kbridge.boot.sight import Sight
    from kbridge.boot.wishes import Wishes


def edit_one_row(recipe: Recipe, wishes: Wishes, sight: Sight) -> Dialogue:
    """Add to the chosen entry's command line, read it back, and boot it."""
    menu, editor = recipe.menu, recipe.editor
    assert menu is not None
    assert isinstance(editor, LineEditor)
    row = _Row(editor, sight)
    pressed = 0
    yield from reach_menu(recipe, sight)
    for _ in range(MAX_REPAIRS):
        yield Press(menu.edit)
        pressed += 1
        if not (yield Until(row.is_shown, ECHO)):
            continue
        # A key that was thought lost may be in the text now: what it did goes with the editor.
        if pressed == 1 and (yield from _add(row, editor, wishes)):
            return
        pressed = 0
        yield Press(editor.leave)
        yield Until(lambda: not row.is_shown(), DRAW)
    raise GaveUp(
        "the command line could not be changed as wished: nothing was booted",
        f"{recipe.program}'s editor does not show what was typed",
        "see whether keys get lost on the line; `kbridge console` to do it by hand",
    )


def _add(row: _Row, editor: LineEditor, wishes: Wishes) -> Generator[Step, bool, bool]:
    """Add what is wished, and boot it where that is what the row shows; return whether it was."""
    head = row.text or ""
    yield Press(editor.end, "End")
    if not (yield Until(row.is_at_end, ECHO)):
        return False
    tail = row.text or ""
    added = wishes.change(head if tail == head else f"{head} {tail}").added
    yield Note(f"adds {' '.join(added)}" if added else "the command line is as wished already")
    text = "".join(f" {word}" for word in added)
    for typed in range(WINDOW, len(text) + WINDOW, WINDOW):
        yield Press(text[typed - WINDOW : typed].encode("ascii", "replace"))
        if not (yield Until(row.ends, ECHO, (tail + text[:typed],))):
            return False
    if not row.ends(tail + text):
        return False
    yield Note(f"read back: … {row.text}")
    yield Press(editor.boot, "Enter", boots=True)
    return True


class _Row:
    """The row of the editor."""

    def __init__(self, editor: LineEditor, sight: Sight) -> None:
        self._editor = editor
        self._sight = sight

    @property
    def _number(self) -> int | None:
        screen = self._sight.screen
        for y in range(screen.rows - 1, -1, -1):
            first, end = screen.reversed_span(y)
            if end - first > screen.columns * 3 // 4:
                return y
        return None

    def is_shown(self) -> bool:
        """Whether it is there."""
        return self._number is not None

    @property
    def _width(self) -> int:
        """How many characters it shows, and a place for the cursor."""
        return self._sight.screen.columns - 2 * self._editor.margin - 1

    @property
    def text(self) -> str | None:
        """What it shows; nothing where it is not there."""
        number = self._number
        return None if number is None else self._sight.screen.row(number)[self._editor.margin :]

    def is_at_end(self) -> bool:
        """Whether the cursor stands behind the last character."""
        text, screen = self.text, self._sight.screen
        if text is None or len(text) > self._width or screen.y != self._number:
            return False
        return screen.x >= self._editor.margin + len(text)

    def ends(self, text: str) -> bool:
        """Whether it shows the end of ``text``, half a row of it at least; blanks count once: the last do not show."""
        shown = " ".join((self.text or "").split())
        wanted = " ".join(text.split())
        return wanted.endswith(shown) and len(shown) >= min(len(wanted), self._width // 2)
