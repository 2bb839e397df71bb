"""The dialogue with a boot loader's editor: the kernel's line is found, changed, read back from the screen, and booted.

invariant   the key that boots is pressed only after the whole changed line was read back and is, character for
            character, the wanted one; who gives up leaves the editor, and the menu waits
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kbridge.boot.dialogue import (
    DRAW,
    ECHO,
    MAX_MOVES,
    MAX_REPAIRS,
    PASSWORD,
    WINDOW,
    GaveUp,
    Note,
    Press,
    Until,
)
from kbridge.boot.menus import draw_here_only, give_name, reach_menu
from kbridge.boot.recipes import Editor
from kbridge.boot.states import State
from kbridge.boot.wishes import words_of

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Generator, Mapping

    from kbridge.boot.dialogue import Dialogue, Step
    from kbridge.boot.recipes import Menu, Recipe
    from kbridge.boot.sight import Frame, Sight, TextLine
    from kbridge.boot.wishes import CommandLine, Wishes

MAX_OPENINGS: Final = 3


def edit(recipe: Recipe, wishes: Wishes, sight: Sight, secrets: Mapping[str, str], user: str) -> Dialogue:
    """Change the chosen entry's command line in the loader's editor, read it back, and boot it."""
    menu, editor = recipe.menu, recipe.editor
    assert menu is not None
    assert isinstance(editor, Editor)
    if sight.state is State.COUNTDOWN and sight.frame() is None:
        yield from reach_menu(recipe, sight)
    if recipe.terminals is not None:
        yield from draw_here_only(recipe, recipe.terminals, sight, secrets, user)
    text = _Text(editor, sight)
    for attempt in range(1, MAX_OPENINGS + 1):
        yield from _open(recipe, menu, editor, sight, secrets, user)
        try:
            yield from text.find()
            yield from text.join()
            yield from text.draw_again()
            break
        except _Damaged:
            # What a lost key or byte did to the text goes with the editor.
            yield from _leave(recipe, editor, sight)
            if attempt == MAX_OPENINGS:
                raise
        except GaveUp:
            yield from _leave(recipe, editor, sight)
            raise
    try:
        old = text.line().text
        found = editor.row.match(old)
        if found is None:
            raise GaveUp(
                "the kernel's line cannot be read as a whole",
                "its beginning is not on the screen: it has more rows than the loader's editor",
                "append less, or do it by hand: `kbridge console`",
            )
        change = wishes.change(old[found.end() :], quote=editor_quote(editor))
        before = old[: found.end()]
        wanted = _kept_blanks(old[found.end() :], change)
        wanted = f"{before.rstrip()} {wanted}" if not before.endswith(" ") else before + wanted
        yield Note(words_of(change))
        yield from text.make(wanted.rstrip())
    except GaveUp:
        yield from _leave(recipe, editor, sight)
        raise
    yield Note(f"read back: {' '.join(wanted.split())}")
    for _ in range(2):
        if text.line().text != wanted.rstrip():
            break
        yield Press(editor.boot, "Ctrl-X", boots=True)
        if (yield Until(lambda: sight.state is not State.EDITOR, DRAW)):
            return
    raise GaveUp("the loader does not boot the changed entry", "its editor is still on the screen")


class _Damaged(GaveUp):
    """The text is not as it was, or cannot be read; opened anew it can be."""


def _leave(recipe: Recipe, editor: Editor, sight: Sight) -> Dialogue:
    """Leave the editor, where it is open: nothing is booted by that, and the menu waits for whoever comes."""
    if sight.state is State.EDITOR:
        yield Press(editor.leave)
        yield Until(lambda: sight.state is State.MENU and sight.chosen() is not None, DRAW)


def is_menu(
    recipe: Recipe, sight: Sight, secrets: Mapping[str, str], user: str
) -> Generator[Step, bool, bool]:
    """Look whether the chosen entry is a menu of its own; the menu is there again then."""
    menu, editor = recipe.menu, recipe.editor
    if menu is None or not isinstance(editor, Editor):
        return False
    yield from _open(recipe, menu, editor, sight, secrets, user)
    text = _Text(editor, sight)
    found = yield from text.has(editor.other_menu)
    yield from _leave(recipe, editor, sight)
    if sight.state is not State.MENU:
        raise GaveUp(f"{recipe.program} does not obey the keys", "its menu did not come back")
    return found


def editor_quote(editor: Editor) -> Callable[[str], str]:
    """Return what writes a word in the language of an editor's text."""

    def quote(word: str) -> str:
        written = []
        quoted = False
        for char in word:
            quoted ^= char == '"'
            # Within quotes only these are escaped; a backslash before another would stay.
            special = char in "\\$" if quoted else editor.specials.fullmatch(char)
            written.append(f"\\{char}" if special else char)
        return "".join(written)

    return quote


def _kept_blanks(old: str, change: CommandLine) -> str:
    """Return the wanted line with the old one's blanks, where that saves erasing it."""
    plain = " ".join(old.split())
    if change.text.startswith(plain) and plain:
        return old.rstrip() + change.text[len(plain) :]
    return change.text


