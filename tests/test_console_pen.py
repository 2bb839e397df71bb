from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.console.pen import Grip, Pen
from kbridge.errors import LineError


@given(st.lists(st.tuples(st.sampled_from(["take", "force", "release"]), st.integers(0, 3)), max_size=40))
def test_at_most_one_grip_holds(steps: list[tuple[str, int]]) -> None:
    pen = Pen()
    told: list[str | None] = []
    pen.subscribe(told.append)
    grips: list[Grip] = []
    robbed: list[str] = []
    for what, who in steps:
        before = pen.holder
        if what == "release":
            if who < len(grips):
                was = grips[who].held
                grips[who].release()
                assert not grips[who].held
                assert pen.holder == (None if was else before)
        else:
            forced = what == "force"
            if before is not None and not forced:
                with pytest.raises(LineError, match=before):
                    pen.take(str(who))
                assert pen.holder == before
            else:
                count = len(robbed)
                grips.append(pen.take(str(who), force=forced, taken=robbed.append))
                assert robbed[count:] == ([str(who)] if before is not None else [])
        assert sum(grip.held for grip in grips) == (pen.holder is not None)
        if told:
            assert told[-1] == pen.holder


def test_who_stopped_listening_is_not_told() -> None:
    pen = Pen()
    told: list[str | None] = []
    stop = pen.subscribe(told.append)
    grip = pen.take("ann")
    stop()
    grip.release()
    assert told == ["ann"]
