"""Telnet, as console servers and QEMU's ``telnet=on`` chardev speak it (RFC 854, 855, 856, 857, 858, 1143).

``TelnetCodec`` is pure: bytes in, bytes out.  Options that both sides want are agreed to, others refused,
each once. Twisted's own ``twisted.conch.telnet`` is not used: it walks each byte in Python (docs/console.md
has the figures) and turns CR LF into LF even where BINARY was agreed, which changes what a console wrote.

    ff fd 03            IAC DO SUPPRESS-GO-AHEAD
    ff fa 2c … ff f0    IAC SB COM-PORT-OPTION … IAC SE
    ff ff               the byte ff
    ff f3               IAC BREAK

states      text, a command begun (IAC), an option's byte due, in a subnegotiation, IAC in a subnegotiation
invariant   the text is the same however the input is split, and never longer than the input
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from kbridge.transports.sockets import SocketChannel

if TYPE_CHECKING:
    import socket

    from kbridge.transports.channels import Channel
    from kbridge.transports.endpoints import Break
    from kbridge.transports.sockets import TcpTransport

IAC: Final = 0xFF
DONT: Final = 0xFE
DO: Final = 0xFD
WONT: Final = 0xFC
WILL: Final = 0xFB
SB: Final = 0xFA
BREAK: Final = 0xF3
SE: Final = 0xF0

BINARY: Final = 0
ECHO: Final = 1
SUPPRESS_GO_AHEAD: Final = 3
COM_PORT: Final = 44

MAX_SUBNEGOTIATION_BYTES: Final = 512
"""What is longer is passed over."""


class _At(Enum):
    TEXT = "text"
    COMMAND = "command"
    OPTION = "option"
    SUB = "sub"
    SUB_COMMAND = "sub command"


class TelnetCodec:
    """One connection's telnet state; ``ours`` and ``theirs`` are the options that may be on at each end."""

    ours: frozenset[int] = frozenset({BINARY, SUPPRESS_GO_AHEAD})
    theirs: frozenset[int] = frozenset({BINARY, SUPPRESS_GO_AHEAD, ECHO})

    def __init__(self) -> None:
        self._at = _At.TEXT
        self._verb = 0
        self._sub = bytearray()
        self._after_cr = False
        self._on_here: set[int] = set()
        self._on_there: set[int] = set()
        self._asked_here: set[int] = set()
        self._asked_there: set[int] = set()

    def enabled_here(self, option: int) -> bool:
        """Whether our end does ``option``."""
        return option in self._on_here

    def enabled_there(self, option: int) -> bool:
        """Whether the far end does ``option``."""
        return option in self._on_there

    def greeting(self) -> bytes:
        """Ask for a clean line: eight bits both ways, no going ahead, no local echo."""
        return b"".join(
            [
                self._offer(BINARY),
                self._ask(BINARY),
                self._offer(SUPPRESS_GO_AHEAD),
                self._ask(SUPPRESS_GO_AHEAD),
            ]
        )

    def encode(self, text: bytes) -> bytes:
        """Double each IAC; while BINARY is not agreed a CR stands alone as CR NUL."""
        wire = text.replace(b"\xff", b"\xff\xff")
        return wire if BINARY in self._on_here else wire.replace(b"\r", b"\r\0")

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the text in ``data``, and what to answer."""
        in_text = self._at is _At.TEXT and not self._after_cr
        if in_text and b"\xff" not in data and (BINARY in self._on_there or b"\r" not in data):
            return data, b""
        text = bytearray()
        answer = bytearray()
        place = 0
        while place < len(data):
            if self._at is _At.TEXT:
                place = self._text(data, place, text)
            elif self._at is _At.SUB:
                place = self._subnegotiation(data, place)
            else:
                self._command(data[place], text, answer)
                place += 1
        return bytes(text), bytes(answer)

    def subnegotiated(self, option: int, data: bytes) -> bytes:
        """Take a whole subnegotiation; return what to answer."""
        return b""

    def agreed_here(self, option: int) -> bytes:
        """Act on an option that our end does now; return what to send."""
        return b""

    # Parsing.

    def _text(self, data: bytes, place: int, text: bytearray) -> int:
        """Take text up to the next IAC; return the place after it."""
        end = data.find(IAC, place)
        piece = data[place:] if end < 0 else data[place:end]
        if BINARY not in self._on_there:
            if self._after_cr and piece.startswith(b"\0"):
                text += piece[1:].replace(b"\r\0", b"\r")
            else:
                text += piece.replace(b"\r\0", b"\r")
            if piece:
                self._after_cr = piece.endswith(b"\r")
        else:
            self._after_cr = False
            text += piece
        if end < 0:
            return len(data)
        self._at = _At.COMMAND
        return end + 1

    def _subnegotiation(self, data: bytes, place: int) -> int:
        end = data.find(IAC, place)
        piece = data[place:] if end < 0 else data[place:end]
        # One byte over the limit is kept: it tells that there was more.
        self._sub += piece[: max(MAX_SUBNEGOTIATION_BYTES + 1 - len(self._sub), 0)]
        if end < 0:
            return len(data)
        self._at = _At.SUB_COMMAND
        return end + 1

    def _command(self, byte: int, text: bytearray, answer: bytearray) -> None:
        at, self._at = self._at, _At.TEXT
        if at is _At.OPTION:
            answer += self._option(self._verb, byte)
        elif at is _At.SUB_COMMAND:
            if byte == IAC:
                if len(self._sub) <= MAX_SUBNEGOTIATION_BYTES:
                    self._sub.append(IAC)
                self._at = _At.SUB
            elif 0 < len(self._sub) <= MAX_SUBNEGOTIATION_BYTES:
                answer += self.subnegotiated(self._sub[0], bytes(self._sub[1:]))
        elif byte == IAC:
            self._after_cr = False
            text.append(IAC)
        elif byte in (WILL, WONT, DO, DONT):
            self._verb = byte
            self._at = _At.OPTION
        elif byte == SB:
            self._sub.clear()
            self._at = _At.SUB

    # Options.  An answer to a question of ours is not answered again, which would never end.

    def _option(self, verb: int, option: int) -> bytes:
        match verb:
            case 0xFB:  # WILL
                return self._wanted(option, self._on_there, self._asked_there, self.theirs, (DO, DONT))
            case 0xFD:  # DO
                was_on = option in self._on_here
                answer = self._wanted(option, self._on_here, self._asked_here, self.ours, (WILL, WONT))
                if option in self._on_here and not was_on:
                    answer += self.agreed_here(option)
                return answer
            case 0xFC:  # WONT
                return self._unwanted(option, self._on_there, self._asked_there, DONT)
            case _:  # DONT
                return self._unwanted(option, self._on_here, self._asked_here, WONT)

    @staticmethod
    def _wanted(
        option: int, on: set[int], asked: set[int], welcome: frozenset[int], verbs: tuple[int, int]
    ) -> bytes:
        if option in asked:
            asked.discard(option)
            on.add(option)
            return b""
        if option in on:
            return b""
        if option in welcome:
            on.add(option)
            return bytes((IAC, verbs[0], option))
        return bytes((IAC, verbs[1], option))

    @staticmethod
    def _unwanted(option: int, on: set[int], asked: set[int], verb: int) -> bytes:
        asked.discard(option)
        if option not in on:
            return b""
        on.discard(option)
        return bytes((IAC, verb, option))

    def _offer(self, option: int) -> bytes:
        self._asked_here.add(option)
        return bytes((IAC, WILL, option))

    def _ask(self, option: int) -> bytes:
        self._asked_there.add(option)
        return bytes((IAC, DO, option))


def telnet_break(on: bool) -> bytes:
    """Return what begins or ends BREAK."""
    return bytes((IAC, BREAK)) if on else b""


class TelnetChannel(SocketChannel):
    """A socket on which telnet is spoken; BREAK is a command of it."""

    codec: TelnetCodec  # type: ignore[assignment]

    def __init__(self, sock: socket.socket, codec: TelnetCodec) -> None:
        super().__init__(sock)
        self.codec = codec

    def set_break(self, on: bool, how: Break) -> bytes:
        """Return IAC BREAK; telnet's BREAK has no end."""
        return telnet_break(on)


class TelnetTransport:
    """A telnet server."""

    def __init__(self, tcp: TcpTransport) -> None:
        self._tcp = tcp

    async def open(self) -> Channel:
        """Connect; the options are settled while text flows."""
        return TelnetChannel(await self._tcp.connect(), TelnetCodec())
