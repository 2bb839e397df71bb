"""A guest's record as bytes to print or send: JSON lines, raw console bytes, text for people, asciicast.

Pull-based and in pieces: ``LogReader.next`` holds one piece at a time, whoever the reader is and however much
was recorded.
"""

from __future__ import annotations

import codecs
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, assert_never

from kbridge.console.asciicast import asciicast
from kbridge.console.log import LogCursor, Missing, Text, as_json
from kbridge.console.readers import gap_notice
from kbridge.console.timeline import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kbridge.console.log import Entry, History

Format = Literal["json", "raw", "text", "cast"]
MEDIA_TYPES: Final[Mapping[Format, str]] = {
    "json": "application/x-ndjson",
    "raw": "application/octet-stream",
    "text": "text/plain; charset=utf-8",
    "cast": "application/x-asciicast",
}
PIECE_BYTES: Final = 16384
CAST_LINES: Final = 64
MAX_ESCAPE: Final = 256
"""An escape sequence longer than that is none."""

_NOT_FOR_PEOPLE: Final = frozenset({"monitor_time", "monitor_event", "ours"})
"""What the monitor says of its own events: the line's time and kind say it already."""
# ECMA-48: control sequences, and strings (title, clipboard) up to their end; then two-character ones.
_ESCAPE: Final = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^_`a-~])"
)
_BEGUN: Final = re.compile(r"(?:\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)|\r+)\Z")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class PlainText:
    r"""Makes text for people of a record: no byte of a guest can act on the terminal that shows it.

    Escape sequences and control characters are left out, a carriage return ends a line; bytes that are no
    UTF-8 are shown as ``\xNN``.  Events and gaps stand on lines of their own that begin with ``--``.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
        self._held = ""
        self._in_line = False

    def feed(self, entry: Entry) -> str:
        """Return the text of one entry."""
        match entry:
            case Text():
                return self._text(entry.data)
            case Missing():
                lost = f", {entry.lost} bytes" if entry.lost else ""
                return self._remark(entry.wall_ns, f"text may be missing here ({entry.reason}{lost})")
            case Event():
                return self._remark(entry.wall_ns, event_words(entry.kind, entry.fields))
            case _:
                assert_never(entry)

    def _text(self, data: bytes) -> str:
        text = self._held + self._decoder.decode(data)
        begun = _BEGUN.search(text, max(0, len(text) - MAX_ESCAPE))
        end = begun.start() if begun is not None else len(text)
        self._held = text[end:]
        text = _ESCAPE.sub("", text[:end])
        text = re.sub(r"\r+\n?", "\n", text)
        text = _CONTROL.sub("", text)
        if text:
            self._in_line = not text.endswith("\n")
        return text

    def _remark(self, wall_ns: int, words: str) -> str:
        start = "\n" if self._in_line else ""
        self._in_line = False
        return f"{start}-- {clock(wall_ns)} {words}\n"


def clock(wall_ns: int) -> str:
    """Return the local time of day, with the date in front of it on another day than today."""
    if not wall_ns:
        return "earlier"
    moment = datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC).astimezone()
    same_day = moment.date() == datetime.now(UTC).astimezone().date()
    return moment.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S")


def event_words(kind: str, fields: Mapping[str, Any]) -> str:
    """Return an event in words, without line ends or escape sequences, whatever its fields hold."""
    words = [
        f"{name} {_value(value)}"
        for name, value in fields.items()
        if value not in (None, "") and name not in _NOT_FOR_PEOPLE
    ]
    if fields.get("ours") is True:
        words.append("by kbridge")
    return f"{kind}: {', '.join(words)}" if words else kind


def _value(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case str():
            text = value
        case _:
            text = json.dumps(value, default=str)
    return _CONTROL.sub(" ", _ESCAPE.sub("", text).replace("\n", " "))


class LogReader:
    """Reads a record in one format, piece by piece; without ``follow`` up to what there is at its start.

    ``alive`` tells whether the history may still be looked at (its recorder closes it under its readers);
    ``watch`` is the recorder's, for those who follow.
    """

    def __init__(
        self,
        history: History,
        form: Format,
        *,
        since_ns: int | None = None,
        lines: int | None = None,
        follow: bool = False,
        title: str = "",
        alive: Callable[[], bool] = lambda: True,
        watch: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self._cursor = LogCursor(history, since_ns=since_ns, lines=lines)
        self._until = None if follow else history.ring.head
        self._alive = alive
        self._watch = watch
        self._plain = PlainText()
        self._form = form
        self._cast = asciicast(self._entries(), title=title)

    def next(self) -> bytes | None:
        """Return the next piece, ``None`` when there is nothing (yet)."""
        if self._form == "cast":
            lines = [line for line, _ in zip(self._cast, range(CAST_LINES), strict=False)]
            return "".join(lines).encode() if lines else None
        while (entry := self._entry()) is not None:
            piece = self._render(entry)
            if piece:
                return piece
        return None

    @property
    def follows(self) -> bool:
        """Whether more may come when there is nothing now."""
        return self._until is None and self._alive()

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have ``wake`` called when there may be more, until the function returned is called."""
        if self._until is not None or self._watch is None:
            return _nothing
        return self._watch(wake)

    def close(self) -> None:
        """Let go of the record."""
        self._cursor.close()

    def _entries(self) -> Iterator[Entry]:
        while (entry := self._entry()) is not None:
            yield entry

    def _entry(self) -> Entry | None:
        if not self._alive():
            return None
        entry = self._cursor.next(PIECE_BYTES)
        if self._until is not None and isinstance(entry, Text) and entry.offset >= self._until:
            return None
        return entry

    def _render(self, entry: Entry) -> bytes:
        match self._form:
            case "json":
                return json.dumps(as_json(entry)).encode() + b"\n"
            case "text":
                return self._plain.feed(entry).encode()
            case _:
                if isinstance(entry, Text):
                    return entry.data
                return gap_notice(entry.lost) if isinstance(entry, Missing) and entry.lost else b""


def _nothing() -> None:
    """Stand in for the end of a watch that is not needed."""
