"""The transcript of a run on a console, for one peer: a bounded queue of entries, which is the body of an answer.

invariant   a peer that does not read is kept ``MAX_ENTRIES`` entries, the last ones, and told how many are missing
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_ENTRIES: Final = 1000


class Transcript:
    """Entries that wait for their peer."""

    def __init__(self) -> None:
        self._entries: deque[dict[str, Any]] = deque()
        self._skipped = 0
        self._wake: Callable[[], None] | None = None

    def add(self, entry: dict[str, Any]) -> None:
        """Put an entry at the end."""
        if len(self._entries) >= MAX_ENTRIES:
            self._entries.popleft()
            self._skipped += 1
        self._entries.append(entry)

    def next(self, skipped: Callable[[Mapping[str, Any], int], dict[str, Any]]) -> bytes | None:
        """Return the next entry as a line of JSON; ``skipped`` makes one where so many are missing before another."""
        if self._skipped:
            lost, self._skipped = self._skipped, 0
            return _line(skipped(self._entries[0], lost))
        return _line(self._entries.popleft()) if self._entries else None

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have ``wake`` called when there may be more, until the function returned is called."""
        self._wake = wake

        def stop() -> None:
            self._wake = None

        return stop

    def wake(self) -> None:
        """Tell who watches, where there is something."""
        if self._wake is not None and self._entries:
            self._wake()


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"
