"""What came between two looks at a guest's kernel."""

from __future__ import annotations

import pytest

from symbols.belief import Sighting, Verdict, judge
from symbols.model import BuildId

ONE, TWO = BuildId("11" * 20), BuildId("22" * 20)


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        (None, Sighting(ONE, 0), Verdict.APPEARED),
        (Sighting(ONE, 0), Sighting(ONE, 0), Verdict.SAME),
        (Sighting(ONE, 0), Sighting(ONE, 1 << 21), Verdict.REBOOTED),
        # By kexec, or from another disk: even at the same place.
        (Sighting(ONE, 0), Sighting(TWO, 0), Verdict.REPLACED),
    ],
)
def test_verdicts(before: Sighting | None, now: Sighting, verdict: Verdict) -> None:
    assert judge(before, now) is verdict
