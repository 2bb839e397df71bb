"""What a user types on a line that kgdb shares: when the guest is given it, and what comes back from kgdb's hands.

Source: Linux, kernel/debug/gdbstub.c, ``put_packet``: while a stop waits for its acknowledgement, each byte that is
read and is neither ``+``, ``$`` nor 0x03 makes kgdb send the stop once more.  At a ``$`` it gives the stop up, says
``-``, and skips what follows, up to the next ``$``.

in:      typed bytes; whether the guest is held, or the line in the middle of what may be a stop; that it said
         something; how many bytes kgdb has read in front of an acknowledgement; times
out:     to ``put_out``: ``Typing`` (to be sent to the guest) and ``Told``; ``deadline``
states:  nothing waits (keys go at once) · keys wait: until the guest runs, has run for ``RUNNING``, has read the last
invariant: a byte is given to the guest in its order, and once more only after kgdb has shown that it read it; or it is
         counted as dropped; or its user is told that it may be lost.  No more than ``MOST_TYPED`` bytes wait

Times are the caller's monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

MOST_TYPED: Final = 4096
"""Bytes that are kept of what a user types."""
RUNNING: Final = 1.0
"""Seconds for which the guest must have run before it is given what was kept: back after a step kgdb would read it."""
AT_ONCE: Final = 8
"""Half of a UART's FIFO; kgdb, if it stops the guest in that moment, sends its stop again for each of them."""
PACE: Final = 0.005
"""Seconds between two pieces."""
UNECHOED: Final = 0.1
"""The same while nothing shows that the guest has read the last."""
RECENT: Final = 3.0
"""Seconds for which a key may be under way on a busy host: what was typed earlier is not what kgdb has read."""
JUST_NOW: Final = 0.5
"""The same where there is no sign of what kgdb reads: most keys are under way for some milliseconds."""
MOST_GIVEN: Final = 64
"""Bytes that are remembered of what was given."""
_UNCOUNTED: Final = frozenset(b"+\x03")
"""What kgdb reads without a sign."""
_DOLLAR: Final = 0x24


class Told(Enum):
    """What the user who types is to be told."""

    KEPT = "what you type is kept until the guest runs"
    FULL = "what you type is dropped: too much is kept already"
    DELIVERED = "what you typed was delivered"
    LOST = "what you typed in the moment of the stop may be lost"


@dataclass(frozen=True, slots=True)
class Typing:
    """What a user has typed, to be sent to the guest."""

    data: bytes


