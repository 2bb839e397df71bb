"""Crashes on captured and composed consoles: whole, in pieces, from their begins and ends, cut off, damaged."""

from __future__ import annotations

import itertools
import random
import re
from itertools import pairwise

import pytest
from crash_lab import Log, begins, ends, logs, parse
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kbridge.crash.detector import CrashEnds, Detector
from kbridge.crash.kinds import Kind

LOGS = logs()
each_log = pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
any_log = st.sampled_from(LOGS)


def shown(end: CrashEnds) -> tuple[str, list[str], str, str, str, int, int]:
    title = end.title
    return (
        title.title,
        list(title.alternatives),
        title.kind.value,
        title.function,
        title.corrupted,
        end.begin.offset,
        end.end,
    )


@each_log
def test_a_log_gives_its_crashes(log: Log) -> None:
    events = parse(log.data)
    assert [shown(end) for end in ends(events)] == [
        (one.title, one.alternatives, one.kind, one.function, one.corrupted, one.begin, one.end)
        for one in log.crashes
    ]
    # Begins and ends take turns, and each end knows its begin.
    assert [end.begin for end in ends(events)] == begins(events) == events[::2]
    for end in ends(events):
        assert end.begin.line.encode("latin-1")[-20:] in log.data[end.begin.offset : end.end]
        assert end.begin.line[-16:] in end.text


@each_log
def test_parsing_from_its_begin_finds_it_and_from_its_end_does_not(log: Log) -> None:
    for number, one in enumerate(log.crashes):
        if one.corrupted.startswith("printed") or one.corrupted.startswith("what led"):
            continue  # That is told by what stands before it.
        found = ends(parse(log.data[one.begin :]))
        assert (found[0].begin.offset, found[0].end) == (0, one.end - one.begin)
        assert found[0].title.title == one.title
        later = ends(parse(log.data[one.end :]))
        assert len(later) == len(log.crashes) - number - 1
        assert all(each.begin.offset + one.end >= one.end for each in later)


@each_log
def test_byte_by_byte_it_gives_the_same(log: Log) -> None:
    data = log.data[-12_000:]
    assert parse(*(data[at : at + 1] for at in range(len(data)))) == parse(data)


@given(any_log, st.lists(st.integers(0, 45_000), max_size=30))
@settings(max_examples=150, deadline=None)
def test_split_at_random_it_gives_the_same(log: Log, cuts: list[int]) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(log.data)), len(log.data)]
    assert parse(*(log.data[begin:end] for begin, end in pairwise(places))) == parse(log.data)


BETWEEN = st.sampled_from(
    [b"", b"root@web1:~# dmesg\r\n", b"~ # ./a\r\n", b"[0]kdb> ", b"x" * 9000 + b"\n", b"#1 Tainted "]
)


@given(
    st.lists(st.tuples(any_log, BETWEEN, st.integers(1, 20_000)), max_size=5),
    st.integers(1, 3000),
    st.randoms(),
)
@settings(max_examples=40, deadline=None)
def test_one_after_the_other_in_pieces_they_give_the_same(
    parts: list[tuple[Log, bytes, int]], most: int, rng: random.Random
) -> None:
    data = b"".join(log.data[-length:] + between for log, between, length in parts)
    pieces, rest = [], data
    while rest:
        size = rng.randint(1, most)
        pieces.append(rest[:size])
        rest = rest[size:]
    assert parse(*pieces) == parse(data)


@each_log
def test_cut_off_at_any_line_it_is_never_called_something_else(log: Log) -> None:
    whole = log.crashes
    detector = Detector()
    place = 0
    seen = 0
    for line in log.data.splitlines(keepends=True):
        for event in detector.feed(line):
            seen += isinstance(event, CrashEnds)
        place += len(line)
        title = detector.peek()
        if title is not None:
            assert title.corrupted or title.title in (whole[seen].title, *whole[seen].alternatives), place
    for place in random.Random(log.name).sample(range(len(log.data)), min(30, len(log.data))):
        for number, end in enumerate(ends(parse(log.data[:place]))):
            assert end.title.corrupted or end.title.title == whole[number].title


SEVERAL = ("panic-in-panic", "oopses-on-two-processors", "soft-lockup-panic", "mixed-processors")
"""Logs in which a crash has others as parts of it, which by themselves are crashes."""

