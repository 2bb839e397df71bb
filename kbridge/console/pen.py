"""The pen: the right to type on a console.

in          ``take``, ``release``
out         ``on_change`` of those who subscribed; ``taken`` of a holder that lost it to force
states      free; held by one grip
invariant   at most one grip holds at any time
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge.errors import PenHeldError

if TYPE_CHECKING:
    from collections.abc import Callable


class Grip:
    """One holder's hold of a pen; ``held`` until it is released or taken by force."""

    def __init__(self, pen: Pen, holder: str, taken: Callable[[str], None] | None) -> None:
        self._pen = pen
        self.holder = holder
        self.taken = taken
        """Called with the new holder's name when the pen is taken by force."""

    @property
    def held(self) -> bool:
        """Whether this grip still has the pen."""
        return self._pen.holds(self)

    def release(self) -> None:
        """Lay the pen down; nothing happens when it is no longer held."""
        self._pen.drop(self)


class Pen:
    """The pen of one console."""

    def __init__(self) -> None:
        self._grip: Grip | None = None
        self._listeners: tuple[Callable[[str | None], None], ...] = ()

    @property
    def holder(self) -> str | None:
        """The name of who holds it, ``None`` when it is free."""
        return None if self._grip is None else self._grip.holder

    def holds(self, grip: Grip) -> bool:
        """Whether ``grip`` is the one that holds."""
        return self._grip is grip

    def take(self, holder: str, *, force: bool = False, taken: Callable[[str], None] | None = None) -> Grip:
        """Take the pen; ``force`` takes it from whoever has it, who is told by ``taken``.

        Raises ``PenHeldError``, naming the holder, when it is held and not taken by force.
        """
        former = self._grip
        if former is not None and not force:
            raise PenHeldError(
                "cannot type on this console",
                why=f"{former.holder} holds its pen",
                todo="ask them to leave, or take it by force",
            )
        grip = Grip(self, holder, taken)
        self._grip = grip
        if former is not None and former.taken is not None:
            former.taken(holder)
        self._tell()
        return grip

    def drop(self, grip: Grip) -> None:
        """Free the pen if ``grip`` holds it."""
        if self._grip is grip:
            self._grip = None
            self._tell()

    def subscribe(self, on_change: Callable[[str | None], None]) -> Callable[[], None]:
        """Call ``on_change`` with the new holder, or ``None``, until the function returned is called."""
        self._listeners = (*self._listeners, on_change)

        def stop() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not on_change)

        return stop

    def _tell(self) -> None:
        for listener in self._listeners:
            listener(self.holder)
