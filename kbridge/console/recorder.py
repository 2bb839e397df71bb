"""The recorder of one guest's console: ring, index and time line under one folder and one lock.

in          bytes from the line (``receive``, ``append``), the line's loss and return, events
out         the ring's bytes for live readers, who are called after each advance
states      recording; not recording (with the reason), which readers do not notice: the ring is then in
            memory invariant   nothing here raises for want of disk, rights or a whole file: the line is
            always read
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from twisted.logger import Logger

from kbridge.console.index import GapReason, Index, MarkKind
from kbridge.console.lock import DirectoryLock
from kbridge.console.mapped import Former
from kbridge.console.ring import Ring
from kbridge.console.timeline import DEFAULT_FILE_BYTES, DEFAULT_OLD_FILES, Event, TimeLine
from kbridge.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RING_NAME: Final = "console.ring"
INDEX_NAME: Final = "console.index"
DEFAULT_RING_BYTES: Final = 4 << 20
MARK_NS: Final = 50_000_000
"""Bytes that come within 50 ms of a time mark do not get one of their own."""

_REASONS: Final = {
    Former.CLEAN: GapReason.RELAY_STOPPED,
    Former.KILLED: GapReason.RELAY_KILLED,
    Former.HOST_WENT_DOWN: GapReason.HOST_WENT_DOWN,
}


class Recorder:
    """Owns the ring, the index and the time line of a guest, under ``directory`` (0700, made if absent)."""

    # Slots: one object in one place, where a dict would be a second, for each of a thousand lines.
    __slots__ = (
        "_lock",
        "_mono_ns",
        "_next_mark",
        "_receive",
        "_timeline",
        "_timeline_trouble",
        "_trouble",
        "_wall_ns",
        "_watchers",
        "directory",
        "index",
        "ring",
    )
    _log = Logger()

    def __init__(
        self,
        directory: Path,
        ring_bytes: int = DEFAULT_RING_BYTES,
        *,
        timeline_bytes: int = DEFAULT_FILE_BYTES,
        timeline_files: int = DEFAULT_OLD_FILES,
        mono_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.directory = directory
        self._mono_ns = mono_ns
        self._wall_ns = wall_ns
        self._lock: DirectoryLock | None = None
        self._timeline: TimeLine | None = None
        self._trouble = ""
        self._timeline_trouble = ""
        self._next_mark = 0
        self._watchers: tuple[Callable[[], None], ...] = ()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = DirectoryLock(directory)
        except RecordError as error:
            self._trouble = str(error)
        except OSError as error:
            self._trouble = f"cannot make {directory}: {error.strerror or error}"
        if self._lock is not None:
            self._open_timeline(timeline_bytes, timeline_files)
        self.ring, self.index = self._open_ring(ring_bytes)
        if self._trouble:
            self._log.error("{directory}: not recording: {why}", directory=directory, why=self._trouble)
        self._receive = self.ring.receive
        self._note_opening()

    @property
    def recording(self) -> bool:
        """Whether console bytes and events reach the disk."""
        return not (self._trouble or self._timeline_trouble)

    @property
    def status(self) -> str:
        """``recording``, or ``not recording: `` and why."""
        if self._trouble:
            return f"not recording: {self._trouble}"
        if self._timeline_trouble:
            return f"not recording events: {self._timeline_trouble}"
        return "recording"

    def receive(self, read_into: Callable[[memoryview], int | None]) -> int | None:
        """Let ``read_into`` put the next bytes in place, stamp them, and call the readers.

        Returns what it returns: how many, or ``None``.  What it raises is passed on, and nothing was received then.
        """
        # Into locals first: a call of what a slot holds is twice as fast so.
        receive, mono_ns = self._receive, self._mono_ns
        count = receive(read_into)
        if count:
            now = mono_ns()
            if now >= self._next_mark:
                self._next_mark = now + MARK_NS
                self.index.add(self.ring.head - count, now, self._wall())
            for watcher in self._watchers:
                watcher()
        return count

    def append(self, data: bytes | memoryview) -> None:
        """Record bytes that are in memory already."""
        view = memoryview(data)

        def copy(window: memoryview) -> int:
            count = min(len(window), len(view))
            window[:count] = view[:count]
            return count

        while view:
            view = view[self.receive(copy) or 0 :]

    def line_opened(self, detail: str) -> None:
        """Mark that the line is there; ``detail`` names it."""
        self._mark_gap("line.open", GapReason.LINE_OPEN, {"line": detail})

    def line_lost(self, detail: str, reason: str) -> None:
        """Mark that the line is gone, and why."""
        self._mark_gap("line.lost", GapReason.LINE_LOST, {"line": detail, "reason": reason})

    def record(self, kind: str, **fields: Any) -> None:
        """Put an event on the time line and call the readers.

        It is stamped with both clocks and the console offset.
        ``kind`` is lower case with dots (``debugger.attach``); ``fields`` must be what JSON can say.
        """
        self._write(Event(kind, self.ring.head, self._mono_ns(), self._wall(), fields))
        self._call_watchers()

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` after each advance and event, until the function returned is called."""
        self._watchers = (*self._watchers, watcher)

        def stop() -> None:
            self._watchers = tuple(other for other in self._watchers if other is not watcher)

        return stop

    def close(self) -> None:
        """Write everything to the disk, mark it as closed, let the next writer in."""
        self._write(Event("relay.stop", self.ring.head, self._mono_ns(), self._wall()))
        self._watchers = ()
        try:
            self.ring.sync()
            self.index.sync()
            if self._timeline is not None:
                self._timeline.sync()
        except OSError as error:
            self._log.error(
                "{directory}: not all could be written: {error}", directory=self.directory, error=error
            )
        if self._timeline is not None:
            self._timeline.close()
            self._timeline = None
        self.ring.close()
        self.index.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _open_timeline(self, file_bytes: int, old_files: int) -> None:
        try:
            self._timeline = TimeLine(self.directory, file_bytes=file_bytes, old_files=old_files)
        except OSError as error:
            self._timeline_trouble = f"cannot open the time line: {error.strerror or error}"

    def _open_ring(self, ring_bytes: int) -> tuple[Ring, Index]:
        if self._lock is not None:
            try:
                index = Index.open_writer(self.directory / INDEX_NAME, ring_bytes)
                try:
                    ring = Ring.open_writer(self.directory / RING_NAME, ring_bytes, base=index.last_offset)
                except RecordError:
                    index.close()
                    raise
            except RecordError as error:
                self._trouble = str(error)
            else:
                index.drop_after(ring.head)
                return ring, index
        return Ring.anonymous(ring_bytes), Index.anonymous(ring_bytes)

    def _note_opening(self) -> None:
        """Say in index and time line how the former writer left the files."""
        found = self.ring.opening
        if found.damage or self.index.damage:
            self._log.warn(
                "{directory}: {damage} {aside}", directory=self.directory,
                damage=found.damage or self.index.damage, aside=found.set_aside or "",
            )  # fmt: skip
        gaps = []
        if found.set_aside is not None:
            gaps.append((MarkKind.GAP, GapReason.RING_DAMAGED, 0))
        if found.former is Former.KILLED and found.torn_bytes:
            gaps.append((MarkKind.TORN, GapReason.RELAY_KILLED, found.torn_bytes))
        elif found.former in _REASONS:
            gaps.append((MarkKind.GAP, _REASONS[found.former], found.torn_bytes))
        if found.dropped_bytes:
            gaps.append((MarkKind.GAP, GapReason.RING_RESIZED, found.dropped_bytes))
        mono, wall = self._mono_ns(), self._wall()
        for kind, reason, lost in gaps:
            self.index.add(self.ring.head, mono, wall, kind, reason, lost)
        fields: dict[str, Any] = {"former": found.former.value}
        if found.set_aside is not None:
            fields |= {"set_aside": found.set_aside.name, "damage": found.damage}
        self._write(Event("relay.start", self.ring.head, mono, wall, fields))

    def _mark_gap(self, kind: str, reason: GapReason, fields: dict[str, Any]) -> None:
        # One stamp for both, by which a reader of both knows that they are the same thing.
        mono, wall = self._mono_ns(), self._wall()
        self.index.add(self.ring.head, mono, wall, MarkKind.GAP, reason)
        self._next_mark = 0
        self._write(Event(kind, self.ring.head, mono, wall, fields))
        self._call_watchers()

    def _wall(self) -> int:
        """The wall clock in ns, in whole microseconds as the time line has it."""
        return self._wall_ns() // 1000 * 1000

    def _call_watchers(self) -> None:
        for watcher in self._watchers:
            watcher()

    def _write(self, event: Event) -> None:
        if self._timeline is None:
            return
        try:
            self._timeline.write(event)
        except OSError as error:
            if not self._timeline_trouble:
                self._log.error(
                    "{directory}: cannot write the time line: {why}", directory=self.directory, why=error
                )
            self._timeline_trouble = f"cannot write the time line: {error.strerror or error}"
        else:
            self._timeline_trouble = ""
