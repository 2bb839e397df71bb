"""Kernel memory that the processor which stopped does not see, and another does."""

from __future__ import annotations

import pytest

from gdbstubs.any_processor import KERNEL_HALF, KERNEL_IMAGE, MOST_TRIED, AnyProcessor
from gdbstubs.errors import EBUSY, EFAULT, TargetError
from gdbstubs.target import Reply, Thread, ThreadId

HERE, TABLE = KERNEL_IMAGE + 0x1000000, 0xFFFF_FE00_0000_0000


class Machine:
    """Processors, those in `kernel` with all of the kernel mapped; in user mode there is the table only."""

    def __init__(self, count: int, kernel: set[int]) -> None:
        self.kernel = kernel
        self.threads = tuple(Thread(ThreadId(number)) for number in range(1, count + 1))
        self.asked: list[int] = []
        self.busy = False
        self.memory = AnyProcessor(self.read, lambda done: done(self.threads))

    def read(self, thread: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        self.asked.append(thread)
        if self.busy:
            done(TargetError(EBUSY, "the guest runs"))
        elif thread in self.kernel or address < KERNEL_IMAGE:
            done(bytes([thread]) * length)
        else:
            done(TargetError(EFAULT))

    def at(self, address: int, stop: int = 1, stopped: int = 1) -> object:
        answers: list[object] = []
        self.memory.read(stop, ThreadId(stopped), address, 1, answers.append)
        (answer,) = answers
        return answer


def test_the_processor_that_stopped_is_asked_first() -> None:
    machine = Machine(4, {1, 2})
    assert machine.at(HERE) == b"\1"
    assert machine.asked == [1]


def test_what_it_does_not_see_another_does_and_is_asked_first_from_then_on() -> None:
    machine = Machine(4, {3})
    assert machine.at(TABLE) == b"\1"
    assert machine.at(HERE) == b"\3"
    assert machine.asked == [1, 1, 2, 3]
    assert machine.at(HERE + 1) == b"\3"
    assert machine.at(TABLE) == b"\3"
    assert machine.at(4096) == b"\1"
    assert machine.asked[4:] == [3, 3, 1]
    # The next stop may be everybody's elsewhere.
    machine.kernel = {1}
    assert machine.at(HERE, stop=2) == b"\1"


def test_what_one_with_the_kernel_does_not_see_nobody_is_asked_for() -> None:
    machine = Machine(4, {2})
    machine.at(HERE)
    machine.asked.clear()
    machine.kernel = set()
    assert isinstance(machine.at(HERE), TargetError)
    assert machine.asked == [2]


@pytest.mark.parametrize("count", [1, 4, 64])
def test_where_nobody_sees_it_the_error_is_told_after_so_many(count: int) -> None:
    machine = Machine(count, set())
    assert isinstance(machine.at(HERE), TargetError)
    assert len(machine.asked) == 1 + min(count - 1, MOST_TRIED)


def test_a_guest_that_went_on_is_asked_once() -> None:
    machine = Machine(4, {2})
    machine.busy = True
    assert isinstance(machine.at(HERE), TargetError)
    assert machine.asked == [1]
    assert machine.at(KERNEL_HALF - 1) is not None
