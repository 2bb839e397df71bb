"""Requests to a stub that take several packets: large reads, objects, the list of threads.

Each class is started once, asks through the function that it was given, and answers once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from gdbstubs.errors import E2BIG, EFAULT, EIO, RemoteProtocolError, TargetError
from gdbstubs.packets import parse_thread
from gdbstubs.replies import Reply as RawReply
from gdbstubs.replies import as_data, as_error, unexpected
from gdbstubs.target import Reply, Thread, ThreadId
from gdbstubs.wire import unescape

MOST_THREADS: Final = 65536
LARGEST_OBJECT: Final = 4 << 20

Answer = Callable[[RawReply], None]
Ask = Callable[[bytes, Answer], None]


class LargeRead:
    """One read of memory in several packets, pipelined; what precedes the first failure is returned."""

    def __init__(
        self,
        read: Callable[[int, int, Reply[bytes]], None],
        address: int,
        length: int,
        most: int,
        done: Reply[bytes],
    ) -> None:
        self._read = read
        self._ranges = [(address + start, min(most, length - start)) for start in range(0, length, most)]
        self._parts: list[bytes] = []
        self._error: TargetError | None = None
        self._left = len(self._ranges)
        self._done = done

    def start(self) -> None:
        """Ask for all pieces at once; they are answered in order."""
        for address, length in self._ranges:
            self._read(address, length, partial(self._arrived, length))

    def _arrived(self, wanted: int, result: bytes | TargetError) -> None:
        self._left -= 1
        if self._error is None:
            if isinstance(result, TargetError):
                self._error = result
            else:
                self._parts.append(result)
                if len(result) < wanted:
                    self._error = TargetError(EFAULT)
        if self._left:
            return
        if self._parts:
            self._done(b"".join(self._parts))
        else:
            self._done(self._error or TargetError(EIO))


class ObjectRead:
    """A whole object by ``qXfer:KIND:read:ANNEX``, piece by piece."""

    def __init__(self, ask: Ask, kind: str, annex: str, piece: int, done: Reply[bytes]) -> None:
        self._ask = ask
        self._name = f"qXfer:{kind}:read:{annex}:".encode("latin-1")
        self._piece = piece
        self._data = bytearray()
        self._done = done

    def start(self) -> None:
        """Ask for the next piece."""
        self._ask(self._name + b"%x,%x" % (len(self._data), self._piece), self._arrived)

    def _arrived(self, reply: RawReply) -> None:
        error = as_error(reply)
        if error is not None or isinstance(reply, TargetError):
            self._done(error or TargetError(EIO))
            return
        if reply[:1] not in (b"m", b"l"):
            self._done(unexpected(reply, "a piece of an object"))
            return
        try:
            piece = unescape(reply[1:])
        except RemoteProtocolError as malformed:
            self._done(TargetError(EIO, str(malformed)))
            return
        self._data += piece
        if len(self._data) > LARGEST_OBJECT:
            self._done(TargetError(E2BIG, f"the stub serves an object of more than {LARGEST_OBJECT} bytes"))
        elif reply[:1] == b"l" or not piece:
            self._done(bytes(self._data))
        else:
            self.start()


class ThreadList:
    """All threads, then what is said of each of them.

    ``known`` are the wire's own texts of the threads that were there last time: where requests may be pipelined,
    everything is asked at once, and only what is new needs another round trip.  ``learned`` is told the text of
    each thread-id, process included.
    """

    def __init__(
        self,
        ask: Ask,
        known: tuple[bytes, ...],
        learned: Callable[[ThreadId, bytes], None],
        done: Reply[tuple[Thread, ...]],
    ) -> None:
        self._ask = ask
        self._known = known
        self._learned = learned
        self._done: Reply[tuple[Thread, ...]] | None = done
        self._threads: dict[ThreadId, bytes] = {}
        self._extras: dict[bytes, str | None] = {}
        self._requested = 0
        self._complete = False

    def start(self) -> None:
        """Ask for the first threads, and for what can be asked with them."""
        self._list(b"qfThreadInfo")
        for _ in self._known:
            self._list(b"qsThreadInfo")
        for text in self._known:
            self._describe(text)

    def _list(self, request: bytes) -> None:
        self._requested += 1
        self._ask(request, self._listed)

    def _describe(self, text: bytes) -> None:
        self._extras[text] = None
        self._ask(b"qThreadExtraInfo," + text, partial(self._described, text))

    def _listed(self, reply: RawReply) -> None:
        self._requested -= 1
        if self._complete or self._done is None:
            return
        if isinstance(reply, TargetError):
            self._fail(reply)
        elif reply[:1] == b"m":
            self._take(reply)
        elif reply != b"l" and (reply or not self._threads) and (error := as_error(reply)) is not None:
            # kgdb ends its list with an empty reply; from one that never began it means: not known.
            self._fail(error)
        else:
            self._complete = True
            for text in self._threads.values():
                if text not in self._extras:
                    self._describe(text)
            self._finish()

    def _take(self, reply: bytes) -> None:
        for text in reply[1:].split(b","):
            try:
                thread = parse_thread(text)
            except ValueError:
                self._fail(unexpected(reply, "a list of threads"))
                return
            self._threads[thread] = text
            self._learned(thread, text)
        if len(self._threads) > MOST_THREADS:
            self._fail(TargetError(E2BIG, f"the stub lists more than {MOST_THREADS} threads"))
        elif self._requested == 0:
            self._list(b"qsThreadInfo")

    def _described(self, text: bytes, reply: RawReply) -> None:
        # Not every stub says something of a thread; that is no error.
        data = as_data(reply)
        # kgdb says the whole 16 bytes of a task's name.
        said = b"" if isinstance(data, TargetError) else data.rstrip(b"\0")
        self._extras[text] = said.decode("utf-8", "replace")
        self._finish()

    def _fail(self, error: TargetError) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(error)

    def _finish(self) -> None:
        if not self._complete or self._done is None:
            return
        threads = []
        for thread, text in self._threads.items():
            extra = self._extras.get(text)
            if extra is None:
                return
            threads.append(Thread(thread, extra))
        done, self._done = self._done, None
        done(tuple(threads))
