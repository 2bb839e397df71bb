"""Lines of a trace for people: time, session, direction, packet, meaning, in columns.

    16:02:11.123456 ann  -> mffffffff81000000,40   read 64 bytes at ffffffff81000000
    16:02:11.123611 ann  <- 488d2551…              64 bytes

``->`` is towards the guest.  No byte of a packet can act on the terminal that shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from gdbstubs.conversation import Kind, Side
from gdbstubs.decode_replies import plain
from kbridge.frontends.log_text import clock

if TYPE_CHECKING:
    from kbridge.trace.reader import Line

PACKET_WIDTH: Final = 46
LEAST_PACKET_WIDTH: Final = 16
MOST_SESSION_WIDTH: Final = 24
_ARROWS: Final = {Side.DEBUGGER.value: "->", Side.STUB.value: "<-"}
_SIGNS: Final = {Kind.INTERRUPT.value: "^C", Kind.NACK.value: "-"}


class TraceText:
    """Makes text of lines; ``width`` is the terminal's, None where nothing need fit; ``color`` for terminals."""

    def __init__(self, *, width: int | None = None, color: bool = False) -> None:
        self._width = width
        self._color = color
        self._session_width = 4

    def line(self, line: Line) -> str:
        """Return the text of a line, with its end."""
        stamp = f"{clock(line.wall_ns)}.{line.wall_ns // 1000 % 1_000_000:06d}"
        if not line.session:
            return self._styled(_cut(f"{stamp} -- {line.words}", self._width), dim=True) + "\n"
        session = _cut(plain(line.session.encode()), MOST_SESSION_WIDTH)
        self._session_width = max(self._session_width, len(session))
        prefix = f"{stamp} {session.ljust(self._session_width)} {_ARROWS.get(line.side, '--')} "
        if line.kind == "bytes":
            more = f" ({line.words})" if line.words else ""
            return f"{prefix}{plain(line.packet)}{more}\n"
        return self._columns(prefix, line)

    def _columns(self, prefix: str, line: Line) -> str:
        room = None if self._width is None else max(self._width - len(prefix), LEAST_PACKET_WIDTH + 2)
        wide = PACKET_WIDTH if room is None else max(LEAST_PACKET_WIDTH, min(room * 2 // 5, PACKET_WIDTH))
        packet = _SIGNS.get(line.kind) or plain(line.packet, wide - 1)
        if line.kind == Kind.NOTIFICATION.value:
            packet = _cut("%" + packet, wide)
        words = line.words if room is None else _cut(line.words, room - wide - 2)
        refused = line.words.startswith(("refused", "malformed")) or line.kind in _TROUBLES
        stopped = line.words.startswith("stopped")
        if refused:
            words = self._styled(words, fg="red")
        elif stopped:
            words = self._styled(words, fg="yellow")
        return f"{prefix}{packet.ljust(wide)}  {words}".rstrip() + "\n"

    def _styled(self, text: str, *, fg: str | None = None, dim: bool | None = None) -> str:
        return click.style(text, fg=fg, dim=dim) if self._color and text else text


_TROUBLES: Final = frozenset(
    kind.value for kind in (Kind.NACK, Kind.DAMAGED, Kind.OVERLONG, Kind.NOISE, Kind.CUT)
)


def _cut(text: str, width: int | None) -> str:
    """Cut a text to a width in characters."""
    if width is None or len(text) <= width:
        return text
    return text[: max(width - 1, 0)] + "…" if width > 0 else ""
