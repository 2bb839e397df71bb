"""The target port: what a debugger works on, whatever is behind it.

``Target`` is implemented by a stub seen through the client half (``client.py``), by one session's share of it
(``sharing.py``), and later by a core file.  Values are frozen.  Every operation that yields something takes a
``Reply``: a function that is called exactly once with the result, or with a ``TargetError``; it may be called
before the operation returns.  Registers that are read are hexadecimal text in the target's byte order and in the
order of its description, as in a ``g`` packet, with ``xx`` for each byte that is not available.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NewType, Protocol, TypeVar

from gdbstubs.errors import TargetError
from gdbstubs.rights import Right

if TYPE_CHECKING:
    from gdbstubs.passage import Passage
    from gdbstubs.registers import Description

ThreadId = NewType("ThreadId", int)
"""A thread as the stub numbers it; on x86 QEMU's threads are processors, and 1 is the first."""

ALL_THREADS: Final = ThreadId(-1)
ANY_THREAD: Final = ThreadId(0)

SIGINT: Final = 2
SIGTRAP: Final = 5
FAULTS: Final = frozenset((4, 7, 8, 11))
"""SIGILL, SIGBUS, SIGFPE and SIGSEGV: what a stub calls a fault of the target's own."""
SIGKILL: Final = 9
"""GDB's own signal numbers (include/gdb/signals.def), which are not always the host's."""

T = TypeVar("T")
Reply = Callable[[T | TargetError], None]


class BreakpointKind(Enum):
    """The type in ``Z`` and ``z`` packets."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    READ = 3
    ACCESS = 4


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A breakpoint or watchpoint: ``size`` is the length watched, or the kind of breakpoint instruction."""

    kind: BreakpointKind
    address: int
    size: int


class Motion(Enum):
    """What a thread is asked to do when the target resumes."""

    CONTINUE = "c"
    STEP = "s"
    REVERSE_CONTINUE = "bc"
    """Backwards, to the last breakpoint or the beginning of what was recorded; names no thread, and stands alone."""
    REVERSE_STEP = "bs"


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a resume; ``thread`` may be ``ALL_THREADS``.  The first that names a thread holds for it.

    ``within`` makes a step one of a range: until the program counter leaves ``[start, end)``.
    """

    motion: Motion
    thread: ThreadId = ALL_THREADS
    within: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Halted:
    """The target stands still.

    ``reason`` is the stub's own word with its value, such as ``("watch", "ffffffff81000000")`` or
    ``("swbreak", "")``; ``words`` are for the user and reach the debugger before the stop reply.
    """

    signal: int
    thread: ThreadId | None = None
    reason: tuple[str, str] | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """The target is gone: it exited with ``status``, or ``signal`` ended it (then ``status`` is None)."""

    status: int | None = None
    signal: int = SIGKILL
    words: str = ""


Stop = Halted | Ended


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread and what the stub says of it (``qThreadExtraInfo``), such as ``CPU#0 [running]``."""

    id: ThreadId
    extra: str = ""


class Target(Protocol):
    """Something that can be debugged.

    A thread given to a read selects the address space as well: QEMU translates addresses with the page tables
    of that processor.
    """

    @property
    def right(self) -> Right:
        """What may be done through this port now."""

    @property
    def reverses(self) -> bool:
        """Whether the target can run backwards; known once it is attached."""

    @property
    def description(self) -> Description | None:
        """What the text of all registers holds; None where that is not known."""

    def attach(self, done: Reply[None]) -> None:
        """Take hold of the target, which stops it; every other operation does so too where it must."""

    def why_stopped(self, done: Reply[Stop]) -> None:
        """Tell why the target stands still, from memory: real stubs drop all breakpoints when asked."""

    def read_registers(self, thread: ThreadId, done: Reply[bytes]) -> None:
        """Read all general registers: hexadecimal text, ``xx`` for what is not available."""

    def write_registers(self, thread: ThreadId, data: bytes, done: Reply[None]) -> None:
        """Write all general registers."""

    def read_register(self, thread: ThreadId, number: int, done: Reply[bytes]) -> None:
        """Read one register by its number in the target description: text likewise."""

    def write_register(self, thread: ThreadId, number: int, value: bytes, done: Reply[None]) -> None:
        """Write one register."""

    def read_memory(self, thread: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        """Read at most ``length`` bytes; fewer where the rest is not mapped, an error where nothing is."""

    def pass_read(self, thread: ThreadId, address: int, length: int, packet: bytes, passage: Passage) -> bool:
        """Pass a read on as the packet that it came in, if nothing between must see it; False: nothing was done."""

    def write_memory(self, thread: ThreadId, address: int, data: bytes, done: Reply[None]) -> None:
        """Write memory; after an error a part may have been written."""

    def insert(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Insert a breakpoint or watchpoint; inserting one that stands already is no error."""

    def remove(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Remove a breakpoint or watchpoint; removing one that does not stand is no error."""

    def forget_breakpoints(self) -> None:
        """Take note that the debugger has forgotten what it inserted, as gdb does at ``exec``."""

    def resume(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        """Let the target run; answers when it stands still again, which may take for ever."""

    def interrupt(self) -> None:
        """Ask a running target to stop; the resume under way is then answered."""

    def list_threads(self, done: Reply[tuple[Thread, ...]]) -> None:
        """List all threads with what is said of them."""

    def is_alive(self, thread: ThreadId, done: Reply[bool]) -> None:
        """Tell whether a thread exists."""

    def read_description(self, annex: str, done: Reply[bytes | None]) -> None:
        """Read a whole file of the target description (``target.xml``); None where there is none."""

    def detach(self, done: Reply[None]) -> None:
        """Let go: remove what was inserted and leave the target as it is configured to be left."""
