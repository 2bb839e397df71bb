"""Dialogues at a boot loader's command line: a command is typed as it is echoed, and its answer read.

invariant   a command is entered only when the whole of it stands on the screen; nothing is booted unless the command
            line that the loader says it has is the wanted one
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Final

from kbridge.boot.dialogue import DRAW, ECHO, MAX_REPAIRS, WINDOW, GaveUp, Note, Press, Until
from kbridge.boot.recipes import ENTER, KILL_LINE
from kbridge.boot.wishes import words_of

if TYPE_CHECKING:
    from kbridge.boot.dialogue import Dialogue, Step
    from kbridge.boot.recipes import Prompt, Recipe
    from kbridge.boot.sight import Sight
    from kbridge.boot.wishes import Wishes

MAX_ERASED: Final = 80
"""Keys that erase a character, sent at once: no command of ours is longer."""


def command(recipe: Recipe, wishes: Wishes, sight: Sight) -> Dialogue:
    """Set the kernel's command line at a loader's prompt, have it printed, and boot."""
    prompt = recipe.prompt
    assert prompt is not None
    old = yield from _command_line(prompt, sight)
    change = wishes.change(old)
    yield Note(words_of(change))
    if any(char in change.text for char in prompt.specials):
        raise GaveUp(
            f"the command line cannot be typed at {recipe.program}", f"it has one of {prompt.specials}"
        )
    for attempt in range(2):
        if change.text == old and not attempt:
            break
        first = True
        for piece in _pieces(change.text, prompt.most):
            yield from ask(prompt.sign, (prompt.put if first else prompt.more).format(piece), sight)
            first = False
        got = yield from _command_line(prompt, sight)
        if got == change.text:
            break
    else:
        raise GaveUp(
            "the command line could not be changed as wished: nothing was booted",
            f"{recipe.program} has {got!r}",
            "see whether keys get lost on the line; `kbridge console` to do it by hand",
        )
    yield Note(f"read back: {change.text}")
    yield from type_in(prompt.sign, prompt.boot, sight)
    yield Press(ENTER, "Enter", boots=True)


def _pieces(text: str, most: int) -> list[str]:
    pieces = [""]
    for word in text.split(" "):
        if pieces[-1] and len(pieces[-1]) + len(word) >= most:
            pieces.append(word)
        else:
            pieces[-1] = f"{pieces[-1]} {word}" if pieces[-1] else word
    return pieces


def at_prompt(sign: str, sight: Sight, typed: str = "") -> bool:
    """Whether the cursor stands behind the sign and what was typed; both may have been drawn twice over each other."""
    shown = sight.typed()
    if shown.startswith(sign) and len(shown) > len(sign) and shown[len(sign) + 1 :] == typed:
        return True
    return not typed and drawn_twice(sign, shown)


def drawn_twice(sign: str, shown: str) -> bool:
    """Whether a line has nothing but a prompt's sign, two times."""
    return shown.rstrip() == sign * 2


def type_in(sign: str, text: str, sight: Sight, *, erase: bytes = b"") -> Dialogue:
    """Type a command without its end, seen as it is echoed.

    ``erase`` erases a character, where no key erases the line.
    """
    # Who draws twice may read twice too: keys then come out of order, but one at a time they cannot.
    one = drawn_twice(sign, sight.typed())
    for repairs in range(MAX_REPAIRS):
        if not at_prompt(sign, sight):
            yield Press(erase * min(len(sight.typed()), MAX_ERASED) or KILL_LINE)
            if not (yield Until(at_prompt, ECHO, (sign, sight))):
                continue
        typed = ""
        while typed != text:
            chunk = text[len(typed) : len(typed) + (1 if one or repairs else WINDOW)]
            typed += chunk
            yield Press(chunk.encode("ascii", "replace"))
            if not (yield Until(at_prompt, ECHO, (sign, sight, typed))):
                break
        else:
            return
    raise GaveUp(
        "the boot loader's command line does not take what is typed",
        f"it shows {sight.typed()!r} where {text!r} was typed",
        "see whether keys get lost on the line",
    )


def tell_twice_drawn(sign: str, text: str, sight: Sight) -> Dialogue:
    """Type a command where all is drawn twice, one key at a time, until the prompt comes once: it is to see to that.

    The loader counts rows that are not those of the screen: only the column tells that a key was taken.  Keys that came
    out of order make another command, which is none; then all comes twice still.
    """
    for _ in range(MAX_REPAIRS):
        for at, char in enumerate(text, len(sign) + 2):
            yield Press(char.encode())
            if not (yield Until(lambda column: sight.screen.x == column, ECHO, (at,))):
                break
        else:
            yield Press(ENTER, "Enter")
            if (yield Until(lambda: sight.typed() == f"{sign} ", ECHO)):
                return
        yield Press(KILL_LINE)
        yield Until(lambda column: sight.screen.x == column, ECHO, (len(sign) + 1,))
    raise GaveUp(
        "the boot loader's command line does not take what is typed",
        f"all still comes twice after {text!r}",
        "see whether keys get lost on the line",
    )


def ask(
    sign: str, text: str, sight: Sight, *, erase: bytes = b"", seconds: float = DRAW
) -> Generator[Step, bool, list[str]]:
    """Type a command and return what it printed, within ``seconds``; ``erase`` as in ``type_in``."""
    yield from type_in(sign, text, sight, erase=erase)
    mark = sight.mark()
    yield Press(ENTER, "Enter")
    if not (yield Until(at_prompt, seconds, (sign, sight))):
        raise GaveUp("the boot loader does not answer", f"no prompt came after {text!r}")
    return [line for line in sight.since(mark) if not line.startswith(sign)]


def _command_line(prompt: Prompt, sight: Sight) -> Generator[Step, bool, str]:
    """Return the kernel's command line that is set, when it was printed the same way twice: no byte was damaged."""
    answer: list[str] = []
    before: str | None = None
    for _ in range(MAX_REPAIRS):
        answer = yield from ask(prompt.sign, prompt.show, sight)
        text = None
        for line in answer:
            found = prompt.shown.match(line)
            if found is not None:
                text = found[1].rstrip()
            elif prompt.unset.match(line):
                text = ""
        if text is not None and text == before:
            return text
        before = text
    raise GaveUp(
        "the boot loader's command line cannot be read", f"it answered {' / '.join(answer)!r}", "try again"
    )