def _open(
    recipe: Recipe, menu: Menu, editor: Editor, sight: Sight, secrets: Mapping[str, str], user: str
) -> Dialogue:
    text = _Text(editor, sight)
    pressed = 0
    for _ in range(6):
        yield Press(menu.edit)
        pressed += 1
        there = yield Until(lambda: sight.state in (State.EDITOR, State.LOGIN), ECHO)
        if there and sight.state is State.LOGIN:
            yield from give_name(sight, secrets, user)
            there = yield Until(lambda: sight.state is State.EDITOR, PASSWORD)
            if not there:
                raise GaveUp(f"{recipe.program} did not open its editor", "it has the name and the password")
        if not there:
            continue
        yield from _drawn(sight)
        if pressed == 1 and not editor.typed_into.match(text.line().text):
            return
        # A key that was thought lost may be in the text now: what it did is given up.
        pressed = 0
        yield Press(editor.leave)
        yield Until(lambda: sight.state is not State.EDITOR, DRAW)
    raise GaveUp(f"{recipe.program}'s editor does not open", "keys were sent and did nothing")


def _drawn(sight: Sight) -> Dialogue:
    """Wait until the editor has drawn its text and put the cursor at its beginning."""

    def drawn() -> bool:
        frame = sight.frame()
        screen = sight.screen
        return (
            frame is not None
            and (screen.x, screen.y) == (frame.left, frame.top)
            and bool(sight.within(frame)[0].strip())
        )

    if not (yield Until(drawn, DRAW)):
        raise GaveUp("the loader's editor cannot be read", "its text or its frame came damaged", "try again")


