"""The time line: what happened to a guest, one JSON object a line, beside the console bytes.

Each line has ``time`` (UTC, microseconds), ``mono_ns``, ``offset`` (the console offset at that moment),
``kind`` and the fields of its kind.  ``timeline.jsonl`` is rotated by size to ``timeline.jsonl.1`` (newest)
and on; the oldest goes.  A line is written by one ``write``; one that was cut off by a full disk or a kill
is closed with a newline and followed by a ``timeline.torn`` line, and readers pass over it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TIMELINE_NAME: Final = "timeline.jsonl"
DEFAULT_FILE_BYTES: Final = 4 << 20
DEFAULT_OLD_FILES: Final = 4
MAX_LINE_BYTES: Final = 16384
TORN: Final = "timeline.torn"
OWN_KEYS: Final = frozenset({"time", "mono_ns", "offset", "kind"})
"""What every line has; no field of an event may have such a name."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the time line."""

    kind: str
    """Lower case with dots, such as ``debugger.attach``."""
    offset: int
    """How many console bytes had come before it."""
    mono_ns: int
    wall_ns: int
    """Since the epoch, UTC; whole microseconds."""
    fields: Mapping[str, Any] = field(default_factory=dict)


def time_text(wall_ns: int) -> str:
    """Return a time as ISO 8601 in UTC with microseconds."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def encode(event: Event) -> bytes:
    """Return the event as one line.  Fields too long for a line are left out, and it says so.

    Raises ``ValueError`` for a field that has the name of one of the line's own keys.
    """
    if not OWN_KEYS.isdisjoint(event.fields):
        raise ValueError(f"a field of {event.kind} has a name that is taken: {sorted(event.fields)}")
    own = {
        "time": time_text(event.wall_ns),
        "mono_ns": event.mono_ns,
        "offset": event.offset,
        "kind": event.kind,
    }
    line = json.dumps({**own, **event.fields}, separators=(",", ":")).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        own["left_out_bytes"] = len(line)
        line = json.dumps(own, separators=(",", ":")).encode() + b"\n"
    return line


def decode(line: bytes) -> Event | None:
    """Return the event of one line, or ``None`` if it is not one."""
    try:
        fields = json.loads(line)
        moment = datetime.fromisoformat(fields.pop("time"))
        offset, mono_ns, kind = fields.pop("offset"), fields.pop("mono_ns"), fields.pop("kind")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not (isinstance(offset, int) and isinstance(mono_ns, int) and isinstance(kind, str)) or offset < 0:
        return None
    if moment.tzinfo is None:
        return None
    wall_ns = int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
    return Event(kind, offset, mono_ns, wall_ns, fields)


class TimeLine:
    """The writer; its methods raise ``OSError``, and the next call tries again.

    The caller holds the folder's lock.
    """

    def __init__(
        self, directory: Path, *, file_bytes: int = DEFAULT_FILE_BYTES, old_files: int = DEFAULT_OLD_FILES
    ) -> None:
        self._path = directory / TIMELINE_NAME
        self._file_bytes = file_bytes
        self._old_files = old_files
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size
        self.torn = self._size > 0 and os.pread(self._fd, 1, self._size - 1) != b"\n"
        """Whether the last line is not whole; the next ``write`` closes it and says so."""

    def write(self, event: Event) -> None:
        """Append one event."""
        line = encode(event)
        if self.torn:
            mark = Event(TORN, event.offset, event.mono_ns, event.wall_ns)
            line = b"\n" + encode(mark) + line
        if self._size + len(line) > self._file_bytes and self._size:
            self._rotate()
        written = os.write(self._fd, line)
        self._size += written
        self.torn = written < len(line)
        if self.torn:
            raise OSError(None, f"only {written} of {len(line)} bytes could be written")

    def sync(self) -> None:
        """Wait until all is on the disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path, flags, 0o600)

    def _rotate(self) -> None:
        for number in range(self._old_files, 0, -1):
            younger = old_path(self._path, number - 1)
            if younger.exists():
                younger.replace(old_path(self._path, number))
        fd = self._open()
        os.close(self._fd)
        self._fd = fd
        self._size = os.fstat(fd).st_size


def old_path(path: Path, number: int) -> Path:
    """Return the name of the ``number``-th old file; 0 is the present one."""
    return path.with_name(f"{path.name}.{number}") if number else path


class TimeLineCursor:
    """Reads a folder's events, oldest first, while another process may write and rotate them.

    Holds one file open.
    """

    def __init__(self, directory: Path, *, old_files: int = 99) -> None:
        self._path = directory / TIMELINE_NAME
        self._old_files = old_files
        self._file: BinaryIO | None = None
        self._held: Event | None = None

    def peek(self) -> Event | None:
        """Return the next event without taking it, or ``None`` when there is none yet."""
        while self._held is None:
            if self._file is None and not self._open_oldest():
                return None
            assert self._file is not None
            start = self._file.tell()
            line = self._file.readline()
            if line.endswith(b"\n"):
                self._held = decode(line)
            elif self._was_rotated():
                self._open_younger()
            else:  # the end, or a line that is being written or torn
                self._file.seek(start)
                return None
        return self._held

    def take(self) -> Event | None:
        """Return the next event, or ``None`` when there is none yet."""
        event = self.peek()
        self._held = None
        return event

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open_oldest(self) -> bool:
        number = 0
        while number < self._old_files and old_path(self._path, number + 1).exists():
            number += 1
        return self._open(number)

    def _open(self, number: int) -> bool:
        self.close()
        try:
            self._file = old_path(self._path, number).open("rb")
        except OSError:  # not there (yet), or not ours to read: nothing to show
            return False
        return True

    def _number(self) -> int | None:
        """Return the number that the open file has now, ``None`` if it is gone."""
        assert self._file is not None
        mine = os.fstat(self._file.fileno())
        for number in range(self._old_files + 1):
            try:
                found = old_path(self._path, number).stat()
            except FileNotFoundError:
                if number:
                    return None
                continue
            if (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino):
                return number
        return None

    def _was_rotated(self) -> bool:
        """Whether the open file is an old one, with nothing more to come, read to its end."""
        assert self._file is not None
        if self._number() == 0:
            return False
        # The rotation may have come between our last read and the question.
        return self._file.tell() == os.fstat(self._file.fileno()).st_size

    def _open_younger(self) -> None:
        number = self._number()
        if number is None:
            self._open_oldest()
        else:
            self._open(number - 1)
