"""A console history as an asciicast v2 recording (https://docs.asciinema.org/manual/asciicast/v2/).

{"version": 2, "width": 80, "height": 24, "timestamp": 1795331489}
[0.25, "o", "[    0.000000] Linux version 6.1"]
[1.5, "m", "debugger.attach"]
"""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING, Any, Final, assert_never

from kbridge.console.log import Missing, Text
from kbridge.console.readers import gap_notice
from kbridge.console.timeline import Event

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kbridge.console.log import Entry

WIDTH: Final = 80
HEIGHT: Final = 24


def asciicast(entries: Iterable[Entry], *, title: str = "") -> Iterator[str]:
    """Yield the recording's lines, each with its newline.

    Times come from the index, in seconds since the first entry that has one, and never go back.  Text is
    UTF-8, also where a character is split between two entries; a byte that is none becomes U+FFFD.  Events
    and gaps are markers; a gap whose size is known is also shown in the text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    start: int | None = None
    now = 0.0
    for entry in entries:
        if start is None:
            start = entry.wall_ns
            yield _line(_header(start // 10**9, title))
        now = max(now, (entry.wall_ns - start) / 1e9)
        match entry:
            case Text():
                text = decoder.decode(entry.data)
                if text:
                    yield _line([round(now, 6), "o", text])
            case Missing():
                # What was begun before the gap has no end: say so now.
                text = decoder.decode(b"", final=True)
                if entry.lost:
                    text += gap_notice(entry.lost).decode()
                if text:
                    yield _line([round(now, 6), "o", text])
                yield _line([round(now, 6), "m", f"console.gap: {entry.reason}"])
            case Event():
                yield _line([round(now, 6), "m", entry.kind])
            case _:
                assert_never(entry)
    text = decoder.decode(b"", final=True)
    if text:
        yield _line([round(now, 6), "o", text])
    if start is None:
        yield _line(_header(0, title))


def _header(timestamp: int, title: str) -> dict[str, Any]:
    header: dict[str, Any] = {"version": 2, "width": WIDTH, "height": HEIGHT, "timestamp": timestamp}
    return header | ({"title": title} if title else {})


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
