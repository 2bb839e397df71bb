"""RFC 2217: a console server's serial port, set and broken through telnet's COM-PORT-OPTION (44).

ff fa 2c 01 00 01 c2 00 ff f0      SET-BAUDRATE 115200
ff fa 2c 05 05 ff f0               SET-CONTROL: BREAK on (06: off)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kbridge.errors import LineError
from kbridge.transports.endpoints import Break
from kbridge.transports.sockets import SocketChannel
from kbridge.transports.telnet import (
    BINARY,
    COM_PORT,
    IAC,
    SB,
    SE,
    SUPPRESS_GO_AHEAD,
    TelnetCodec,
    telnet_break,
)

if TYPE_CHECKING:
    import socket

    from kbridge.transports.channels import Channel
    from kbridge.transports.sockets import TcpTransport

SET_BAUDRATE: Final = 1
SET_DATASIZE: Final = 2
SET_PARITY: Final = 3
SET_STOPSIZE: Final = 4
SET_CONTROL: Final = 5
FROM_SERVER: Final = 100
"""A server's commands are the client's plus 100."""
PARITY_NONE: Final = 1
STOP_ONE: Final = 1
BREAK_ON: Final = 5
BREAK_OFF: Final = 6


class Rfc2217Codec(TelnetCodec):
    """Telnet that sets the far serial port to 8N1 and ``baud`` (unless ``None``), once the server agreed."""

    ours = frozenset({BINARY, SUPPRESS_GO_AHEAD, COM_PORT})
    theirs = TelnetCodec.theirs | {COM_PORT}

    def __init__(self, baud: int | None) -> None:
        super().__init__()
        self._baud = baud
        self.far_baud: int | None = None
        """The speed that the server says it set."""

    def greeting(self) -> bytes:
        """Offer the option too."""
        return super().greeting() + self._offer(COM_PORT)

    def agreed_here(self, option: int) -> bytes:
        """Set the port as soon as the server takes such commands."""
        if option != COM_PORT:
            return b""
        setup = command(SET_DATASIZE, b"\x08") + command(SET_PARITY, bytes([PARITY_NONE]))
        setup += command(SET_STOPSIZE, bytes([STOP_ONE]))
        return setup if self._baud is None else command(SET_BAUDRATE, self._baud.to_bytes(4, "big")) + setup

    def subnegotiated(self, option: int, data: bytes) -> bytes:
        """Note the speed that the server reports; its other reports need no answer."""
        if option == COM_PORT and len(data) == 5 and data[0] == FROM_SERVER + SET_BAUDRATE:
            self.far_baud = int.from_bytes(data[1:], "big")
        return b""


def command(number: int, value: bytes) -> bytes:
    """Return one COM-PORT-OPTION command."""
    escaped = value.replace(b"\xff", b"\xff\xff")
    return bytes((IAC, SB, COM_PORT, number)) + escaped + bytes((IAC, SE))


class Rfc2217Channel(SocketChannel):
    """A socket on which RFC 2217 is spoken."""

    codec: Rfc2217Codec  # type: ignore[assignment]

    def __init__(self, sock: socket.socket, codec: Rfc2217Codec) -> None:
        super().__init__(sock)
        self.codec = codec

    def set_break(self, on: bool, how: Break) -> bytes:
        """Return the command; raises ``LineError`` when the server has not agreed to such."""
        if how is Break.TELNET:
            return telnet_break(on)
        if not self.codec.enabled_here(COM_PORT):
            raise LineError(
                "cannot send BREAK",
                why="the console server does not take RFC 2217 commands",
                todo="see that it is set up for RFC 2217; telnet's BREAK it may take",
            )
        return command(SET_CONTROL, bytes([BREAK_ON if on else BREAK_OFF]))


class Rfc2217Transport:
    """A console server that speaks RFC 2217."""

    def __init__(self, tcp: TcpTransport, baud: int | None) -> None:
        self._tcp = tcp
        self._baud = baud

    async def open(self) -> Channel:
        """Connect; the port is set while text flows."""
        return Rfc2217Channel(await self._tcp.connect(), Rfc2217Codec(self._baud))
