"""A guest of which there is nothing but its kernel's own debugger: looked into by a session on kgdb's stub.

    kernel stands in kgdb ──▶ relay ── a session like any debugger's ──▶ stub, on a serial line

in          a guest without a machine monitor, whose dialect is kgdb's
out         ``Evidence``; how many bytes of memory were read for it
states      the kernel stands already: it is let stand when we leave; it runs: broken into only if that is wished, and
            let run again
invariant   no more than ``MOST_BYTES`` of memory are read: a line of 115,200 baud brings 5 KB of it in a second.
            Nothing is written but what stops and resumes

kgdb names the processors as threads, "shadows" of their tasks: -2 is the first (kernel/debug/gdbstub.c).  Only those
that it lists are asked for: it does not check the number of a processor that it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gdbstubs.target import ANY_THREAD, Halted
from kbridge.crash.evidence import NAME, Registers
from kbridge.debuginfo.claims import Claims
from kbridge.errors import GuestError
from kbridge.memory.sources import drive
from kbridge.rsp_client import over

if TYPE_CHECKING:
    from kbridge.guest import Guest
    from kbridge.relay import Relay
    from kbridge.rsp_client import RspClient
    from symbols.reads import Read, Search

ATTACH_SECONDS: Final = 20.0
"""A line may be slow, and what was lost on it is sent again."""
MOST_BYTES: Final = 1 << 20
_THREADS: Final = 1 << 32
"""kgdb writes its threads' numbers as 32 bits with a sign."""
_FIRST: Final = -2
_MOST_PROCESSORS: Final = 1 << 13
"""CONFIG_NR_CPUS's largest."""
_Result = TypeVar("_Result")


class KgdbEvidence:
    """By a session on kgdb's stub; the module's text says how."""

    def __init__(self, client: RspClient, guest: Guest) -> None:
        self._client = client
        self.bytes_read = 0
        """Of memory."""
        self._counter: int | None = None
        self.claims = Claims(guest.recorder.ring, self._where)

    async def _where(self) -> int | None:
        return self._counter

    async def processors(self) -> Sequence[tuple[int, Registers]]:
        """Return the number and the registers of each processor."""
        numbers = {
            number: one.id
            for one in await self._client.threads()
            if (number := processor(one.id)) is not None
        }
        found = []
        for number in sorted(numbers):
            values = await self._client.registers(numbers[number])
            found.append((number, {name: value for name, value in values.items() if value is not None}))
        stopped = self._client.stop
        current = processor(stopped.thread) if isinstance(stopped, Halted) and stopped.thread else None
        self._counter = dict(found).get(current or 0, {}).get("rip")
        return found

    async def run(self, search: Search[_Result]) -> _Result:
        """Drive a search."""
        return await drive(search, self._batch)

    async def _batch(self, reads: tuple[Read, ...]) -> tuple[bytes, ...]:
        wanted = sum(one.length for one in reads)
        if self.bytes_read + wanted > MOST_BYTES:
            raise GuestError(
                f"{wanted:,} bytes more were not read",
                why=f"{self.bytes_read:,} came by the kernel's own stub already, of {MOST_BYTES:,} at most",
            )
        found = tuple(await self._client.read_all([(one.address, one.length) for one in reads], ANY_THREAD))
        self.bytes_read += sum(map(len, found))
        return found

    async def close(self) -> None:
        """Leave."""
        await self._client.close()


def processor(thread: int) -> int | None:
    """Return the number of the processor of which a thread is the shadow; None for other threads.

    >>> processor(-3), processor(0xfffffffe), processor(42)
    (1, 0, None)
    """
    signed = thread - _THREADS if thread >= _THREADS >> 1 else thread
    number = _FIRST - signed
    return number if 0 <= number < _MOST_PROCESSORS else None


async def open_kgdb(
    guest: Guest, relay: Relay, reactor: Any, *, breaks_in: bool, stays: bool
) -> KgdbEvidence:
    """Look at a guest by its kernel's own stub; ``stays``: a kernel that stood is to stand when we have left.

    With ``breaks_in`` one that runs is stopped for it.  Raises ``GuestError`` where it cannot be reached.
    """
    name = f"kgdb of {guest.name}"
    _, connection = relay.open_session(NAME, observes=relay.attached, breaks_in=False)
    try:
        client = await over(reactor, name, connection, seconds=ATTACH_SECONDS)
    except GuestError:
        if not breaks_in:
            raise
        stays = False
        _, connection = relay.open_session(NAME, observes=relay.attached)
        client = await over(reactor, name, connection, seconds=ATTACH_SECONDS)
    if not isinstance(client.stop, Halted) or not client.stop.signal:
        await client.close()
        raise GuestError(
            f"{guest.name} cannot be looked at", why="its kernel runs, and its own stub is all there is"
        )
    if stays and all(one.name.startswith(NAME) for one in relay.sessions):
        relay.leave_standing()
    return KgdbEvidence(client, guest)
