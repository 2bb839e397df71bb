"""The record of a guest's packets: owns the ring, takes what passes the sockets, and wakes those who watch.

in          ``tap``: each chunk that passes a socket
out         the ring, for readers; ``watch``: a call soon after there is more
states      not begun (no file yet) · recording · in memory only (with the reason)
invariant   ``tap`` never raises: a debugger does not lose its stub because a disk is full
"""

from __future__ import annotations

from time import monotonic_ns as _mono_ns
from typing import TYPE_CHECKING, Any, Final

from twisted.logger import Logger

from kbridge.errors import RecordError
from kbridge.trace.ring import MIN_RING_BYTES, PacketRing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from twisted.internet.interfaces import IDelayedCall

RING_NAME: Final = "packets.ring"
DEFAULT_RING_BYTES: Final = 4 << 20
WRITE_SECONDS: Final = 0.02
MOST_KEPT_CHUNKS: Final = 64
"""A chunk costs a third when many are written together, and nobody waits for it.  A relay that is killed loses them."""
MOST_KEPT_BYTES: Final = 2048
"""A larger chunk is written at once: to hold many of them makes the allocator ask the kernel for each."""
WAKE_SECONDS: Final = 0.05
"""Watchers are called at most so often: they are not to slow the debuggers that they look at."""


class PacketRecord:
    """The packets of one guest, in ``directory``, or in memory only where that is None.

    The file is made when the first chunk comes: most guests are never debugged.  Whoever gives a ``directory``
    holds its lock for as long as the record is open.
    """

    _log = Logger()

    def __init__(self, reactor: Any, directory: Path | None, ring_bytes: int = DEFAULT_RING_BYTES) -> None:
        self._reactor = reactor
        self._path = None if directory is None else directory / RING_NAME
        self._ring_bytes = ring_bytes
        self._ring: PacketRing | None = None
        self._watchers: tuple[Callable[[], None], ...] = ()
        self._waking: IDelayedCall | None = None
        self._closed = False
        self._kept: list[tuple[str, bool, bytes, int]] = []
        """What passed and is not written yet: session, direction, bytes, monotonic ns."""
        self._writing: IDelayedCall | None = None

    @property
    def ring(self) -> PacketRing:
        """The ring with all that passed, which is made if there is none yet; it lives until ``close``."""
        self._write()
        assert self._ring is not None, "writing makes it"
        return self._ring

    def tap(self, session: str, to_peer: bool, data: bytes) -> None:
        """Record bytes that pass the socket of ``session`` (``stub``: the relay's own), to its peer or from it."""
        if self._closed:
            return
        kept = self._kept
        kept.append((session, to_peer, data, _mono_ns()))
        if len(kept) >= MOST_KEPT_CHUNKS or len(data) > MOST_KEPT_BYTES:
            self._write()
        elif self._writing is None:
            self._writing = self._reactor.callLater(WRITE_SECONDS, self._write_in_time)
        if self._watchers and self._waking is None:
            self._waking = self._reactor.callLater(WAKE_SECONDS, self._wake)

    def _write_in_time(self) -> None:
        self._writing = None
        self._write()

    def _write(self) -> None:
        """Write to the ring what was kept, each chunk with the time at which it passed."""
        ring = self._ring if self._ring is not None else self._open()
        now = _mono_ns()
        for session, to_peer, data, passed in self._kept:
            ring.append(session, to_peer, data, now - passed)
        self._kept.clear()

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` soon after there is more, until the function returned is called."""
        self._watchers = (*self._watchers, watcher)

        def stop() -> None:
            self._watchers = tuple(other for other in self._watchers if other is not watcher)

        return stop

    def wake_soon(self, watcher: Callable[[], None]) -> IDelayedCall:
        """Call ``watcher`` when the reactor has had its turn, for one who has more to do than a turn allows."""
        call: IDelayedCall = self._reactor.callLater(0, watcher)
        return call

    def close(self) -> None:
        """Write everything to the disk and let go of it; what comes later is not recorded."""
        self._closed = True
        self._watchers = ()
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        if self._kept:
            self._write()
        if self._ring is None:
            return
        try:
            self._ring.sync()
        except OSError as error:
            self._log.error("{path}: not all could be written: {error}", path=self._path, error=error)
        self._ring.close()
        self._ring = None

    def _open(self) -> PacketRing:
        if self._path is None:
            self._ring = PacketRing.anonymous(self._ring_bytes)
            return self._ring
        try:
            self._ring = PacketRing.open_writer(self._path, self._ring_bytes)
        except RecordError as error:
            self._log.error("packets are kept in memory only: {error}", error=str(error))
            self._ring = PacketRing.anonymous(max(MIN_RING_BYTES, min(self._ring_bytes, DEFAULT_RING_BYTES)))
        return self._ring

    def _wake(self) -> None:
        self._waking = None
        for watcher in self._watchers:
            watcher()
