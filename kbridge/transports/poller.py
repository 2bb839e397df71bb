"""All lines behind one descriptor: an epoll of our own, which the reactor watches as one.

The reactor's way to a descriptor costs about 2.4 µs an event (it calls through a log context); this way
costs that once for all lines that are ready together.

in          readiness of lines; ``wake``
out         calls to each line's ``ready``
invariant   one round reads a bounded amount, and each ready line once before any is read twice
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IHostnameResolver
    from twisted.python.failure import Failure

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT

LINES_A_ROUND: Final = 64
"""At most so many lines are served before the reactor's other work has its turn (8 MB, 3 to 4 ms)."""

# Coalescing.  When many lines trickle, a pause after a round lets several writes gather in each socket, and one
# read fetches them all: at 115,200 baud 20 ms halve the reads.  A pause may not hold up a guest, though.  A unix
# socket takes 278 bytes written one by one (what QEMU's 16550 does), then its writer waits; a line at 115,200 baud
# puts 230 there in 20 ms.  So a pause comes only
#
# - when BUSY_LINES or more different lines were served in the last PAUSE_SECONDS, and either nothing is ready any
#   more or a line came round again (a thousand lines are never all idle: while the last are read, the first have
#   more);
# - and if none of them seemed to be held up lately: 256 to 320 bytes in one read are a socket full of single bytes,
#   more than 4 KB are one full of 16 at a time, or a flood.  Such a line ends all pauses for HURRY_SECONDS: it is
#   held up by one pause in that time at most (4 % of its speed);
# - never over a write: who types, or asks kgdb, waits for the answer (`wake`).
#
# One line, or thirty, are always read at once.
BUSY_LINES: Final = 32
SOCKET_FULL_OF_BYTES: Final = range(256, 321)
FLOOD_BYTES: Final = 4096
PAUSE_SECONDS: Final = 0.02
HURRY_SECONDS: Final = 0.5

Ready = Callable[[int], int]
"""Called with epoll's events; may read once, and returns how many bytes it read.

A second read at once gains nothing that can be told from noise, and would take its turn from the readers.
"""


class LineReactor(Protocol):
    """What lines ask of a reactor.

    That is ``IReactorFDSet``, ``IReactorTime`` and ``IReactorPluggableNameResolver``.
    """

    @property
    def nameResolver(self) -> IHostnameResolver:  # noqa: N802  (Twisted's names)
        """What looks up host names without blocking."""

    def addReader(self, reader: IReadDescriptor, /) -> None:  # noqa: N802
        """Watch a descriptor."""

    def removeReader(self, reader: IReadDescriptor, /) -> None:  # noqa: N802
        """Watch it no longer."""

    def callLater(self, delay: float, call: Callable[..., object], /, *args: Any) -> IDelayedCall:  # noqa: N802
        """Call a function after ``delay`` seconds."""

    def seconds(self) -> float:
        """Return the monotonic time."""


@implementer(IReadDescriptor)
class LinePoller:
    """Watches the descriptors of all lines for one reactor; owned by the daemon, ``close`` at the end."""

    _log = Logger()

    def __init__(self, reactor: LineReactor) -> None:
        self._reactor = reactor
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}
        self._broken: dict[int, Callable[[], None]] = {}
        self._pause: IDelayedCall | None = None
        self._recent: set[int] = set()
        self._recent_since = 0.0
        self._hurry_until = 0.0
        self._closed = False

    def add(self, fd: int, events: int, ready: Ready, broken: Callable[[], None]) -> None:
        """Call ``ready`` when ``fd`` is ready, and ``broken`` if that raised: a bug, already logged.

        The caller calls ``remove`` before it closes ``fd``.
        """
        if not self._ready:
            self._reactor.addReader(self)
        self._epoll.register(fd, events)
        self._ready[fd] = ready
        self._broken[fd] = broken

    def change(self, fd: int, events: int) -> None:
        """Watch ``fd`` for other events."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Watch ``fd`` no longer."""
        self._epoll.unregister(fd)
        del self._ready[fd], self._broken[fd]
        if not self._ready:
            self._end_pause()
            self._reactor.removeReader(self)

    def writable(self, fd: int) -> Deferred[None]:
        """Return what fires once ``fd`` can be written to or has failed."""

        def ready(_events: int) -> int:
            self.remove(fd)
            waiting.callback(None)
            return 0

        def broken() -> None:
            """Do nothing: the watch has ended, and the deferred has its own error."""

        waiting: Deferred[None] = Deferred(lambda _: self.remove(fd))
        self.add(fd, WRITE, ready, broken)
        return waiting

    def wake(self) -> None:
        """End a pause: somebody waits for an answer."""
        if self._end_pause() and self._ready:
            self._reactor.addReader(self)

    def close(self) -> None:
        """Stop watching; the lines must be closed already."""
        assert not self._ready, "lines are still open"
        self._closed = True
        self._epoll.close()

    # What the reactor calls.

    def fileno(self) -> int:
        """Return the epoll's descriptor, which is readable when a line is."""
        return -1 if self._closed else self._epoll.fileno()

    def logPrefix(self) -> str:  # noqa: N802  (Twisted's name)
        """Return the name for logs."""
        return "lines"

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802  (Twisted's name)
        """Tell that the reactor is being stopped, or that the epoll itself broke."""

    def doRead(self) -> None:  # noqa: N802  (Twisted's name)
        """Serve the lines that are ready now, each once."""
        now = self._reactor.seconds()
        if now - self._recent_since >= PAUSE_SECONDS:
            self._forget(now)
        events = self._epoll.poll(0, LINES_A_ROUND)
        handlers, recent, full = self._ready, self._recent, SOCKET_FULL_OF_BYTES
        came_round = False
        for fd, mask in events:
            ready = handlers.get(fd)
            if ready is None:  # closed by a line served before it in this round
                continue
            if fd in recent:
                came_round = True
            else:
                recent.add(fd)
            try:
                count = ready(mask)
            except Exception:  # noqa: BLE001  a bug in one line ends that line, not all lines
                self._log.failure("bug in reading a line")
                self._broken[fd]()
            else:
                if count in full or count > FLOOD_BYTES:
                    self._hurry_until = now + HURRY_SECONDS
        # See the top for the rule.
        if len(recent) < BUSY_LINES or now < self._hurry_until or not handlers:
            return
        if came_round or len(events) < LINES_A_ROUND:
            self._reactor.removeReader(self)
            self._pause = self._reactor.callLater(PAUSE_SECONDS, self.wake)
            self._forget(now)

    def _forget(self, now: float) -> None:
        self._recent.clear()
        self._recent_since = now

    def _end_pause(self) -> bool:
        pause, self._pause = self._pause, None
        if pause is None:
            return False
        if pause.active():
            pause.cancel()
        return True
