"""The client of a console over the control socket's WebSocket.  It blocks, and needs no reactor.

in          bytes of the relay
out         ``bytes`` for console bytes, ``dict`` for what else the relay says
invariant   one message of at most ``MAX_MESSAGE_BYTES`` is kept
"""

from __future__ import annotations

import json
import select
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from wsproto import WSConnection
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

from kbridge.control import Control, RelayDown, guest_path, refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

RECEIVE_BYTES: Final = 65536
MAX_MESSAGE_BYTES: Final = 1 << 20
PIECE_BYTES: Final = 4096

Message = bytes | dict[str, Any]


class ConsoleClient:
    """One who has joined a guest's console; a context manager."""

    def __init__(self, relay: Control, guest: str, *, read_only: bool, history: int) -> None:
        """Join; raises ``RelayDown`` or ``Refused``."""
        self._socket = relay.connect()
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._data = bytearray()
        self._text = ""
        self.ended = ""
        """Why the relay ended it; empty while it has not."""
        target = guest_path(guest, f"/console?read_only={str(read_only).lower()}&history={history}")
        try:
            self._waiting = deque(self._shake_hands(target))
            """Messages that came and were not taken yet: at most what one receive brings."""
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave."""
        self.close()

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """Whether something came that was not taken yet; it makes no socket readable."""
        return bool(self._waiting)

    def receive(self) -> Iterator[Message]:
        """Receive once if nothing waits, and yield what is whole now; sets ``ended`` when it was the last.

        Who stops in the middle gets the rest at the next call.
        """
        if not self._waiting:
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except OSError as error:
                self.ended = error.strerror or str(error)
                return
            if not data:
                self.ended = self.ended or "the relay is gone"
                return
            self._waiting.extend(self._messages(data))
        while self._waiting:
            yield self._waiting.popleft()

    def messages(self, seconds: float) -> Iterator[Message]:
        """Yield what comes within ``seconds``."""
        deadline = time.monotonic() + seconds
        while self._waiting or not self.ended:
            left = deadline - time.monotonic()
            if not self._waiting and (left <= 0 or not select.select([self._socket], [], [], left)[0]):
                return
            yield from self.receive()

    def type(self, data: bytes) -> None:
        """Send bytes to the console; raises ``RelayDown``."""
        for start in range(0, len(data), PIECE_BYTES):
            self._send(BytesMessage(data[start : start + PIECE_BYTES]))

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request, such as ``{"type": "break"}``; raises ``RelayDown``."""
        self._send(TextMessage(json.dumps(request)))

    def close(self) -> None:
        """Leave."""
        if self._protocol.state is ConnectionState.OPEN:
            try:
                self._send(CloseConnection(1000))
            except RelayDown:
                # Gone before us: nobody to tell.
                self.ended = "the relay is gone"
        self._socket.close()

    def _shake_hands(self, target: str) -> list[Message]:
        self._send(Request(host="localhost", target=target))
        rejected = b""
        status = 0
        while True:
            try:
                data = self._socket.recv(RECEIVE_BYTES)
                self._protocol.receive_data(data or None)
            except (OSError, RemoteProtocolError) as error:
                raise RelayDown("the relay did not let us join", why=str(error)) from error
            events = iter(self._protocol.events())
            for event in events:
                match event:
                    case AcceptConnection():
                        return list(self._understood(events))
                    case RejectConnection(status_code=status, has_body=False):
                        raise refused(status, b"")
                    case RejectConnection(status_code=status):
                        continue
                    case RejectData(data=piece, body_finished=finished):
                        rejected = (rejected + bytes(piece))[:MAX_MESSAGE_BYTES]
                        if finished:
                            raise refused(status, rejected)
                    case _:
                        raise RelayDown("the relay did not let us join", why="it closed the connection")
            if not data:
                raise RelayDown("the relay did not let us join", why="it closed the connection")

    def _messages(self, data: bytes) -> Iterator[Message]:
        try:
            self._protocol.receive_data(data)
            yield from self._understood(self._protocol.events())
        except RemoteProtocolError as error:
            self.ended = f"the relay broke the protocol: {error}"

    def _understood(self, events: Any) -> Iterator[Message]:
        for event in events:
            match event:
                case BytesMessage(data=data, message_finished=finished):
                    self._data += data
                    if finished:
                        message, self._data = bytes(self._data), bytearray()
                        yield message
                case TextMessage(data=text, message_finished=finished):
                    self._text += text
                    if finished:
                        whole, self._text = self._text, ""
                        yield json.loads(whole)
                case Ping():
                    self._send(event.response())
                case CloseConnection(reason=reason):
                    self.ended = reason or "the relay ended it"
                case _:
                    continue
            if len(self._data) + len(self._text) > MAX_MESSAGE_BYTES:
                self.ended = "the relay sent a message without an end"
                return

    def _send(self, event: Any) -> None:
        try:
            self._socket.sendall(self._protocol.send(event))
        except OSError as error:
            raise RelayDown("the relay is gone", why=error.strerror or str(error)) from error
