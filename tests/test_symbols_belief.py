"""What came between two looks at a guest's kernel."""

from __future__ import annotations

import struct

import pytest
from symbols_lab import Image

from symbols import belief
from symbols.belief import Sighting, Verdict, judge
from symbols.model import BuildId

ONE, TWO = BuildId("11" * 20), BuildId("22" * 20)
MARKS, OTHERS = b"\x11" * 24, b"\x22" * 24


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        (None, None, Verdict.SAME),
        (None, Sighting(ONE, 0), Verdict.APPEARED),
        (Sighting(ONE, 0), None, Verdict.GONE),
        (Sighting(ONE, 0, MARKS), Sighting(ONE, 0, MARKS), Verdict.SAME),
        (Sighting(ONE, 0), Sighting(ONE, 1 << 21), Verdict.REBOOTED),
        # Moved by as much as before, or nobody knows by how much.
        (Sighting(ONE, 0, MARKS), Sighting(ONE, 0, OTHERS), Verdict.REBOOTED),
        (Sighting(ONE, None, MARKS), Sighting(ONE, None, OTHERS), Verdict.REBOOTED),
        (Sighting(ONE, 0, MARKS), Sighting(ONE, 0), Verdict.SAME),
        (Sighting(ONE, None), Sighting(ONE, 0), Verdict.SAME),
        # By kexec, or from another disk: whatever else is the same.
        (Sighting(ONE, 0, MARKS), Sighting(TWO, 0, MARKS), Verdict.REPLACED),
    ],
)
def test_verdicts(before: Sighting | None, now: Sighting | None, verdict: Verdict) -> None:
    assert judge(before, now) is verdict


def test_marks_are_read_in_one_batch_or_tell_nothing() -> None:
    places = (0xFFFFFFFF82000000, 0xFFFFFFFF82000008, 0xFFFFFFFF82000010)
    memory = Image({places[0]: struct.pack("<3Q", 1, 2, 3)})
    assert memory.run(belief.read_marks(places)) == struct.pack("<3Q", 1, 2, 3)
    assert memory.batches == 1
    assert memory.run(belief.read_marks((*places, 0xFFFFFFFF90000000))) == b""
    assert Image().run(belief.read_marks(())) == b""