NOISE = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"\x1b[", b"[   12.345678] ", b"\x00" * 20, b"\xff" * 20]),
)
DAMAGE = st.lists(st.tuples(st.integers(0, 45_000), st.integers(0, 400), NOISE), min_size=1, max_size=12)


@given(any_log, DAMAGE)
@settings(max_examples=200, deadline=None)
def test_damaged_it_names_no_function_that_is_not_there(
    log: Log, damage: list[tuple[int, int, bytes]]
) -> None:
    data = log.data
    for place, length, noise in sorted(damage, reverse=True):
        place %= max(len(data), 1)
        data = data[:place] + noise + data[place + length :]
    events = parse(data)
    assert [end.begin for end in ends(events)] == begins(events)
    for end in ends(events):
        assert end.begin.offset < end.end <= len(data)
        if not end.title.corrupted and end.title.function not in ("", "synchronize_rcu", "smp_call_function"):
            assert end.title.function.encode() in data


@given(any_log.filter(lambda log: not log.name.endswith(SEVERAL)), st.integers(0, 45_000))
@settings(max_examples=100, deadline=None)
def test_begun_in_the_middle_it_is_never_called_something_else(log: Log, place: int) -> None:
    place = log.data.find(b"\n", place % len(log.data)) + 1
    known = {title for one in log.crashes for title in (one.title, *one.alternatives)} | {"kdb entered"}
    for end in ends(parse(log.data[place:])):
        assert end.title.corrupted or end.title.title in known


@given(st.lists(NOISE, max_size=60).map(b"".join))
@settings(max_examples=200)
def test_of_noise_it_claims_nothing(data: bytes) -> None:
    assert parse(data) == []


@each_log
def test_kinds_that_are_off_are_not_told(log: Log) -> None:
    kinds = {one.kind for one in log.crashes}
    for kind in kinds:
        assert all(end.title.kind is not Kind(kind) for end in ends(parse(log.data, off=(Kind(kind),))))


def test_the_begin_is_told_with_its_first_lines() -> None:
    """So that a capture can start: within five lines of the first, most with the first itself."""
    late = []
    for log in LOGS:
        detector = Detector()
        place = 0
        for line in log.data.splitlines(keepends=True):
            place += len(line)
            late += [log.data.count(b"\n", begin.offset, place) for begin in begins(detector.feed(line))]
    assert max(late) <= 16
    assert sorted(late)[len(late) // 2] <= 3


MIXABLE = [
    log
    for log in LOGS
    if log.crashes and not any(each.corrupted for each in log.crashes) and not log.name.endswith(SEVERAL)
]


@given(
    st.sampled_from(MIXABLE), st.sampled_from(MIXABLE), st.lists(st.integers(1, 12), min_size=1, max_size=60)
)
@settings(max_examples=300, deadline=None)
def test_two_mixed_line_by_line_are_never_called_something_else(
    one: Log, other: Log, turns: list[int]
) -> None:
    """As two processors print at once, where the kernel does not say which line is whose."""
    # Reports of stalls show processors in turn; the kernel prints one of them at a time.
    assume(not all("stall in" in " ".join(log.crashes[0].alternatives) for log in (one, other)))
    known = {
        title for log in (one, other) for each in log.crashes for title in (each.title, *each.alternatives)
    }
    known.add("kdb entered")
    queues = [log.data[: log.crashes[0].end].splitlines(keepends=True) for log in (one, other)]
    # From a few lines before the crashes on.
    for queue, log in zip(queues, (one, other), strict=True):
        del queue[: max(log.data.count(b"\n", 0, log.crashes[0].begin) - 2, 0)]
    mixed = []
    for turn, count in enumerate(turns):
        mixed += queues[turn % 2][:count]
        del queues[turn % 2][:count]
    count = itertools.count(5_000_000)
    data = re.sub(
        rb"\[ *\d+\.\d{6}\]",
        lambda _: b"[%5d.%06d]" % divmod(next(count), 100_000),
        b"".join((*mixed, *queues[0], *queues[1])),
    )
    for end in ends(parse(data)):
        assert end.title.corrupted or end.title.title in known
