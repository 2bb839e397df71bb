"""Dialogues with a boot loader's menu: reaching it, choosing from it, its password, the terminals that it draws on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge.boot.dialogue import (
    DRAW,
    ECHO,
    LOADER,
    MASK,
    MAX_MOVES,
    PASSWORD,
    Ask,
    GaveUp,
    Note,
    Press,
    Until,
)
from kbridge.boot.prompts import ask, drawn_twice, tell_twice_drawn
from kbridge.boot.recipes import ENTER
from kbridge.boot.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from kbridge.boot.dialogue import Dialogue, Step
    from kbridge.boot.recipes import Menu, Recipe, Terminals
    from kbridge.boot.sight import Sight


def reach_menu(recipe: Recipe, sight: Sight) -> Dialogue:
    """Have the menu on the screen, from a countdown that may show none."""
    for _ in range(3):
        if (yield Until(lambda: sight.chosen() is not None, 0.0 if sight.state is State.COUNTDOWN else DRAW)):
            return
        yield Press(recipe.wake)
        if (yield Until(lambda: sight.chosen() is not None, ECHO)):
            return
    raise GaveUp(f"{recipe.program} shows no menu", "its countdown was seen, and keys did not bring the menu")


def choose(
    recipe: Recipe,
    entry: str,
    sight: Sight,
    is_menu: Callable[[], Generator[Step, bool, bool]],
) -> Dialogue:
    """Choose an entry, which is left to be booted or edited; ``>`` goes into a menu of its own.

    ``is_menu`` tells whether the chosen entry is one: to open any other boots it.
    """
    menu = recipe.menu
    assert menu is not None
    yield from reach_menu(recipe, sight)
    path = [part.strip() for part in entry.split(">")]
    for depth, part in enumerate(path):
        yield from _choose_here(menu, part, sight)
        if depth + 1 < len(path):
            if not (yield from is_menu()):
                raise GaveUp(f"entry {part!r} is no menu", "it would be booted", "leave out what follows `>`")
            before = sight.entries(menu.mark)
            yield Press(menu.open)
            if not (yield Until(_opened, DRAW, (menu, sight, before))):
                raise GaveUp(f"entry {part!r} does not open", "keys were sent and did nothing")


def _opened(menu: Menu, sight: Sight, before: list[str]) -> bool:
    return sight.chosen() is not None and sight.entries(menu.mark) != before


def _choose_here(menu: Menu, part: str, sight: Sight) -> Dialogue:
    yield Press(menu.first)

    def at_top() -> bool:
        chosen = sight.chosen()
        return chosen is not None and chosen[0] == sight.top_entry(chosen[0])

    if not (yield Until(at_top, DRAW)):
        raise GaveUp("the loader's menu does not obey the keys", "its first entry could not be chosen")
    seen = 0
    while True:
        chosen = sight.chosen()
        assert chosen is not None
        seen += 1
        title = chosen[1].removeprefix(menu.mark).strip()
        if str(seen) == part if part.isdecimal() else part.lower() in title.lower():
            yield Note(f"entry {seen}: {title}")
            return
        yield Press(menu.down)
        # A loader that also draws on a slow screen takes the first key when it is done with that.
        moved = yield Until(
            lambda other: sight.chosen() not in (None, other), DRAW if seen == 1 else ECHO, (chosen,)
        )
        if not moved or seen >= MAX_MOVES:
            shown = ", ".join(repr(title) for title in sight.entries(menu.mark))
            raise GaveUp(
                f"the menu has no entry {part!r}",
                f"it has {seen}; it shows {shown}",
                "give --entry a number from 1, or a piece of a title",
            )


def draw_here_only(
    recipe: Recipe, terminals: Terminals, sight: Sight, secrets: Mapping[str, str], user: str
) -> Dialogue:
    """Have the loader draw on the serial line alone, where it draws elsewhere too; the menu is there again then."""
    sign = terminals.sign
    yield Press(terminals.open)
    if not (yield Until(lambda: sight.state in (State.COMMAND, State.LOGIN), DRAW)):
        raise GaveUp(f"{recipe.program} does not obey the keys", "its command line did not open")
    if sight.state is State.LOGIN:
        yield from give_name(sight, secrets, user)
        yield Until(lambda: sight.state is State.COMMAND, PASSWORD)
    if drawn_twice(sign, sight.typed()):
        # All comes twice, and where it comes on the screen only the loader knows: nothing can be asked.
        yield from tell_twice_drawn(sign, terminals.alone.format(terminals.usual), sight)
    else:
        answer = yield from ask(sign, terminals.ask, sight)
        active = " ".join(answer).partition("Available")[0].split()
        serial = [name for name in active if terminals.serial.fullmatch(name)]
        if serial and set(active) & terminals.others:
            yield from ask(sign, terminals.alone.format(serial[0]), sight)
    yield Press(terminals.leave)
    if not (yield Until(lambda: sight.state is State.MENU and sight.chosen() is not None, DRAW)):
        raise GaveUp(f"{recipe.program} does not obey the keys", "its menu did not come back")


def give_name(sight: Sight, secrets: Mapping[str, str], user: str) -> Dialogue:
    """Give a loader's user's name and password; ends before it says what it thinks of them."""
    if user and LOADER not in secrets:
        yield Ask(LOADER)
    password = secrets.get(LOADER)
    if password is None or not user:
        raise GaveUp(
            f"{sight.program} asks for a user's name and password",
            "its menu is protected",
            "give --loader-user NAME and --secret loader=FILE, or type them: `kbridge console`",
            asks=LOADER,
        )
    mark = sight.mark()

    def refused() -> bool:
        return any("access denied" in line for line in sight.since(mark))

    yield Press(user.encode() + ENTER)
    if not (yield Until(lambda: sight.typed().startswith("Enter password:"), DRAW)):
        raise GaveUp(
            f"{sight.program} does not ask for the password", f"it has the name {user!r}", "try again"
        )
    yield Press(password.encode("utf-8", "surrogateescape") + ENTER, MASK)
    yield Until(lambda: refused() or sight.state is not State.LOGIN, PASSWORD)
    if refused():
        raise GaveUp(
            f"{sight.program} refused the password of {user!r}",
            "it says `access denied`",
            "give another: --loader-user NAME, --secret loader=FILE",
        )
