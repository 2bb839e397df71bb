"""One who types on a console: takes the pen with the first byte and keeps it until he leaves.

in          ``type``, ``take``, ``release``, ``leave``
out         bytes on the line; ``told`` with words for the typist: once for each reason why bytes are discarded
states      looking on; holding the pen
invariant   nothing reaches the line from one who does not hold the pen
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge.errors import LineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbridge.console.pen import Grip
    from kbridge.guest import Guest


class Typist:
    """One who may type on the console of ``guest``; ``name`` is what others see while he holds the pen."""

    def __init__(self, guest: Guest, name: str, told: Callable[[str], None]) -> None:
        self._guest = guest
        self._name = name
        self._told = told
        self._grip: Grip | None = None
        self._last_words = ""

    @property
    def holds(self) -> bool:
        """Whether this typist holds the pen."""
        return self._grip is not None and self._grip.held

    def type(self, data: bytes) -> None:
        """Send ``data`` to the guest, taking the pen if it is free; else discard it and say so, once."""
        line = self._guest.line
        try:
            if line is None:
                raise LineError("there is no console line")
            if not self.holds:
                self.take()
            line.write(data)
        except LineError as error:
            self._tell(f"{error.why or error.what}: what you type is discarded")
        else:
            self._last_words = ""

    def take(self, *, force: bool = False) -> None:
        """Take the pen; raises ``LineError``, naming the holder, when another has it."""
        self._grip = self._guest.pen.take(self._name, force=force, taken=self._taken)
        self._guest.recorder.record("console.pen", holder=self._name)

    def release(self) -> None:
        """Lay the pen down, if this typist has it."""
        if self._grip is not None and self._grip.held:
            self._grip.release()
            self._guest.recorder.record("console.pen", holder=None)
        self._grip = None

    def _taken(self, holder: str) -> None:
        self._tell(f"{holder} took the pen: what you type from now on is discarded")

    def _tell(self, words: str) -> None:
        if words != self._last_words:
            self._last_words = words
            self._told(words)
