"""``GUEST/console``: a guest's console as raw bytes both ways, for ``socat`` and the like.

Who connects sees the last ``SCREEN_BYTES`` from a line's start on, then what comes.  The first who types
holds the pen until he leaves; another's typing is discarded, which he is told once, between the guest's bytes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kbridge.console.readers import RingReader
from kbridge.frontends.typist import Typist
from kbridge.frontends.window import SCREEN_BYTES, window_start
from kbridge.peers import user_of
from kbridge.transports.streams import Listener

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from kbridge.guest import Guest

MAX_READERS: Final = 64


class ConsoleSocket:
    """Serves the console of ``guest`` at ``path``."""

    def __init__(self, reactor: Any, guest: Guest, path: Path) -> None:
        self._reactor = reactor
        self._guest = guest
        self._path = path
        self._listener: Listener | None = None
        self._readers: set[_Reader] = set()

    def start(self) -> None:
        """Listen; raises ``KbridgeError`` when the socket cannot be made."""
        self._listener = Listener(self._reactor, self._path, self._accepted, self._guest.access)

    async def stop(self) -> None:
        """Stop listening and close all connections."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for reader in tuple(self._readers):
            reader.close()

    def _accepted(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if len(self._readers) >= MAX_READERS:
            try:
                connection.send(notice(f"{MAX_READERS} are connected already"))
            except OSError:
                # The peer is gone already: nobody to tell.
                return
            finally:
                connection.close()
            return
        reader = _Reader(self._reactor, self._guest, connection)
        self._readers.add(reader)
        reader.start(partial(self._readers.discard, reader))


class _Reader:
    """One who is connected."""

    def __init__(self, reactor: Any, guest: Guest, connection: socket.socket) -> None:
        self._reactor = reactor
        self._guest = guest
        self._connection = connection
        self._typist = Typist(guest, user_of(connection), self._tell)
        self._ring: RingReader | None = None

    def start(self, gone: Any) -> None:
        """Begin; ``gone`` is called once at the end."""

        def lost(_reason: str) -> None:
            self._typist.release()
            gone()

        recorder = self._guest.recorder
        self._ring = RingReader(
            self._reactor,
            self._connection,
            recorder,
            offset=window_start(recorder.ring, SCREEN_BYTES),
            received=self._typist.type,
            lost=lost,
        )

    def close(self) -> None:
        """End."""
        assert self._ring is not None
        self._ring.close()

    def _tell(self, words: str) -> None:
        assert self._ring is not None
        self._ring.tell(notice(words))


def notice(words: str) -> bytes:
    """Return words of kbridge as they stand between a guest's bytes."""
    return f"\r\n[kbridge: {words}]\r\n".encode()
