"""What ``kbridge up`` prints: one readable line for each event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer

from kbridge.frontends.log_text import clock, event_words

if TYPE_CHECKING:
    from collections.abc import Mapping

_OWN: Final = "kbridge."


@implementer(ILogObserver)
class LogLines:
    """Writes events to ``out``: time, guest, words; the libraries' own with ``verbose`` or when they matter."""

    def __init__(self, out: TextIO, *, verbose: bool) -> None:
        self._out = out
        self._verbose = verbose

    def __call__(self, event: LogEvent) -> None:
        """Write one event."""
        line = self.line(event)
        if line:
            print(line, file=self._out, flush=True)

    def line(self, event: LogEvent) -> str:
        """Return the line of an event, which is empty where it is not to be shown."""
        level = event.get("log_level", LogLevel.info)
        matters = level >= LogLevel.warn
        fields = event.get("fields")
        if isinstance(fields, dict) and "kind" in event and "guest" in event:
            words = f"{event['guest']}: {event_words(str(event['kind']), fields)}"
        elif matters or self._verbose:
            source = event.get("log_namespace", "")
            words = formatEvent(event) if source.startswith(_OWN) else f"{source}: {formatEvent(event)}"
        else:
            return ""
        stamp = clock(int(event.get("log_time", 0.0) * 1e9))
        mark = f"{level.name}: " if matters else ""
        return f"{stamp} {mark}{words}" + _trace(event)


def _trace(event: Mapping[str, object]) -> str:
    failure = event.get("log_failure")
    return "" if failure is None else "\n" + failure.getTraceback()  # type: ignore[attr-defined]
