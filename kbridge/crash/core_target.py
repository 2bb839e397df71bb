"""A core file as a target: what a debugger may do to a machine that is only remembered.

in          a debugger's requests through the port (``gdbstubs.target.Target``)
out         registers, memory as a processor or a task sees it, threads: the processors as a live guest has them, then
            the tasks that sleep; refusals in words
invariant   nothing is ever changed; who resumes is told that nothing runs, and stands where it stood

Breakpoints are taken without a word: gdb says why one cannot be inserted in words of its own, and it would never come
to the resume that tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gdbstubs.errors import EFAULT, EINVAL, EIO, EPERM, ESRCH, TargetError
from gdbstubs.rights import Right
from gdbstubs.target import SIGTRAP, Action, Breakpoint, Halted, Reply, Stop, Thread, ThreadId
from gdbstubs.x86 import X86_64
from kbridge.errors import ImageError
from kbridge.memory.paging import Tables

if TYPE_CHECKING:
    from gdbstubs.passage import Passage
    from gdbstubs.registers import Description
    from kbridge.crash.core_file import CoreFile
    from symbols.tasks import Task

FIRST_TASK: Final = 1_000_000
"""The thread of a task has this more than its pid: processors have the numbers from 1 on, as on a live guest."""
MAIN_DOCUMENT: Final = "target.xml"
_LONG_MODE: Final = 62
"""What a core file of a machine in long mode is of."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A thread: what it is called, its registers, what memory it sees."""

    says: str
    registers: Mapping[str, int]
    tables: Tables | None


def processor_stacks(core: CoreFile, tasks: Sequence[Task]) -> dict[ThreadId, Stack]:
    """Return the processors as threads, each with the task that it executes."""
    runs = {one.cpu: one for one in tasks if one.on_cpu and one.pid}
    found: dict[ThreadId, Stack] = {}
    for number, processor in enumerate(core.processors):
        task = runs.get(number)
        of = "" if task is None else f" [{task.pid} {task.name}]"
        registers = dict(processor.registers)
        if core.head.machine != _LONG_MODE:
            # The hypervisor names the machine by EFER.LMA.
            registers["efer"] = 0
        found[ThreadId(number + 1)] = Stack(f"CPU#{number}{of}", registers, core.tables(number))
    return found


def task_stacks(core: CoreFile, tasks: Sequence[Task], kernel: Tables) -> dict[ThreadId, Stack]:
    """Return the tasks as threads that no processor executes; ``kernel`` maps the kernel."""
    found: dict[ThreadId, Stack] = {}
    for one in tasks:
        if one.registers and one.pid:
            says = f"{one.pid} {one.name} [{one.says}]"
            found[ThreadId(FIRST_TASK + one.pid)] = Stack(says, one.registers, _tables_of(core, one, kernel))
    return found


def _tables_of(core: CoreFile, task: Task, kernel: Tables) -> Tables:
    if task.tables is None:
        return kernel
    page = core.page(kernel, task.tables)
    if page is None:
        return kernel
    return Tables(page.physical + task.tables - page.virtual, kernel.levels)


class Threads:
    """The threads of a core file: its processors at once, its tasks when they are known.

    ``wanted`` is called when somebody waits for the tasks.
    """

    def __init__(self, core: CoreFile, stopped: ThreadId, wanted: Callable[[], None]) -> None:
        self._wanted = wanted
        self.stopped = stopped
        """The one that is shown first."""
        self.stacks = processor_stacks(core, ())
        self.are_complete = False
        self._waiting: list[Callable[[], None]] = []

    def complete(self, core: CoreFile, tasks: Sequence[Task], kernel: Tables | None) -> None:
        """Take the tasks, all of them, once.  Raises ``ImageError``: then there are none."""
        try:
            asleep = {} if kernel is None else task_stacks(core, tasks, kernel)
            self.stacks = {**processor_stacks(core, tasks), **asleep}
        finally:
            self.are_complete = True
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                one()

    def when_complete(self, done: Callable[[], None]) -> None:
        """Call ``done`` once the tasks are known."""
        if self.are_complete:
            done()
        else:
            self._waiting.append(done)
            self._wanted()

    def listed(self) -> tuple[Thread, ...]:
        """Return those that are known."""
        return tuple(Thread(one, stack.says) for one, stack in self.stacks.items())


