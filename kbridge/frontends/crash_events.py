"""What happens to crashes, as the body of an answer that goes on: an object a line."""

from __future__ import annotations

import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from kbridge.console.timeline import time_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kbridge.crash.desk import Desk

MOST_KEPT: Final = 1000
"""Of a peer that does not read; the oldest are left out."""
_SHOWN: Final = ("what", "guest", "title", "count", "id", "state", "path")


class CrashEvents:
    """A ``PieceReader``; of one guest only, where one is named.

    Without ``follow`` it has those that are kept, and ends.
    """

    def __init__(self, desk: Desk, guest: str | None, *, follow: bool) -> None:
        self._guest = guest
        self._follow = follow
        self._kept: deque[bytes] = deque(maxlen=MOST_KEPT)
        self._wake: Callable[[], None] | None = None
        if not follow:
            for one in reversed(desk.store.listed(guest)):
                self._kept.append(_line({**one, "what": "finished"}, one["time"]))
        self._stop = desk.follow(self._told)

    @property
    def follows(self) -> bool:
        """Whether more may come."""
        return self._follow

    def _told(self, what: str, listed: Mapping[str, Any]) -> None:
        if not self._follow or self._guest not in (None, listed["guest"]):
            return
        self._kept.append(_line({**listed, "what": what}, time_text(time.time_ns())))
        if self._wake is not None:
            self._wake()

    def next(self) -> bytes | None:
        """Return the next line."""
        return self._kept.popleft() if self._kept else None

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have ``wake`` called when there is more, until the function returned is called."""
        self._wake = wake

        def stop() -> None:
            self._wake = None

        return stop

    def close(self) -> None:
        """End: the peer is gone."""
        self._stop()


def _line(listed: Mapping[str, Any], when: str) -> bytes:
    shown = {key: listed[key] for key in _SHOWN if key in listed}
    return json.dumps({"time": when, **shown}).encode() + b"\n"
