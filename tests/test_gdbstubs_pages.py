"""The page cache of a stop: what it fetches, what it never does, and when it forgets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gdbstubs.errors import EFAULT, TargetError
from gdbstubs.pages import IMAGE_END, IMAGE_START, PAGE, PageCache
from gdbstubs.target import Reply, ThreadId

ONE, TWO = ThreadId(1), ThreadId(2)
CODE = IMAGE_START + 0x123000


class Memory:
    """A guest's memory of which a part is mapped; each byte is told by its address."""

    def __init__(self, mapped: range) -> None:
        self.mapped = mapped
        self.reads: list[tuple[ThreadId, int, int]] = []
        self.salt = 0

    def read(self, thread: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        self.reads.append((thread, address, length))
        if address not in self.mapped:
            done(TargetError(EFAULT))
            return
        end = min(address + length, self.mapped.stop)
        done(bytes((place * 7 + thread + self.salt) & 0xFF for place in range(address, end)))


def ask(cache: PageCache, address: int, length: int, thread: ThreadId = ONE) -> bytes | TargetError:
    answers: list[bytes | TargetError] = []
    cache.read(thread, address, length, answers.append)
    assert len(answers) == 1
    return answers[0]


def test_the_second_read_in_a_page_fetches_it_and_the_third_asks_nobody() -> None:
    memory = Memory(range(CODE, CODE + PAGE))
    cache = PageCache(memory.read)
    for offset in (0, 64, 128, 4032):
        assert ask(cache, CODE + offset, 64) == bytes(
            (place * 7 + 1) & 0xFF for place in range(CODE + offset, CODE + offset + 64)
        )
    assert memory.reads == [(ONE, CODE, 64), (ONE, CODE, PAGE)]


def test_outside_the_kernels_image_exactly_what_was_asked_is_read() -> None:
    device = 0xFFFF_C900_0000_1000
    memory = Memory(range(device, device + PAGE))
    cache = PageCache(memory.read)
    for _ in range(3):
        ask(cache, device + 8, 4)
    assert memory.reads == [(ONE, device + 8, 4)] * 3


def test_a_page_that_is_mapped_in_part_is_answered_as_the_target_would() -> None:
    memory = Memory(range(CODE, CODE + 100))
    cache = PageCache(memory.read)
    straight = Memory(range(CODE, CODE + 100))
    for offset, length in ((0, 8), (8, 8), (96, 8), (200, 8), (16, 8)):
        answers: list[bytes | TargetError] = []
        straight.read(ONE, CODE + offset, length, answers.append)
        got = ask(cache, CODE + offset, length)
        assert isinstance(got, TargetError) == isinstance(answers[0], TargetError)
        if not isinstance(got, TargetError):
            assert got == answers[0]


def test_threads_do_not_share_pages() -> None:
    memory = Memory(range(CODE, CODE + PAGE))
    cache = PageCache(memory.read)
    for _ in range(3):
        assert ask(cache, CODE, 1, ONE) != ask(cache, CODE, 1, TWO)


def test_after_clear_nothing_old_is_answered_even_if_it_was_under_way() -> None:
    held: list[Reply[bytes]] = []
    memory = Memory(range(CODE, CODE + PAGE))

    def read(thread: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        if length == PAGE and not held:
            held.append(done)
        else:
            memory.read(thread, address, length, done)

    cache = PageCache(read)
    ask(cache, CODE, 8)
    answers: list[bytes | TargetError] = []
    cache.read(ONE, CODE, 8, answers.append)
    cache.clear()
    held[0](bytes(PAGE))
    assert answers == [bytes(8)]
    memory.salt = 1
    fresh: list[bytes | TargetError] = []
    memory.read(ONE, CODE, 8, fresh.append)
    for _ in range(3):
        assert ask(cache, CODE, 8) == fresh[0]


@given(
    st.lists(st.tuples(st.integers(-PAGE, 3 * PAGE), st.integers(1, 2 * PAGE), st.sampled_from((ONE, TWO))))
)
def test_any_reads_give_what_straight_reads_give(reads: list[tuple[int, int, ThreadId]]) -> None:
    for start in (IMAGE_START, IMAGE_END - 2 * PAGE):
        mapped = range(start - PAGE, start + 5 * PAGE // 2)
        memory, cache = Memory(mapped), PageCache(Memory(mapped).read)
        for offset, length, thread in reads:
            answers: list[bytes | TargetError] = []
            memory.read(thread, start + offset, length, answers.append)
            got = ask(cache, start + offset, length, thread)
            if isinstance(answers[0], TargetError):
                assert isinstance(got, TargetError)
            else:
                assert got == answers[0]
