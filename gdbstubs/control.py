"""Control of a guest: one session at most has it, any number may ask for it.

in:      sessions that take, ask, give, release or leave
out:     what became of it, in words for the one who asked; ``changed`` for everybody
states:  free · held
invariant: at most one holder, which is a session that is here
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Named(Protocol):
    """A session, for what control needs of it."""

    @property
    def name(self) -> str:
        """Its name, unique among those that are here."""


S = TypeVar("S", bound=Named)


class Control(Generic[S]):
    """Who controls the guest.  ``changed`` is called after each change with the old holder, the new one, and how."""

    def __init__(self, changed: Callable[[S | None, S | None, str], None]) -> None:
        self.holder: S | None = None
        self.asking: list[S] = []
        """Who asked for control and did not get it yet, in order."""
        self._changed = changed

    def take(self, session: S) -> bool:
        """Give control to ``session`` if it is free or already its own; False while another one holds it."""
        if self.holder is session:
            return True
        if self.holder is not None:
            return False
        self._pass(session, "taken")
        return True

    def ask(self, session: S) -> None:
        """Remember that ``session`` wants control."""
        if session not in self.asking and session is not self.holder:
            self.asking.append(session)

    def force(self, session: S) -> None:
        """Give control to ``session`` whoever holds it."""
        if self.holder is not session:
            self._pass(session, "forced")

    def give(self, session: S) -> None:
        """Hand over to ``session``: the caller has made sure that the holder wants it."""
        if self.holder is not session:
            self._pass(session, "given")

    def release(self) -> None:
        """Make control free."""
        if self.holder is not None:
            self._pass(None, "released")

    def leave(self, session: S) -> bool:
        """Forget a session that is gone; True if it held control, which is free now."""
        if session in self.asking:
            self.asking.remove(session)
        if self.holder is not session:
            return False
        self._pass(None, "left")
        return True

    def _pass(self, session: S | None, how: str) -> None:
        former, self.holder = self.holder, session
        if session is not None and session in self.asking:
            self.asking.remove(session)
        self._changed(former, session, how)


def change_in_words(guest: str, former: Named | None, holder: Named | None, how: str) -> str:
    """Say to everybody else what became of control."""
    if holder is None:
        who = "somebody" if former is None else former.name
        return f"{who} {'has left' if how == 'left' else 'let go'}: control of {guest} is free"
    if former is None:
        return f"{holder.name} controls {guest} now"
    if how == "forced":
        return f"{holder.name} took control of {guest} from {former.name}"
    return f"{former.name} gave control of {guest} to {holder.name}"
