"""Replies in the order of their requests, whatever the order in which they become known.

in:      requests that are answered later (``reserve``), their replies (``fill``), replies that are known at once
out:     payloads, in order, to ``send``
invariant: a reply leaves once all before it have left; each request is answered by what filled its place, once
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from gdbstubs.errors import LinkFailed

MOST_PENDING: Final = 1024
"""How many requests may wait for the target's answers."""


class Place:
    """The place of one reply that is not known yet."""

    __slots__ = ("payloads",)

    def __init__(self) -> None:
        self.payloads: tuple[bytes, ...] | None = None


class Replies:
    """The replies of one session that are not sent yet; ``send`` is given the payload of each packet."""

    __slots__ = ("_places", "_send")

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._places: deque[Place] = deque()

    @property
    def is_pending(self) -> bool:
        """Whether any waits."""
        return bool(self._places)

    @property
    def is_full(self) -> bool:
        """Whether no more can wait."""
        return len(self._places) >= MOST_PENDING

    def reserve(self) -> Place:
        """Keep the place of a reply.  Raises ``LinkFailed`` where too many are kept already."""
        if len(self._places) >= MOST_PENDING:
            raise LinkFailed(f"more than {MOST_PENDING} requests wait for an answer")
        place = Place()
        self._places.append(place)
        return place

    def fill(self, place: Place, payloads: tuple[bytes, ...]) -> None:
        """Answer a request, with several packets or none, and send all that waited for nothing else."""
        place.payloads = payloads
        places = self._places
        while places and (ready := places[0].payloads) is not None:
            places.popleft()
            for payload in ready:
                self._send(payload)

    def leave(self, place: Place) -> None:
        """Give up the place that is the first, because its reply has been sent already."""
        assert self._places[0] is place, "replies before this one were not sent"
        self.fill(place, ())

    def reply(self, payload: bytes) -> None:
        """Answer a request at once, behind those before it.  Raises ``LinkFailed`` like ``reserve``."""
        if self._places:
            self.reserve().payloads = (payload,)
        else:
            self._send(payload)

    def append(self, payload: bytes) -> None:
        """Send what ends a resume, behind the replies to what was asked before it."""
        if self._places:
            place = Place()
            place.payloads = (payload,)
            self._places.append(place)
        else:
            self._send(payload)
