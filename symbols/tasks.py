"""The tasks of a kernel out of its memory, and where each of those that do not run was switched away from.

Source: Linux, include/linux/sched.h (``init_task.tasks`` links the leaders of thread groups, ``signal->thread_head``
the threads of each), arch/x86/include/asm/switch_to.h: ``thread.sp`` of a task that sleeps leads to a ``struct
inactive_task_frame``, the registers that ``__switch_to_asm`` saved, the return address last; behind it the stack goes
on. The layout is the kernel's own word (BTF); everything is bounded, whatever the memory holds.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from symbols.btf import BtfError
from symbols.errors import SymbolError
from symbols.reads import Read, Search

if TYPE_CHECKING:
    from symbols.btf import Btf

INIT_SYMBOL: Final = "init_task"
MOST_TASKS: Final = 1 << 15
"""PID_MAX_DEFAULT: as many as a kernel has, unless it was told to have more."""
_MOST_BYTES: Final = 1 << 16
"""Of a structure."""
_LONGEST_NAME: Final = 64
_POINTER: Final = struct.Struct("<Q")
_WORD: Final = struct.Struct("<I")
_KERNEL_HALF: Final = 1 << 63
_FRAME_REGISTERS: Final = {
    "rip": "ret_addr", "rbp": "bp", "rbx": "bx", "r12": "r12", "r13": "r13", "r14": "r14", "r15": "r15",
}  # fmt: skip


class TasksError(SymbolError):
    """The list of tasks does not make sense."""


@dataclass(frozen=True, slots=True)
class TaskLayout:
    """Where the members are that are looked at, in bytes from the beginning of their structure."""

    tasks: int
    """Of ``struct task_struct``: the link to the next leader."""
    node: int
    """The link to the next thread of its group."""
    signal: int
    head: int
    """Of ``struct signal_struct``: the head of the list of its threads."""
    pid: int
    tgid: int
    comm: int
    comm_size: int
    state: int
    cpu: int
    on_cpu: int
    sp: int
    """Of the saved stack pointer."""
    mm: int
    pgd: int
    """Of ``struct mm_struct``: the page tables."""
    frame_size: int
    frame: Mapping[str, int]
    """Registers in ``struct inactive_task_frame``."""


def layout(btf: Btf) -> TaskLayout:
    """Return the layout of a kernel's tasks.  Raises ``BtfError`` where it is not as any known kernel's."""
    task, signal, mm = btf.struct("task_struct"), btf.struct("signal_struct"), btf.struct("mm_struct")
    frame = btf.struct("inactive_task_frame")
    comm = btf.member(task, "comm")
    found = TaskLayout(
        tasks=btf.offset(task, "tasks"),
        node=btf.offset(task, "thread_node"),
        signal=btf.offset(task, "signal"),
        head=btf.offset(signal, "thread_head"),
        pid=btf.offset(task, "pid"),
        tgid=btf.offset(task, "tgid"),
        comm=comm.bits // 8,
        comm_size=min(btf.size(comm.type), _LONGEST_NAME),
        state=btf.offset(task, "__state" if btf.has(task, "__state") else "state"),
        cpu=btf.offset(task, "thread_info.cpu" if btf.has(task, "thread_info.cpu") else "cpu"),
        on_cpu=btf.offset(task, "on_cpu"),
        sp=btf.offset(task, "thread.sp"),
        mm=btf.offset(task, "mm"),
        pgd=btf.offset(mm, "pgd"),
        frame_size=btf.size(frame),
        frame={register: btf.offset(frame, member) for register, member in _FRAME_REGISTERS.items()},
    )
    if max(found.tasks, found.node, found.sp, found.comm, found.head, found.pgd) > _MOST_BYTES:
        raise BtfError("a task's members are not where any kernel has them")
    if not max(found.frame.values()) + 8 <= found.frame_size <= _MOST_BYTES:
        raise BtfError("a task's saved registers are not as any kernel's")
    return found


@dataclass(frozen=True, slots=True)
class Task:
    """A task."""

    address: int
    """Of its ``struct task_struct``."""
    pid: int
    tgid: int
    name: str
    state: int
    """Bits as in include/linux/sched.h; 0 runs or could."""
    cpu: int
    """The processor on which it runs, or ran last."""
    on_cpu: bool
    """Whether a processor executes it."""
    tables: int | None
    """The kernel's address of its page tables; None for a thread of the kernel's own."""
    registers: Mapping[str, int]
    """Where it was switched away from; empty for a task that a processor executes, or whose stack cannot be read."""

    @property
    def says(self) -> str:
        """Its state in a word, as ``ps`` names it."""
        if self.on_cpu:
            return "running"
        return next(
            (word for bit, word in _STATES if self.state & bit), "runnable" if not self.state else "?"
        )


_STATES: Final = (
    (0x400, "idle"),
    (1, "sleeping"),
    (2, "blocked"),
    (4, "stopped"),
    (8, "traced"),
    (0x10 | 0x20 | 0x80, "dead"),
    (0x40, "parked"),
)
"""TASK_NOLOAD (with TASK_UNINTERRUPTIBLE: idle), TASK_INTERRUPTIBLE, TASK_UNINTERRUPTIBLE, …"""


def read(where: TaskLayout, init: int) -> Search[tuple[Task, ...]]:
    """Read all tasks, the first processor's idle task first; ``init`` is the address of ``init_task``.

    A list that is damaged ends where it is; raises ``TasksError`` where not even the first task can be read.
    """
    leaders = yield from _list(init + where.tasks, where.tasks, MOST_TASKS)
    addresses = [init, *leaders]
    seen = set(addresses)
    signals = yield tuple(Read(one + where.signal, _POINTER.size) for one in leaders)
    for signal in signals:
        if len(seen) >= MOST_TASKS or len(signal) < _POINTER.size:
            continue
        head = _POINTER.unpack(signal)[0] + where.head
        for one in (yield from _list(head, where.node, MOST_TASKS - len(seen))):
            if one not in seen:
                seen.add(one)
                addresses.append(one)
    found: list[Task] = []
    for address in addresses:
        task = yield from _task(where, address)
        if task is not None:
            found.append(task)
    if not found or found[0].address != init:
        raise TasksError(f"there is no task at {init:#x}")
    return tuple(found)


def _list(head: int, link: int, most: int) -> Search[list[int]]:
    """Return what a circular list links, without its head, of which ``link`` is the place in each."""
    found: list[int] = []
    seen = {head}
    at = head
    while len(found) < most:
        (data,) = yield (Read(at, _POINTER.size),)
        if len(data) < _POINTER.size:
            break
        (at,) = _POINTER.unpack(data)
        if at in seen or at < _KERNEL_HALF:
            break
        seen.add(at)
        found.append(at - link)
    return found


def _task(where: TaskLayout, address: int) -> Search[Task | None]:
    places = (
        *((where.pid, 4), (where.tgid, 4), (where.state, 4), (where.cpu, 4), (where.on_cpu, 4)),
        *((where.sp, 8), (where.mm, 8), (where.comm, where.comm_size)),
    )
    data = yield tuple(Read(address + offset, size) for offset, size in places)
    if any(len(one) < size for one, (_, size) in zip(data, places, strict=True)):
        return None
    pid, tgid, state, cpu, on_cpu = (int(_WORD.unpack(one)[0]) for one in data[:5])
    sp, mm = (int(_POINTER.unpack(one)[0]) for one in data[5:7])
    tables: int | None = None
    if mm:
        (pgd,) = yield (Read(mm + where.pgd, _POINTER.size),)
        tables = int(_POINTER.unpack(pgd)[0]) if len(pgd) == _POINTER.size else None
    registers: dict[str, int] = {}
    if not on_cpu:
        (saved,) = yield (Read(sp, where.frame_size),)
        if len(saved) == where.frame_size:
            registers = {
                name: int(_POINTER.unpack_from(saved, offset)[0]) for name, offset in where.frame.items()
            }
            registers["rsp"] = sp + where.frame_size
    name = data[7].partition(b"\0")[0].decode("utf-8", "replace")
    return Task(address, pid, tgid, name, state, cpu, bool(on_cpu), tables, registers)
