"""What was believed of a guest's kernel against what its memory shows now: the same, rebooted, another, or none.

Pure values: whoever looks makes a ``Sighting`` each time, and is told what came between.  A kernel that rebooted may be
moved by as much as before; the places that it chose for its own memory (CONFIG_RANDOMIZE_MEMORY,
arch/x86/mm/kaslr.c) then differ, and are as good a mark of one boot as any that is there from early on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from symbols.model import BuildId
from symbols.reads import Read, Search

MARK_SYMBOLS: Final = ("page_offset_base", "vmalloc_base", "vmemmap_base")
"""Words of 64 bits that are chosen at each boot."""
_WORD_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Sighting:
    """A kernel that was seen in memory, its build-id read there."""

    build_id: BuildId
    slide: int | None
    """By how much it was moved; None where no file says where it was linked."""
    marks: bytes = b""
    """What is at its ``MARK_SYMBOLS``; empty where that is not known, and then it tells nothing."""


class Verdict(Enum):
    """What came between two looks."""

    SAME = "the same kernel, still running"
    APPEARED = "a kernel where none was known"
    GONE = "no kernel that is known: the guest is booting, or runs something else"
    REBOOTED = "the same kernel, booted again"
    REPLACED = "another kernel"


def judge(before: Sighting | None, now: Sighting | None) -> Verdict:
    """Say what came between two looks; what cannot be told apart is the same."""
    if now is None:
        return Verdict.SAME if before is None else Verdict.GONE
    if before is None:
        return Verdict.APPEARED
    if before.build_id != now.build_id:
        return Verdict.REPLACED
    if None not in (before.slide, now.slide) and before.slide != now.slide:
        return Verdict.REBOOTED
    if before.marks and now.marks and before.marks != now.marks:
        return Verdict.REBOOTED
    return Verdict.SAME


def read_marks(places: tuple[int, ...]) -> Search[bytes]:
    """Read what differs from boot to boot, at the addresses of ``MARK_SYMBOLS``; empty if any is not mapped."""
    words = yield tuple(Read(one, _WORD_BYTES) for one in places)
    return b"".join(words) if all(len(one) == _WORD_BYTES for one in words) else b""
