"""The stops of one guest: numbered 1, 2, 3, … as one history, whoever caused or saw them.

A stop that is left within ``TRANSIENT_SECONDS`` (the inner steps of gdb's ``next``) is told to the session that
resumed the guest and to nobody else; it is counted all the same, so that whoever lags can be told what it missed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from gdbstubs.target import Halted, ThreadId

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
        self._passed: deque[int] = deque(maxlen=MOST_REMEMBERED)

    def count(self, halted: Halted, now: float) -> NumberedStop:
        """Number a new stop, at which the guest stands from now on."""
        self.number += 1
        self.present = self.number
        self.latest = NumberedStop(self.number, halted, now)
        return self.latest

    def left(self) -> None:
        """Take note that the guest runs again, or that nobody knows."""
        self.present = 0

    @property
    def thread(self) -> ThreadId | None:
        """The thread that the latest stop names, if there was one and it names any."""
        return None if self.latest is None else self.latest.halted.thread

    def passed(self) -> None:
        """Take note that the latest stop was left before it was told to those who wait."""
        self.transient += 1
        self._passed.append(self.number)

    def stands_again(self) -> None:
        """Take note that the guest was not resumed after all."""
        self.present = self.number

    def missed(self, seen: int) -> str:
        """Say which lasting stops came and went between the stop ``seen`` and the latest one; empty if none did."""
        if seen <= 0:
            return ""
        first = max(seen + 1, self.number - MOST_REMEMBERED)
        missed = [number for number in range(first, self.number) if number not in self._passed]
        if not missed:
            return ""
        more = "…, " if first > seen + 1 else ""
        return f"missed stop{'s' if more or len(missed) > 1 else ''} {more}{_as_ranges(missed)}"


def _as_ranges(numbers: list[int]) -> str:
    """Write ascending numbers in short: ``3, 5 to 8``."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    words = (
        str(first) if first == last else f"{first}{', ' if last == first + 1 else ' to '}{last}"
        for first, last in ranges
    )
    return ", ".join(words)
