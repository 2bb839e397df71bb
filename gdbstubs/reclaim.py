"""What a predecessor left in a kernel's own stub, taken over so that it can be removed without harm.

in:      the breakpoints that stood when the former connection was lost, right after the new one's greeting
out:     operations on the stub; then the breakpoints are the client's own, the processor is at its instruction
invariant: nothing is inserted in the guest's text: the guest stands, and kgdb writes breakpoints when it resumes

kgdb's answer to ``?`` removes every breakpoint (kernel/debug/gdbstub.c, ``gdb_cmd_status``), and forgets where they
were.  A second processor that hit one waits for its turn meanwhile; it goes on only where the breakpoint is
remembered as removed (``kgdb_isremovedbreak``), and is a new stop otherwise, at which the kernel stands with nobody
there.  Setting and removing each of them makes kgdb remember.  And a processor that hit one with no relay there is
past it by the length of the trap, which whoever debugs puts back; one that was stepped there is not, and has its
trap flag set still.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from gdbstubs.errors import TargetError
from gdbstubs.registers import Description
from gdbstubs.target import SIGTRAP, Breakpoint, BreakpointKind, Halted, Reply, Stop, ThreadId

FLAGS: Final = "eflags"
TRAP_FLAG: Final = 1 << 8
"""TF of x86: a debug exception after a step leaves it set, ``int3`` does not set it (Intel SDM, volume 3, 17.3.1.4)."""


class Reclaiming(Protocol):
    """A ``StubClient``, as far as it is used here."""

    @property
    def description(self) -> Description | None:
        """What the registers' text holds."""

    def insert(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Insert a breakpoint, and count it as inserted."""

    def read_registers(self, thread: ThreadId, done: Reply[bytes]) -> None:
        """Read all registers."""

    def write_register(self, thread: ThreadId, number: int, value: bytes, done: Reply[None]) -> None:
        """Write one."""


def reclaim(
    client: Reclaiming,
    breakpoints: tuple[Breakpoint, ...],
    stop: Stop | TargetError,
    trap_length: int,
    done: Callable[[TargetError | None], None],
) -> None:
    """Take over what a predecessor left; answers with why the program counter could not be put back, or None.

    ``stop`` is the greeting's; ``trap_length`` is in bytes, 0 where processors stop at a breakpoint, not past it.
    """
    places = [one for one in breakpoints if one.kind is BreakpointKind.SOFTWARE]
    waiting = len(places)

    def inserted(refused: TargetError | None) -> None:
        # What is refused is not there, and the client does not count it.
        nonlocal waiting
        waiting -= 1
        if waiting == 0:
            _put_back(client, {one.address for one in places}, stop, trap_length, done)

    if not places:
        done(None)
    for place in places:
        client.insert(place, inserted)


def _put_back(
    client: Reclaiming,
    addresses: set[int],
    stop: Stop | TargetError,
    trap_length: int,
    done: Callable[[TargetError | None], None],
) -> None:
    description = client.description
    counter = None if description is None else description.program_counter
    if not isinstance(stop, Halted) or stop.thread is None or stop.signal != SIGTRAP or not trap_length:
        done(None)
        return
    if description is None or counter is None:
        done(None)
        return
    thread = stop.thread

    def read(text: bytes | TargetError) -> None:
        if isinstance(text, TargetError):
            done(text)
            return
        values = description.values(text)
        address, flags = values[counter.name], values.get(FLAGS)
        if address is None or address - trap_length not in addresses or (flags or 0) & TRAP_FLAG:
            done(None)
            return
        value = (address - trap_length).to_bytes(counter.size, description.byte_order)
        client.write_register(thread, counter.number, value, done)

    client.read_registers(thread, read)
