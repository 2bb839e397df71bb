"""Sweeps over memory: what is found across the borders of pieces, how large they are, and when a sweep gives up."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from gdbstubs.errors import EFAULT, ETIMEDOUT, TargetError
from gdbstubs.searching import (
    FIRST_PIECE,
    LARGEST_PIECE,
    MOST_SWEPT,
    SWEEP_SECONDS,
    Checksum,
    PatternSearch,
    Sweep,
)
from gdbstubs.target import Reply


class Memory:
    """Bytes that are read after `seconds` each time, at once or when told."""

    def __init__(self, data: bytes, *, seconds: float = 0.0, most: int = 1 << 30) -> None:
        self.data = data
        self.seconds = seconds
        self.most = most
        self.now = 0.0
        self.asked: list[int] = []
        self.held: list[Callable[[], None]] | None = None

    def read(self, address: int, length: int, done: Reply[bytes]) -> None:
        self.asked.append(length)
        self.now += self.seconds
        found = self.data[address : address + min(length, self.most)]
        result: bytes | TargetError = found or TargetError(EFAULT, "nothing there")
        if self.held is None:
            done(result)
        else:
            self.held.append(lambda: done(result))


def sweep(memory: Memory, question: PatternSearch | Checksum, length: int) -> TargetError | None:
    answers: list[TargetError | None] = []
    Sweep(memory.read, 0, length, question, lambda: memory.now, answers.append).start()
    while memory.held:
        assert answers == []
        memory.held.pop(0)()
    assert len(answers) == 1
    return answers[0]


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=20), st.lists(st.integers(1, 40)), st.data())
def test_a_pattern_is_found_across_any_borders(
    data: bytes, other: bytes, cuts: list[int], draw: st.DataObject
) -> None:
    start = draw.draw(st.integers(0, max(0, len(data) - 1)))
    pattern = data[start : start + len(other)] or other
    search = PatternSearch(0x1000, pattern)
    left = data
    while left:
        cut = cuts.pop() if cuts else 7
        if search.take(left[:cut]):
            break
        left = left[cut:]
    index = data.find(pattern)
    assert search.found == (None if index < 0 else 0x1000 + index)


@given(st.binary(min_size=1, max_size=200), st.integers(1, 50))
def test_the_checksum_is_gdbs(data: bytes, piece: int) -> None:
    checksum = Checksum()
    for start in range(0, len(data), piece):
        assert not checksum.take(data[start : start + piece])
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x104C11DB7 if value & 0x80000000 else 0)
    assert checksum.value == value


def test_a_known_checksum() -> None:
    checksum = Checksum()
    checksum.take(b"123456789")
    assert checksum.value == 0x0376E6E7  # CRC-32/MPEG-2, the name that catalogues give to it


def test_pieces_grow_while_they_come_quickly_and_shrink_when_they_do_not() -> None:
    memory = Memory(bytes(1 << 20))
    assert sweep(memory, Checksum(), 1 << 20) is None
    assert memory.asked[:3] == [FIRST_PIECE, 2 * FIRST_PIECE, 4 * FIRST_PIECE]
    assert max(memory.asked) == LARGEST_PIECE
    assert sum(memory.asked) == 1 << 20
    slow = Memory(bytes(1 << 20), seconds=0.1)
    sweep(slow, Checksum(), 1 << 20)
    assert set(slow.asked) == {FIRST_PIECE}


def test_a_sweep_gives_up_in_time_and_says_how_far_it_came() -> None:
    memory = Memory(bytes(1 << 20), seconds=0.3)
    result = sweep(memory, Checksum(), 1 << 20)
    assert result is not None
    assert result.errno == ETIMEDOUT
    assert f"up to {4 * FIRST_PIECE:#x}" in result.words
    assert memory.now <= SWEEP_SECONDS + 0.3


def test_a_target_that_answers_at_once_is_not_read_for_ever_and_not_recursively() -> None:
    memory = Memory(bytes(MOST_SWEPT + 1))
    result = sweep(memory, Checksum(), MOST_SWEPT + 1)
    assert result is not None
    assert result.errno == ETIMEDOUT
    assert sum(memory.asked) == MOST_SWEPT
    assert sweep(Memory(bytes(40_000), most=1), Checksum(), 40_000) is None


def test_late_answers_do_the_same() -> None:
    memory = Memory(b"a" * 50_000 + b"needle" + b"b" * 50_000)
    memory.held = []
    search = PatternSearch(0, b"needle")
    assert sweep(memory, search, 1 << 20) is None
    assert search.found == 50_000
    assert sum(memory.asked) < 120_000


def test_what_is_mapped_is_searched_before_the_rest_is_an_error() -> None:
    memory = Memory(b"a" * 5000 + b"needle")
    search = PatternSearch(0, b"needle")
    assert sweep(memory, search, 1 << 20) is None
    assert search.found == 5000
    result = sweep(memory, PatternSearch(0, b"none"), 1 << 20)
    assert result is not None
    assert (result.errno, result.words) == (EFAULT, "memory cannot be read at 0x138e: nothing there")


def test_a_range_ends_at_the_end_of_the_address_space() -> None:
    asked: list[tuple[int, int]] = []

    def read(address: int, length: int, done: Reply[bytes]) -> None:
        asked.append((address, length))
        done(bytes(length))

    answers: list[TargetError | None] = []
    Sweep(read, (1 << 64) - 16, 1 << 20, Checksum(), lambda: 0.0, answers.append).start()
    assert answers == [None]
    assert asked == [((1 << 64) - 16, 16)]
