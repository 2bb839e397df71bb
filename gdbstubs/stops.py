"""The stops of one guest: numbered 1, 2, 3, … as one history, whoever caused or saw them.

A stop that is left within ``TRANSIENT_SECONDS`` (the inner steps of gdb's ``next``) is told to the session that
resumed the guest and to nobody else; it is counted all the same, so that whoever lags can be told what it missed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from gdbstubs.target import Halted

TRANSIENT_SECONDS: Final = 0.1
MOST_REMEMBERED: Final = 64


@dataclass(frozen=True, slots=True)
class NumberedStop:
    """One halt of the guest: its number, what the stub said of it, and when (monotonic seconds)."""

    number: int
    halted: Halted
    at: float


class Stops:
    """The history, its latest stop, and whether the guest still stands there."""

    def __init__(self) -> None:
        self.number = 0
        """How many stops there were."""
        self.transient = 0
        """How many of them were left before they were told to those who wait."""
        self.latest: NumberedStop | None = None
        self.present = 0
        """The number of the stop at which the guest stands, 0 while it runs or nobody can tell."""
        self._remembered: deque[NumberedStop] = deque(maxlen=MOST_REMEMBERED)

    def count(self, halted: Halted, now: float) -> NumberedStop:
        """Number a new stop, at which the guest stands from now on."""
        self.number += 1
        self.present = self.number
        self.latest = NumberedStop(self.number, halted, now)
        self._remembered.append(self.latest)
        return self.latest

    def left(self) -> None:
        """Take note that the guest runs again, or that nobody knows."""
        self.present = 0

    @property
    def remembered(self) -> tuple[NumberedStop, ...]:
        """The last stops, oldest first."""
        return tuple(self._remembered)

    def missed(self, seen: int) -> str:
        """Say which stops came and went unseen between the stop ``seen`` and the latest one; empty if none did."""
        first, last = seen + 1, self.number - 1
        if seen <= 0 or first > last:
            return ""
        return f"missed stop {first}" if first == last else f"missed stops {first} to {last}"
