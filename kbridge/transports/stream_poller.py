"""The streams of one relay behind one descriptor: what is ready together is served together, and answered together.

The reactor's way to a descriptor costs some 3 µs an event (it calls through a log context), and whoever is served there
one by one sends each request by itself.  A round here serves every stream that is ready, then lets the relay send once
(``settle``): the requests of several debuggers reach the stub in one piece.

in          readiness of streams, as ``addReader`` and the like ask for it: those calls of ``IReactorFDSet``
out         ``doRead``, ``doWrite`` and ``connectionLost`` of the streams; ``settle`` after each round
invariant   each ready stream is served once before any is served twice; the reactor gets its turn after
            ``TURN_SECONDS``

A turn has rounds until nothing is ready.  One debugger that waits for each of its replies is never ready again at
once, and the look that finds this out is a twentieth of what its request takes: it is left out while it is in vain.

To wait here for what a round leads to, rather than in the reactor, was tried: a wait of 1 ms costs 15 µs more than none
(the kernel programs the clock), one of 20 ms saves 3 µs and holds up everybody else.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_READABLE: Final = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR

STREAMS_A_ROUND: Final = 64
TURN_SECONDS: Final = 0.002
MOST_SINGLE: Final = 8
"""After so many turns of one round each, only every so many-th looks for another round."""


@implementer(IReadDescriptor)
class StreamPoller:
    """Watches the streams of one relay for one reactor; the module's text says how.

    ``settle`` is called after each round in which a stream was served.
    """

    _log = Logger()

    def __init__(self, reactor: Any, settle: Callable[[], None]) -> None:
        self._reactor = reactor
        self._settle = settle
        self._epoll = select.epoll()
        self._streams: dict[int, Any] = {}
        self._descriptors: dict[Any, int] = {}
        """What each stream was registered as: a closed socket no longer says."""
        self._writing: set[Any] = set()
        self._reading: set[Any] = set()
        self._single = 0
        """How many turns in a row had one round."""
        self._closed = False

    # -- as streams see it ----------------------------------------------------------------------------------

    def addReader(self, stream: Any) -> None:  # noqa: N802 (the reactor's name)
        """Call ``stream.doRead`` when it can be read."""
        self._reading.add(stream)
        self._watch(stream)

    def addWriter(self, stream: Any) -> None:  # noqa: N802 (the reactor's name)
        """Call ``stream.doWrite`` when it can be written to."""
        self._writing.add(stream)
        self._watch(stream)

    def removeReader(self, stream: Any) -> None:  # noqa: N802 (the reactor's name)
        """Undo ``addReader``; before the socket is closed."""
        self._reading.discard(stream)
        self._watch(stream)

    def removeWriter(self, stream: Any) -> None:  # noqa: N802 (the reactor's name)
        """Undo ``addWriter``; before the socket is closed."""
        self._writing.discard(stream)
        self._watch(stream)

    def _watch(self, stream: Any) -> None:
        events = (_IN if stream in self._reading else 0) | (_OUT if stream in self._writing else 0)
        descriptor = self._descriptors.get(stream)
        if not events:
            if descriptor is not None:
                self._epoll.unregister(descriptor)
                del self._descriptors[stream], self._streams[descriptor]
                if not self._streams:
                    self._reactor.removeReader(self)
        elif descriptor is None:
            descriptor = stream.fileno()
            if not self._streams:
                self._reactor.addReader(self)
            self._epoll.register(descriptor, events)
            self._streams[descriptor] = stream
            self._descriptors[stream] = descriptor
        else:
            self._epoll.modify(descriptor, events)

    def close(self) -> None:
        """Stop watching; the streams must be closed already."""
        assert not self._streams, "streams are still open"
        self._closed = True
        self._epoll.close()

    # -- as the reactor sees it -----------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the epoll's descriptor, which is readable when a stream is ready; -1 once closed."""
        return -1 if self._closed else self._epoll.fileno()

    def logPrefix(self) -> str:  # noqa: N802 (the reactor's name)
        """Return the name for logs."""
        return "streams"

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802 (the reactor's name)
        """Tell that the reactor is being stopped, or that the epoll itself broke."""

    def doRead(self) -> None:  # noqa: N802 (the reactor's name)
        """Serve rounds until nothing is ready, as far as was looked, or others have waited long enough."""
        poll, streams = self._epoll.poll, self._streams
        end = monotonic() + TURN_SECONDS
        again = self._single < MOST_SINGLE or self._single % MOST_SINGLE == 0
        rounds = 0
        while streams and (events := poll(0, STREAMS_A_ROUND)):
            rounds += 1
            for descriptor, mask in events:
                stream = streams.get(descriptor)
                if stream is None:  # closed by one before it
                    continue
                try:
                    problem = stream.doRead() if mask & _READABLE else None
                    if problem is None and mask & _OUT and stream in self._writing:
                        problem = stream.doWrite()
                except Exception:  # noqa: BLE001  a bug in one stream ends that stream, not the relay
                    self._log.failure("a bug in serving a stream")
                    problem = Failure(ConnectionLost("a bug"))
                if problem is not None:
                    stream.connectionLost(problem)
            try:
                self._settle()
            except Exception:  # noqa: BLE001  raised to the reactor it would take all streams away
                self._log.failure("a bug in settling what streams have brought")
            if not again or monotonic() >= end:
                break
        self._single = 0 if rounds > 1 else self._single + 1
