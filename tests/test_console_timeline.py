from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.console.timeline import (
    MAX_LINE_BYTES,
    OWN_KEYS,
    TIMELINE_NAME,
    TORN,
    Event,
    TimeLine,
    TimeLineCursor,
    decode,
    encode,
    time_text,
)
from kbridge.guest import monitor_fields

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: name not in ("time", "mono_ns", "offset", "kind")
)
events = st.builds(
    Event,
    st.sampled_from(["machine.stop", "debugger.attach"]),
    st.integers(0, 1 << 63),
    st.integers(0, 1 << 63),
    st.integers(0, 1 << 51).map(lambda us: us * 1000),
    st.dictionaries(names, values, max_size=4),
)


def event(number: int, **fields: Any) -> Event:
    return Event("operator.power", number, number, number * 1000, fields)


def everything(directory: Path) -> list[Event]:
    cursor = TimeLineCursor(directory)
    try:
        return list(iter(cursor.take, None))
    finally:
        cursor.close()


def test_a_monitors_fields_hide_none_of_a_lines_own() -> None:
    # As QEMU sends it when a UEFI guest sets its clock.
    data = {"offset": 0, "qom-path": "/machine/unattached/device[9]/rtc", "event": "RTC_CHANGE", "time": 3}
    fields = monitor_fields(data)
    assert fields == {
        "monitor_offset": 0, "qom-path": data["qom-path"], "monitor_event": "RTC_CHANGE", "monitor_time": 3,
    }  # fmt: skip
    line = json.loads(encode(Event("machine.event", 7, 1, 1000, fields)))
    assert (line["offset"], line["kind"]) == (7, "machine.event")
    assert OWN_KEYS.isdisjoint(monitor_fields(dict.fromkeys(OWN_KEYS)))


@given(events)
def test_a_line_says_the_event(given_event: Event) -> None:
    line = encode(given_event)
    assert line.count(b"\n") == 1
    assert decode(line) == given_event


@given(st.binary(max_size=80) | st.text(alphabet='{}[]":,0time', max_size=60).map(str.encode))
def test_what_is_no_event_is_none(line: bytes) -> None:
    assert decode(line) is None


def test_time_is_iso_in_utc() -> None:
    assert time_text(1_795_331_489_123_456_789) == "2026-11-22T07:11:29.123456Z"


def test_a_field_may_not_hide_the_lines_own() -> None:
    with pytest.raises(ValueError, match="taken"):
        encode(event(1, offset=5))


def test_fields_too_long_for_a_line_are_left_out_and_it_says_so() -> None:
    line = encode(event(1, text="x" * MAX_LINE_BYTES))
    assert len(line) < 200
    assert json.loads(line)["left_out_bytes"] > MAX_LINE_BYTES


def test_rotation_keeps_order_and_bounds(tmp_path: Path) -> None:
    timeline = TimeLine(tmp_path, file_bytes=1000, old_files=3)
    for number in range(100):
        timeline.write(event(number))
    timeline.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [TIMELINE_NAME, *(f"{TIMELINE_NAME}.{n}" for n in (1, 2, 3))]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())
    offsets = [found.offset for found in everything(tmp_path)]
    assert offsets == list(range(offsets[0], 100))
    assert len(offsets) > 20


def test_a_cursor_follows_through_rotations(tmp_path: Path) -> None:
    timeline = TimeLine(tmp_path, file_bytes=300, old_files=4)
    cursor = TimeLineCursor(tmp_path)
    seen = []
    for number in range(60):
        timeline.write(event(number))
        if number % 5 == 0:
            while (found := cursor.take()) is not None:
                seen.append(found.offset)
    while (found := cursor.take()) is not None:
        seen.append(found.offset)
    assert seen == list(range(60))
    cursor.close()
    timeline.close()


def test_a_cursor_whose_file_was_rotated_away_goes_on_with_the_oldest(tmp_path: Path) -> None:
    timeline = TimeLine(tmp_path, file_bytes=300, old_files=2)
    cursor = TimeLineCursor(tmp_path)
    timeline.write(event(0))
    assert cursor.take() == event(0)
    for number in range(1, 60):
        timeline.write(event(number))
    rest = []
    while (found := cursor.take()) is not None:
        rest.append(found.offset)
    assert rest[-1] == 59
    assert rest[-5:] == list(range(55, 60))
    cursor.close()
    timeline.close()


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_marked_when_reopened(tmp_path: Path, cut: int) -> None:
    timeline = TimeLine(tmp_path)
    timeline.write(event(1))
    timeline.write(event(2))
    timeline.close()
    path = tmp_path / TIMELINE_NAME
    os.truncate(path, path.stat().st_size - cut)
    assert everything(tmp_path) == [event(1)]
    timeline = TimeLine(tmp_path)
    assert timeline.torn
    timeline.write(event(3))
    timeline.close()
    found = everything(tmp_path)
    if cut == 1:  # only its newline was missing
        assert found.pop(1) == event(2)
    assert [e.kind for e in found] == ["operator.power", TORN, "operator.power"]
    assert found[2] == event(3)


def test_a_full_disk_is_an_error_once_and_the_line_is_marked_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeline = TimeLine(tmp_path)
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, data[:20]))
    with pytest.raises(OSError, match="only 20 of"):
        timeline.write(event(1))
    monkeypatch.undo()
    timeline.write(event(2))
    timeline.close()
    assert [e.kind for e in everything(tmp_path)] == [TORN, "operator.power"]