class _Text:
    """The kernel's line in an editor."""

    def __init__(self, editor: Editor, sight: Sight) -> None:
        self._editor = editor
        self._sight = sight

    def _frame(self) -> Frame:
        frame = self._sight.frame()
        if frame is None:
            raise GaveUp("the loader's editor is gone", "its frame is not on the screen any more")
        return frame

    def line(self) -> TextLine:
        """Return the line with the cursor in it."""
        line = self._sight.line_at_cursor(self._frame(), self._editor.wraps)
        if line is None:
            raise GaveUp(
                "the loader's editor cannot be read", "the cursor is in none of its lines", "try again"
            )
        return line

    def _shown(self) -> str | None:
        """Return the text up to its end, where the cursor is to be: blanks at the end do not show."""
        sight, wraps = self._sight, self._editor.wraps
        frame = sight.frame()
        line = None if frame is None else sight.line_at_cursor(frame, wraps)
        if frame is None or line is None or not self._still:
            return None
        at = sight.cursor_in(line, frame, wraps)
        return line.text.ljust(at) if at >= len(line.text) else None

    def has(self, pattern: re.Pattern[str]) -> Generator[Step, bool, bool]:
        """Go through the text; return whether a line of it matches."""
        for _ in range(MAX_MOVES):
            before = self._rows()
            lines = self._sight.text_lines(self._frame(), self._editor.wraps)
            if any(pattern.match(line.text) for line in lines):
                return True
            at = self._sight.screen.y
            yield Press(self._editor.down * WINDOW)
            # At the text's end nothing moves.
            if not (
                yield Until(
                    lambda rows, row: (self._rows(), self._sight.screen.y) != (rows, row), ECHO, (before, at)
                )
            ):
                return False
        return False

    def find(self) -> Dialogue:
        """Put the cursor into the kernel's line."""
        editor, sight = self._editor, self._sight
        for _ in range(MAX_MOVES):
            frame = self._frame()
            lines = sight.text_lines(frame, editor.wraps)
            at = lines.index(self.line())
            if any(editor.other_menu.match(line.text) for line in lines):
                raise GaveUp(
                    "the chosen entry is a menu of its own",
                    "its text has the entries of that menu",
                    "choose one of them: --entry 'N>M'",
                )
            if editor.row.match(lines[at].text):
                return
            target = next((n for n, line in enumerate(lines) if n > at and editor.row.match(line.text)), None)
            # Those that the screen shows can be passed at once; behind them it scrolls.
            last = len(lines) - 1
            to = min(at + WINDOW, last if target is None else target)
            before = sight.within(frame)
            yield Press(editor.down * max(to - at, 1))
            if to > at:
                moved = yield Until(lambda row: self._still and sight.screen.y == row, ECHO, (lines[to].row,))
            else:
                moved = yield Until(lambda rows: self._still and self._rows() != rows, ECHO, (before,))
            if not moved and self._rows() == before and (to == at or sight.screen.y == lines[at].row):
                break
        raise GaveUp(
            "the chosen entry starts no Linux",
            "no line of it begins with `linux`",
            "choose another: --entry N",
        )

    def _rows(self) -> list[str]:
        frame = self._sight.frame()
        return [] if frame is None else self._sight.within(frame)

    def _is_rest(self, text: str, than: int) -> bool:
        """Whether the line is ``text`` behind fewer blanks than before."""
        shown = self.line().text
        return self._still and len(shown) < than and shown.lstrip() == text

    def _is_at(self, row: int) -> bool:
        return self._still and (self._sight.screen.x, self._sight.screen.y) == (self._frame().left, row)

    @property
    def _still(self) -> bool:
        """Whether nothing is being drawn, as far as that can be told."""
        return self._sight.screen.cursor_shown

    def to_end(self) -> Dialogue:
        """Put the cursor behind the line's last character."""
        yield Press(self._editor.end)
        if not (yield Until(lambda: self._shown() is not None, ECHO)):
            raise GaveUp(
                "the loader's editor does not obey the keys", "the cursor did not go to the line's end"
            )

    def join(self) -> Dialogue:
        """Make one line of those that it goes on in."""
        editor, sight = self._editor, self._sight
        yield from self.to_end()
        for _ in range(MAX_MOVES):
            line = self.line()
            if not line.text.endswith(editor.joins):
                return
            below, before = line.row + line.rows, self._rows()
            yield Press(editor.down)
            # From the last row that is shown the text scrolls instead.
            if not (
                yield Until(
                    lambda row, rows: self._still and (sight.screen.y >= row or self._rows() != rows),
                    ECHO,
                    (below, before),
                )
            ):
                raise GaveUp(
                    "the kernel's line goes on where the editor has none",
                    todo="look at it: `kbridge console`",
                )
            # What of it was below the screen's last row comes into sight at its end.
            yield from self.to_end()
            following = self.line()
            yield Press(editor.home)
            if not (yield Until(self._is_at, ECHO, (following.row,))):
                raise GaveUp(
                    "the loader's editor does not obey the keys", "the cursor did not go to a line's start"
                )
            # The blanks before it go, of which tabs would be in the way of reading lines that wrap.
            rest = following.text.strip()
            while (text := self.line().text) != rest:
                yield Press(editor.delete)
                if not text[:1].isspace() or not (yield Until(self._is_rest, ECHO, (rest, len(text)))):
                    raise _Damaged(
                        "the kernel's line could not be made one", "keys got lost or came twice", "try again"
                    )
            gap = "" if rest == following.text or line.text[:-1].endswith(" ") else " "
            for keys, whole in (
                (editor.erase, line.text + rest),
                (editor.erase, line.text[: -len(editor.joins)] + rest),
                (gap.encode(), line.text[: -len(editor.joins)] + gap + rest),
            ):
                if keys:
                    yield Press(keys)
                if not (yield Until(lambda text: self.line().text == text, ECHO, (whole.rstrip(),))):
                    raise _Damaged("the kernel's line could not be made one", "keys were lost", "try again")
            yield from self.to_end()
        raise GaveUp("the kernel's line has too many parts")

    def draw_again(self) -> Dialogue:
        """Have the line drawn twice more: what it is changed from must not be what a damaged byte made of it."""
        shown = self._shown()
        if shown is not None:
            yield Press(b" ")
            if (yield Until(self._is, ECHO, (f"{shown} ",))):
                yield Press(self._editor.erase)
                if (yield Until(self._is, ECHO, (shown,))):
                    return
        raise _Damaged(
            "the kernel's line cannot be read",
            "it is drawn otherwise each time",
            "see whether bytes get lost on the line",
        )

    def make(self, wanted: str) -> Dialogue:
        """Change the line's end so that it is ``wanted``, seen on the screen."""
        editor = self._editor
        repairs = 0
        while (shown := self._shown()) != wanted:
            if shown is None:
                repairs += 1
                if repairs > MAX_REPAIRS:
                    break
                yield from self.to_end()
                continue
            window = 1 if repairs else WINDOW
            common = _common(shown, wanted)
            if len(shown) > common:
                tail = shown[max(common, len(shown) - window) :]
                # What shows as blanks may be a tab, of which one key erases all.
                keys = 1 if "  " in tail else len(tail)
                expected = shown[:-keys]
                yield Press(editor.erase * keys)
                done = yield Until(self._is, ECHO, (expected, shown if keys == 1 else ""))
            else:
                chunk = wanted[common : common + window]
                yield Press(chunk.encode("ascii", "replace"))
                done = yield Until(self._is, ECHO, (shown + chunk,))
            if not done:
                repairs += 1
                if repairs > MAX_REPAIRS:
                    break
        else:
            return
        raise GaveUp(
            "the command line could not be changed as wished: nothing was booted",
            f"the screen shows {(self.line().text if shown is None else shown)!r} after {MAX_REPAIRS} corrections",
            "see whether keys get lost on the line; `kbridge console` to do it by hand",
        )

    def _is(self, text: str, longer: str = "") -> bool:
        """Whether the line is ``text``, or is ``longer`` without an end of it."""
        shown = self._shown()
        return shown == text or (shown is not None and len(shown) < len(longer) and longer.startswith(shown))


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with that are the same."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
