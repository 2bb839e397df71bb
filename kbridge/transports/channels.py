"""What a line reads from once it is open: a non-blocking descriptor, and what lies between it and the text.

``Transport`` says how to open one; each kind of endpoint has its own (``sockets``, ``pty``, ``uart``,
``telnet``, ``rfc2217``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from kbridge.transports.endpoints import Break


ReadInto = Callable[[memoryview], int | None]


class Codec(Protocol):
    """Tells console text from what else is on the wire (telnet commands).  Pure: bytes in, bytes out."""

    def greeting(self) -> bytes:
        """Return what to send first."""

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the text in ``data``, and what to send back."""

    def encode(self, text: bytes) -> bytes:
        """Return ``text`` as it goes over the wire."""


class Channel(Protocol):
    """An open line.  Reads and writes raise ``OSError``; when they would wait, it is ``BlockingIOError``."""

    @property
    def codec(self) -> Codec | None:
        """What tells text from the rest; ``None`` when every byte is text."""

    def fileno(self) -> int:
        """Return the descriptor to watch."""

    @property
    def read_into(self) -> ReadInto:
        """What reads once; it gives 0 when the other end is gone, and may give ``None`` if it would wait."""

    def write(self, data: bytes) -> int:
        """Write once; return how many bytes went."""

    def set_break(self, on: bool, how: Break) -> bytes:
        """Begin or end BREAK; return what must be sent for it.  Only for lines that can; raises ``LineError``."""

    def close(self) -> None:
        """Close the descriptor."""


class Transport(Protocol):
    """How to reach one endpoint."""

    async def open(self) -> Channel:
        """Open the line; raises ``LineError`` or ``OSError``.  May be cancelled."""


class Waiter(Protocol):
    """What a transport needs of the poller to connect without blocking."""

    def writable(self, fd: int) -> Deferred[None]:
        """Return what fires when ``fd`` can be written to (or failed); cancelling it stops the watch."""
