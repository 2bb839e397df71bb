"""Tasks out of memory: leaders and threads, names and states, saved registers; lists that are damaged."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symbols_lab import Image, Types

from symbols import tasks
from symbols.btf import Btf, BtfError
from symbols.tasks import Task, TaskLayout, TasksError

BASE = 0xFFFF_8880_0000_0000
FRAME = ("r15", "r14", "r13", "r12", "bx", "bp", "ret_addr")
SIZE = 0x100


def type_bytes(**left_out: str) -> bytes:
    made = Types()
    word, long, byte = made.integer("int", 4), made.integer("long", 8), made.integer("char", 1)
    pointer = made.pointer()
    node = made.struct("list_head", 16, [("next", pointer, 0), ("prev", pointer, 8)])
    thread = made.struct("thread_struct", 16, [("flags", long, 0), ("sp", long, 8)])
    info = made.struct("thread_info", 16, [("flags", long, 0), ("cpu", word, 8)])
    members = [
        ("thread_info", info, 0), ("__state", word, 0x18), ("on_cpu", word, 0x1C), ("tasks", node, 0x20),
        ("pid", word, 0x30), ("tgid", word, 0x34), ("mm", pointer, 0x38), ("signal", pointer, 0x40),
        ("thread_node", node, 0x48), ("comm", made.array(byte, 16), 0x58), ("thread", thread, 0x70),
    ]  # fmt: skip
    made.struct("task_struct", SIZE, [one for one in members if one[0] != left_out.get("member")])
    made.struct("signal_struct", 0x20, [("thread_head", node, 8)])
    made.struct("mm_struct", 0x20, [("pgd", pointer, 0x10)])
    made.struct("inactive_task_frame", 56, [(name, long, 8 * n) for n, name in enumerate(FRAME)])
    return made.data()


def types(**left_out: str) -> Btf:
    return Btf(type_bytes(**left_out))


LAYOUT = tasks.layout(types())


class Kernel:
    """Tasks in memory, each group a leader and its threads."""

    def __init__(self, *groups: Iterable[int]) -> None:
        self.memory = bytearray(0x2_0000)
        leaders, self._next = [], 0
        for group in groups:
            pids = list(group)
            threads = [self.task(pid, pids[0]) for pid in pids]
            signal = self.room()
            self.link([signal + 8, *(one + LAYOUT.node for one in threads)])
            for one in threads:
                self.put(one + LAYOUT.signal, signal)
            leaders.append(threads[0])
        self.init = leaders[0]
        self.link([one + LAYOUT.tasks for one in leaders])

    def room(self) -> int:
        at, self._next = self._next, self._next + SIZE
        return BASE + at

    def put(self, address: int, value: int, form: str = "<Q") -> None:
        struct.pack_into(form, self.memory, address - BASE, value)

    def link(self, nodes: list[int]) -> None:
        for one, following in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
            self.put(one, following)

    def task(self, pid: int, tgid: int) -> int:
        at, stack = self.room(), self.room()
        for place, value in ((LAYOUT.pid, pid), (LAYOUT.tgid, tgid), (LAYOUT.cpu, pid % 2)):
            self.put(at + place, value, "<I")
        name = f"task{pid}".encode()
        start = at - BASE + LAYOUT.comm
        self.memory[start : start + len(name)] = name
        self.put(at + LAYOUT.sp, stack)
        for number in range(len(FRAME)):
            self.put(stack + 8 * number, pid * 100 + number)
        return at

    def read(self, where: TaskLayout = LAYOUT) -> tuple[Task, ...]:
        return Image({BASE: bytes(self.memory)}).run(tasks.read(where, self.init))


def test_leaders_and_their_threads_each_once() -> None:
    kernel = Kernel([0], [1], [7, 8, 9], [2])
    found = kernel.read()
    assert [one.pid for one in found] == [0, 1, 7, 2, 8, 9]
    assert [one.tgid for one in found] == [0, 1, 7, 2, 7, 7]
    assert found[1].name == "task1"
    assert found[1].cpu == 1


def test_a_task_that_sleeps_stands_where_it_was_switched_away_from() -> None:
    kernel = Kernel([0], [5])
    task = kernel.read()[1]
    assert task.registers == {
        "r15": 500, "r14": 501, "r13": 502, "r12": 503, "rbx": 504, "rbp": 505, "rip": 506,
        "rsp": task.address + SIZE + 56,
    }  # fmt: skip
    kernel.put(task.address + LAYOUT.on_cpu, 1, "<I")
    running = kernel.read()[1]
    assert (running.on_cpu, running.registers, running.says) == (True, {}, "running")


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (0, "runnable"),
        (1, "sleeping"),
        (2, "blocked"),
        (0x402, "idle"),
        (4, "stopped"),
        (8, "traced"),
        (0x80, "dead"),
    ],
)
def test_its_state_in_a_word(state: int, word: str) -> None:
    kernel = Kernel([0], [5])
    kernel.put(kernel.read()[1].address + LAYOUT.state, state, "<I")
    assert kernel.read()[1].says == word


def test_a_process_has_page_tables_and_a_thread_of_the_kernel_has_none() -> None:
    kernel = Kernel([0], [5])
    task, mm = kernel.read()[1], kernel.room()
    assert task.tables is None
    kernel.put(task.address + LAYOUT.mm, mm)
    kernel.put(mm + LAYOUT.pgd, BASE + 0x9000)
    assert kernel.read()[1].tables == BASE + 0x9000


def test_a_list_that_is_damaged_ends_where_it_is() -> None:
    kernel = Kernel([0], [1], [2], [3])
    second = kernel.read()[2]
    for nonsense in (0, 0x1234, BASE - 0x1000, second.address + LAYOUT.tasks):
        kernel.put(second.address + LAYOUT.tasks, nonsense)
        assert [one.pid for one in kernel.read()][:3] == [0, 1, 2]
    kernel.init = BASE + 0x100_0000
    with pytest.raises(TasksError, match="no task at"):
        kernel.read()


@given(seed=st.integers(0), places=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_memory_of_nonsense_is_an_error_or_a_bounded_list(seed: int, places: int) -> None:
    chance = random.Random(seed)
    kernel = Kernel([0], [1, 4], [2], [3, 5, 6])
    for _ in range(places):
        at = chance.randrange(0, kernel._next, 8)
        value = chance.choice([BASE + chance.randrange(0, kernel._next), chance.getrandbits(64)])
        struct.pack_into("<Q", kernel.memory, at, value)
    try:
        found = kernel.read()
    except TasksError:
        return
    assert len({one.address for one in found}) == len(found) < 1000


@pytest.mark.parametrize("member", ["tasks", "thread_node", "signal", "comm", "on_cpu", "mm"])
def test_a_kernel_without_a_member_is_none_that_is_known(member: str) -> None:
    with pytest.raises(BtfError):
        tasks.layout(types(member=member))
