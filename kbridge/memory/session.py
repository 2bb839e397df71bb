"""Guest memory as one debugger's session reads it: at the present stop, and while the guest runs.

in          reads and searches of virtual memory
out         what is mapped; ``GuestError`` where memory cannot be read now
invariant   nothing is written and nothing resumed: who comes too late for a stop comes again, as an observer.  After
            that nothing is read before the kernel that was found was seen once more

While the guest runs the relay reads through the machine monitor, which whoever reads here need not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

from gdbstubs.errors import EAGAIN, EBUSY, TargetError
from kbridge.blocking_client import BlockingClient
from kbridge.errors import GuestError
from symbols.elf import build_id_of_notes

if TYPE_CHECKING:
    from symbols.kaslr import Linked
    from symbols.reads import Search

PAGE_BYTES: Final = 4096
"""What the relay reads at once of a guest that runs."""
MOST_UNDER_WAY: Final = 16
"""Pages: a relay reads 64 at a time of a guest that runs, for all sessions."""
MOST_BYTES: Final = 64 << 20
MOST_TRIES: Final = 5
_NOT_NOW: Final = (EAGAIN, EBUSY)

_Result = TypeVar("_Result")


class SessionMemory:
    """Virtual memory; the module's text says how.  ``observe`` makes one more session, which controls nothing."""

    def __init__(self, guest: str, client: BlockingClient, observe: Callable[[], BlockingClient]) -> None:
        self._guest = guest
        self._client = client
        self._observe = observe
        self._is_doubtful = False
        self.kernel: Linked | None = None
        """Where the build-id is of the kernel that memory is read of, once that is known."""

    def read(self, address: int, length: int) -> bytes:
        """Return what is mapped of ``length`` bytes, from the first on.  Raises ``GuestError``."""
        if length > MOST_BYTES:
            raise GuestError(
                f"{length} bytes at {address:#x} are not read at once", todo=f"{MOST_BYTES} at most"
            )
        (data,) = self._read([(address, length)])
        return data

    def search(self, search: Search[_Result]) -> _Result:
        """Drive a search; raises what it raises, and ``GuestError``."""
        try:
            batch = next(search)
            while True:
                batch = search.send(tuple(self._read([(one.address, one.length) for one in batch])))
        except StopIteration as done:
            result: _Result = done.value
            return result

    async def run(self, search: Search[_Result]) -> _Result:
        """Drive a search at once, for those who wait for it."""
        return self.search(search)

    def monitor(self, command: str) -> str:
        """Give the relay a command and return what it printed."""
        return self._client.monitor(command)

    def close(self) -> None:
        """Leave the guest; safe to call twice."""
        self._client.close()

    def _read(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return what is mapped of each place, a few pages under way at a time."""
        found = [bytearray() for _ in places]
        ended: set[int] = set()
        pages = (
            (index, page)
            for index, place in enumerate(places)
            for page in _pages(*place)
            if index not in ended
        )
        while window := list(islice(pages, MOST_UNDER_WAY)):
            for (index, (_, length)), data in zip(
                window, self._window([page for _, page in window]), strict=True
            ):
                if index not in ended:
                    found[index] += data
                if len(data) < length:
                    ended.add(index)
        return [bytes(one) for one in found]

    def _window(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read places of a page at most."""
        for _ in range(MOST_TRIES):
            doubted = self.kernel if self._is_doubtful else None
            more = [] if doubted is None else [(doubted.notes, doubted.notes_size)]
            answers = self._client.read([*places, *more])
            if any(isinstance(one, TargetError) and one.errno in _NOT_NOW for one in answers):
                # It stands at another stop than the one that this session has seen.
                self._client.close()
                self._client = self._observe()
                self._is_doubtful = True
                continue
            if doubted is not None:
                self._believe(doubted, answers.pop())
            return [self._data(place, one) for place, one in zip(places, answers, strict=True)]
        raise GuestError(
            f"memory of {self._guest} cannot be read now",
            why="it is stopped and resumed too quickly",
            todo="try again",
        )

    def _believe(self, kernel: Linked, notes: bytes | TargetError) -> None:
        """See that the kernel is there that was found, after the guest was let out of sight."""
        if isinstance(notes, TargetError) or build_id_of_notes(notes) != kernel.build_id:
            raise GuestError(
                f"{self._guest} does not show the kernel any more that was found in it",
                why="it was started again, or none is mapped at this moment",
                todo="try again, or start anew",
            )
        self._is_doubtful = False

    def _data(self, place: tuple[int, int], answer: bytes | TargetError) -> bytes:
        if not isinstance(answer, TargetError):
            return answer
        if answer.words:
            raise GuestError(f"memory of {self._guest} at {place[0]:#x} was not read", why=str(answer))
        # Nothing is mapped there.
        return b""


def _pages(address: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut a range at the bounds of pages, each of which is mapped as a whole or not at all."""
    end = address + length
    while address < end:
        until = min(end, (address // PAGE_BYTES + 1) * PAGE_BYTES)
        yield address, until - address
        address = until