class CoreTarget:
    """A core file through the target port; the module's text says how.

    ``name`` is what words call it.  The first list of threads is what is known by then: a debugger asks for it before
    it reads symbols, which takes longer than listing tasks.  Those after it wait for the tasks.
    """

    right: Right = Right.CONTROLLER
    """So that what is refused is refused here, in the right words."""
    reverses: bool = False

    def __init__(self, core: CoreFile, name: str, threads: Threads) -> None:
        self._core = core
        self._name = name
        self._threads = threads
        self._has_listed = False

    @property
    def description(self) -> Description:
        """What the text of all registers holds: as on a live guest."""
        return X86_64

    def attach(self, done: Reply[None]) -> None:
        """Do nothing."""
        done(None)

    def why_stopped(self, done: Reply[Stop]) -> None:
        """Tell which thread is shown first."""
        done(Halted(SIGTRAP, self._threads.stopped))

    # -- registers ------------------------------------------------------------------------------------------

    def read_registers(self, thread: ThreadId, done: Reply[bytes]) -> None:
        """Read all general registers."""
        stack = self._threads.stacks.get(thread)
        if stack is None:
            done(_no_thread(thread))
        else:
            done(b"".join(_text(stack, one.name, one.size) for one in X86_64.registers))

    def read_register(self, thread: ThreadId, number: int, done: Reply[bytes]) -> None:
        """Read one register."""
        stack, register = self._threads.stacks.get(thread), X86_64.numbers.get(number)
        if stack is None:
            done(_no_thread(thread))
        elif register is None:
            done(TargetError(EINVAL, f"there is no register {number}"))
        else:
            done(_text(stack, register.name, register.size))

    def write_registers(self, thread: ThreadId, data: bytes, done: Reply[None]) -> None:
        """Refuse."""
        done(self._is_fixed("registers"))

    def write_register(self, thread: ThreadId, number: int, value: bytes, done: Reply[None]) -> None:
        """Refuse."""
        done(self._is_fixed("registers"))

    # -- memory ---------------------------------------------------------------------------------------------

    def read_memory(self, thread: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        """Read memory as a thread sees it."""
        stack = self._threads.stacks.get(thread)
        if stack is None:
            done(_no_thread(thread))
            return
        try:
            data = self._core.read_virtual(stack.tables, address, length)
        except ImageError as error:
            done(TargetError(EIO, str(error)))
            return
        done(data or TargetError(EFAULT, f"nothing is mapped at {address:#x}, or it is not in the image"))

    def pass_read(self, thread: ThreadId, address: int, length: int, packet: bytes, passage: Passage) -> bool:
        """There is no stub to pass it to."""
        return False

    def write_memory(self, thread: ThreadId, address: int, data: bytes, done: Reply[None]) -> None:
        """Refuse."""
        done(self._is_fixed("memory"))

    # -- what runs ------------------------------------------------------------------------------------------

    def insert(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Take note of nothing: the module's text says why."""
        done(None)

    def remove(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Do nothing."""
        done(None)

    def forget_breakpoints(self) -> None:
        """Do nothing."""

    def resume(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        """Refuse."""
        done(TargetError(EPERM, f"{self._name} is a memory image: nothing in it runs, forwards or backwards"))

    def interrupt(self) -> None:
        """Nothing runs."""

    def list_threads(self, done: Reply[tuple[Thread, ...]]) -> None:
        """List processors and tasks."""
        if self._has_listed:
            self._threads.when_complete(lambda: done(self._threads.listed()))
        else:
            self._has_listed = True
            done(self._threads.listed())

    def is_alive(self, thread: ThreadId, done: Reply[bool]) -> None:
        """Tell whether a thread exists."""
        done(thread in self._threads.stacks)

    def read_description(self, annex: str, done: Reply[bytes | None]) -> None:
        """Read the target description."""
        done(X86_64.document if annex == MAIN_DOCUMENT else None)

    def detach(self, done: Reply[None]) -> None:
        """Let go."""
        done(None)

    def _is_fixed(self, what: str) -> TargetError:
        return TargetError(EPERM, f"{self._name} is a memory image: its {what} cannot be changed")


def _text(stack: Stack, name: str, size: int) -> bytes:
    value = stack.registers.get(name)
    if value is None:
        return b"xx" * size
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little").hex().encode("ascii")


def _no_thread(thread: ThreadId) -> TargetError:
    return TargetError(ESRCH, f"there is no thread {thread}")
