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
    """All threads, then what is said of each of them, pipelined.

    ``learned`` is told the wire's own text of each thread-id, process included.
    """

    def __init__(
        self, ask: Ask, learned: Callable[[ThreadId, bytes], None], done: Reply[tuple[Thread, ...]]
    ) -> None:
        self._ask = ask
        self._learned = learned
        self._done = done
        self._texts: dict[ThreadId, bytes] = {}
        self._extras: dict[ThreadId, str] = {}

    def start(self) -> None:
        """Ask for the first threads."""
        self._ask(b"qfThreadInfo", self._listed)

    def _listed(self, reply: RawReply) -> None:
        if isinstance(reply, TargetError):
            self._done(reply)
            return
        if reply[:1] == b"m":
            for text in reply[1:].split(b","):
                try:
                    thread = parse_thread(text)
                except ValueError:
                    self._done(unexpected(reply, "a list of threads"))
                    return
                self._texts[thread] = text
                self._learned(thread, text)
            if len(self._texts) > MOST_THREADS:
                self._done(TargetError(E2BIG, f"the stub lists more than {MOST_THREADS} threads"))
                return
            self._ask(b"qsThreadInfo", self._listed)
            return
        if reply != b"l" and (error := as_error(reply)) is not None:
            self._done(error)
            return
        for thread, text in self._texts.items():
            self._ask(b"qThreadExtraInfo," + text, partial(self._described, thread))
        if not self._texts:
            self._done(())

    def _described(self, thread: ThreadId, reply: RawReply) -> None:
        # Not every stub says something of a thread; that is no error.
        data = as_data(reply)
        self._extras[thread] = "" if isinstance(data, TargetError) else data.decode("utf-8", "replace")
        if len(self._extras) == len(self._texts):
            self._done(tuple(Thread(one, extra) for one, extra in self._extras.items()))
