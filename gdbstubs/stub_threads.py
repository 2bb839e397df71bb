"""A stub's threads: listed once a stop, and named on the wire as the stub names them.

Where ``qXfer:threads`` is announced one request tells all; else each thread takes two, which are sent together
where requests may be pipelined and the threads of the last stop are still there.
"""

from __future__ import annotations

from collections.abc import Callable

from gdbstubs.errors import ENOSYS, TargetError
from gdbstubs.gather import Answer, ObjectRead, ThreadList
from gdbstubs.packets import format_thread
from gdbstubs.replies import Reply as RawReply
from gdbstubs.replies import as_done, as_threads
from gdbstubs.target import Reply, Thread, ThreadId


class StubThreads:
    """The threads of one connection's target.

    ``multiprocess``: thread-ids carry their process.  ``pipelined``: what is known can be asked about at once.
    """

    def __init__(self, ask: Callable[[bytes, Answer], None], *, multiprocess: bool, pipelined: bool) -> None:
        self._ask = ask
        self._multiprocess = multiprocess
        self._pipelined = pipelined
        self._known: tuple[Thread, ...] | None = None
        self._texts: dict[ThreadId, bytes] = {}
        self._wanted: list[Reply[tuple[Thread, ...]]] = []

    def forget(self) -> None:
        """Forget the list at a new stop; the texts are good for the connection."""
        self._known = None

    def text(self, thread: ThreadId) -> bytes:
        """Write a thread-id as the stub does."""
        text = self._texts.get(thread)
        if text is None:
            text = format_thread(thread)
            if self._multiprocess:
                text = b"p1." + text
        return text

    @property
    def known(self) -> tuple[Thread, ...] | None:
        """The threads, if they were listed since the last stop."""
        return self._known

    def list(self, piece: int | None, done: Reply[tuple[Thread, ...]]) -> None:
        """List all threads; ``piece`` is how much of their document to ask for, None where there is none."""
        waiting = self._wanted
        waiting.append(done)
        if len(waiting) > 1:
            return
        texts: dict[ThreadId, bytes] = {}

        def listed(result: tuple[Thread, ...] | TargetError) -> None:
            if not isinstance(result, TargetError):
                self._texts = texts
                self._known = result
            self._wanted = []
            for tell in waiting:
                tell(result)

        def read(document: bytes | TargetError) -> None:
            found = document if isinstance(document, TargetError) else as_threads(document)
            if isinstance(found, TargetError):
                listed(found)
                return
            texts.update((thread, text) for thread, (text, _) in found.items())
            listed(tuple(thread for _, thread in found.values()))

        if piece is not None:
            ObjectRead(self._ask, "threads", "", piece, read).start()
        else:
            known = tuple(self._texts.values()) if self._pipelined else ()
            ThreadList(self._ask, known, texts.__setitem__, listed).start()

    def is_alive(self, thread: ThreadId, unknown: Callable[[], None], done: Reply[bool]) -> None:
        """Ask for one thread by ``T``; ``unknown`` is called where the stub does not know the request."""

        def answer(reply: RawReply) -> None:
            error = as_done(reply)
            if error is not None and error.errno == ENOSYS:
                unknown()
            elif isinstance(reply, TargetError):
                done(reply)
            else:
                done(error is None)

        self._ask(b"T" + self.text(thread), answer)
