"""What was known of a guest's kernel against what its memory shows now: the same, rebooted, or another.

Pure values: whoever looks makes a ``Sighting`` each time, and is told what came between.  A kernel that came to the
same place again, one boot in 500, is the same to whoever debugs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from symbols.model import BuildId


@dataclass(frozen=True, slots=True)
class Sighting:
    """A kernel that was seen in memory, its build-id read there."""

    build_id: BuildId
    place: int
    """Of its notes."""


class Verdict(Enum):
    """What came between two looks."""

    SAME = "the same kernel, still running"
    APPEARED = "a kernel where none was known"
    REBOOTED = "the same kernel, booted again"
    REPLACED = "another kernel"


def judge(before: Sighting | None, now: Sighting) -> Verdict:
    """Say what came between two looks."""
    if before is None:
        return Verdict.APPEARED
    if before.build_id != now.build_id:
        return Verdict.REPLACED
    return Verdict.SAME if before.place == now.place else Verdict.REBOOTED
