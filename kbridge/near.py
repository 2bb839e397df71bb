"""A plain relay between stdin/stdout and a stub's socket, for gdb's ``target remote | kbridge attach …``.

in          bytes of gdb on stdin, bytes of the stub on the socket
out         the same bytes, unchanged and in order, each to the other side
states      both open; gdb is done (half-closed; the stub has ``LINGER_SECONDS`` to say the rest); over
invariant   at most ``PIECE_BYTES`` wait for each side: who does not read is not read for
"""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_BYTES: Final = 65536
LINGER_SECONDS: Final = 2.0
_READABLE: Final = select.POLLIN | select.POLLHUP | select.POLLERR


class Way:
    """One direction: what was read and not yet written."""

    def __init__(self, source: int, target: int) -> None:
        self.source = source
        self.target = target
        self.waiting = b""
        self.ended = False
        """Whether the source has no more."""
        self.broken = False
        """Whether the target takes no more."""

    @property
    def over(self) -> bool:
        """Whether nothing more can go this way."""
        return self.broken or (self.ended and not self.waiting)

    def move(self, ready: dict[int, int]) -> None:
        """Read and write what ``poll`` says is possible."""
        if not self.waiting and not self.ended and ready.get(self.source, 0) & _READABLE:
            self._read()
        if self.waiting and not self.broken:
            self._write()

    def _read(self) -> None:
        try:
            self.waiting = os.read(self.source, PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            # A reset or a closed terminal: an end like any other, for one who only relays.
            self.ended = True
            return
        self.ended = not self.waiting

    def _write(self) -> None:
        try:
            self.waiting = self.waiting[os.write(self.target, self.waiting) :]
        except BlockingIOError:
            return
        except OSError:
            self.broken = True
            self.waiting = b""


def pump(source: int, target: int, stub: socket.socket) -> None:
    """Relay until the stub's side ends, or gdb's side does and the stub had time to answer."""
    with _non_blocking(source), _non_blocking(target):
        stub.setblocking(False)
        to_stub, to_gdb = Way(source, stub.fileno()), Way(stub.fileno(), target)
        deadline: float | None = None
        while not to_gdb.over:
            if to_stub.over and deadline is None:
                deadline = time.monotonic() + LINGER_SECONDS
                _half_close(stub)
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            ready = _wait((to_stub, to_gdb), left)
            to_stub.move(ready)
            to_gdb.move(ready)


def _wait(ways: tuple[Way, Way], seconds: float | None) -> dict[int, int]:
    wanted: dict[int, int] = {}
    for way in ways:
        if way.waiting and not way.broken:
            wanted[way.target] = wanted.get(way.target, 0) | select.POLLOUT
        elif not way.ended and not way.broken:
            wanted[way.source] = wanted.get(way.source, 0) | select.POLLIN
    poll = select.poll()
    for fd, events in wanted.items():
        poll.register(fd, events)
    return dict(poll.poll(None if seconds is None else seconds * 1000))


def _half_close(stub: socket.socket) -> None:
    try:
        stub.shutdown(socket.SHUT_WR)
    except OSError:
        # Closed by the stub already: the next read says so.
        return


@contextmanager
def _non_blocking(fd: int) -> Iterator[None]:
    before = os.get_blocking(fd)
    os.set_blocking(fd, False)
    try:
        yield
    finally:
        os.set_blocking(fd, before)