class Keys:
    """What is typed on one line; the module's text says how."""

    __slots__ = (
        "_dollar_at",
        "_given",
        "_gives_at",
        "_is_told",
        "_is_told_full",
        "_put_out",
        "_ran_from",
        "_typed",
        "dropped",
        "is_attended",
        "is_held",
    )

    def __init__(self, put_out: Callable[[Typing | Told], None]) -> None:
        self._put_out = put_out
        self._typed = bytearray()
        self._given: deque[tuple[float, int]] = deque(maxlen=MOST_GIVEN)
        self._dollar_at = -RECENT
        self._gives_at = 0.0
        self._ran_from = -RUNNING
        self._is_told = False
        self._is_told_full = False
        self.is_held = False
        """Whether kgdb holds the guest, or is expected to."""
        self.is_attended = False
        """Whether a debugger is there, which may stop the guest at any time: then keys go a few at a time."""
        self.dropped = 0
        """Bytes typed beyond ``MOST_TYPED``."""

    @property
    def wait(self) -> bool:
        """Whether there are keys that the guest was not given yet."""
        return bool(self._typed)

    @property
    def deadline(self) -> float | None:
        """When ``give`` is to be called again; None while something else has to happen first."""
        if not self._typed or self.is_held:
            return None
        return max(self._ran_from + RUNNING, self._gives_at)

    def typed(self, data: bytes, now: float, *, settled: bool) -> None:
        """Take keys.  ``settled``: whether the line is not in the middle of what may be a stop."""
        if self._is_free(now, settled=settled):
            first, data = (data[:AT_ONCE], data[AT_ONCE:]) if self.is_attended else (data, b"")
            self._send(first, now)
            if not data:
                return
        room = MOST_TYPED - len(self._typed)
        self._typed += data[:room]
        self._tell()
        if len(data) > room:
            self.dropped += len(data) - room
            if not self._is_told_full:
                self._is_told_full = True
                self._put_out(Told.FULL)

    def give(self, now: float, *, settled: bool) -> None:
        """Give the guest a few of the keys that wait, if it is time."""
        if not self._typed:
            return
        if self.is_held:
            self._tell()
            return
        deadline = self.deadline
        if not settled or deadline is None or now < deadline:
            return
        keys = bytes(self._typed[:AT_ONCE])
        del self._typed[:AT_ONCE]
        self._send(keys, now)
        if not self._typed:
            if self._is_told:
                self._put_out(Told.DELIVERED)
            self._is_told = self._is_told_full = False

    def echoed(self, now: float) -> None:
        """Take note that the guest has said something: it has read, more may follow."""
        self._gives_at = min(self._gives_at, now + PACE)

    def runs(self, now: float) -> None:
        """Take note that the guest was held, and runs from now on."""
        self.is_held = False
        self._ran_from = now
        self._given.clear()

    def forget(self) -> None:
        """Take note that others than the user have sent something: what kgdb reads may be that."""
        self._given.clear()

    def has_sent_dollar(self, now: float) -> bool:
        """Whether kgdb, if the guest stops now, may find a ``$`` that was typed."""
        return now <= self._dollar_at + RECENT

    def swallowed(self, repeats: int, stopped_at: float, *, gave_up: bool, surely: bool) -> None:
        """Take back the last keys that were given: kgdb has repeated its stop for as many bytes.

        ``gave_up``: whether it then read a ``$``, and skipped what followed.  ``surely``: whether nothing but keys can
        have been among what it read.
        """
        recent = bytes(key for when, key in self._given if when >= stopped_at - RECENT)
        self._given.clear()
        if not recent:
            return
        start = _first_read(recent, repeats, gave_up=gave_up) if surely else None
        if start is None:
            self._put_out(Told.LOST)
            return
        if start < len(recent):
            self._typed[:0] = recent[start:]
            self._tell()

    def stopped_in_silence(self, now: float) -> None:
        """Take note of a stop after which kgdb reads without a sign."""
        if self._given and self._given[-1][0] >= now - JUST_NOW:
            self._put_out(Told.LOST)
        self._given.clear()

    def _is_free(self, now: float, *, settled: bool) -> bool:
        if self._typed or self.is_held or not settled or now < self._ran_from + RUNNING:
            return False
        return not self.is_attended or now >= self._gives_at

    def _send(self, data: bytes, now: float) -> None:
        self._gives_at = now + UNECHOED
        self._given.extend((now, key) for key in data[-MOST_GIVEN:])
        if _DOLLAR in data:
            self._dollar_at = now
        self._put_out(Typing(data))

    def _tell(self) -> None:
        if not self._is_told and self.is_held:
            self._is_told = True
            self._put_out(Told.KEPT)


def _first_read(recent: bytes, repeats: int, *, gave_up: bool) -> int | None:
    """Return where the keys begin that kgdb has read, up to the last of them; None where that cannot be told."""
    if not _UNCOUNTED.isdisjoint(recent):
        return None
    if not gave_up:
        start = len(recent) - repeats
        return start if start >= 0 and _DOLLAR not in recent[start:] else None
    # The first ``$`` that it read is one behind as many other keys as it has repeated its stop.
    starts = [
        place - repeats
        for place, key in enumerate(recent)
        if key == _DOLLAR and place >= repeats and _DOLLAR not in recent[place - repeats : place]
    ]
    return starts[0] if len(starts) == 1 else None
