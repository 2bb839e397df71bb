"""Lines on a serial device: pyserial sets it up, the poller reads it.

Not Twisted's ``SerialPort``: that drops what was received before it opened, takes the device without
locking it, and sleeps in ``sendBreak``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import serial

from kbridge.errors import LineError
from kbridge.transports.pty import TtyChannel, is_pseudo_terminal

if TYPE_CHECKING:
    from kbridge.transports.channels import Channel
    from kbridge.transports.endpoints import Break


class _KeptInput(serial.Serial):
    """A serial port that keeps what was received before it was opened: the guest's first words."""

    def _reset_input_buffer(self) -> None:
        # pyserial 3.5 calls this at the end of open(); tests/test_line_uart.py sees it if a later one does it
        # another way.  Nothing of ours asks for a reset.
        return


class SerialChannel(TtyChannel):
    """An open serial device; BREAK is a state of its wire."""

    def __init__(self, port: serial.Serial) -> None:
        super().__init__(port.fileno())
        self._port = port

    def set_break(self, on: bool, how: Break) -> bytes:
        """Hold the wire in BREAK or let it go; nothing is to be sent."""
        if is_pseudo_terminal(self._port.fileno()):
            raise LineError(
                "cannot send BREAK",
                why=f"{self._port.name} is a pseudo terminal: the program at its other end would not see it",
                todo="use the serial device itself, or that program by telnet: or rfc2217: if it speaks one of them",
            )
        self._port.break_condition = on
        return b""

    def close(self) -> None:
        """Close the device."""
        self._file.close()
        self._port.close()


class SerialTransport:
    """A serial device, 8N1, without flow control, not shared with any other program that asks."""

    def __init__(self, device: str, baud: int) -> None:
        self._device = device
        self._baud = baud

    async def open(self) -> Channel:
        """Open and set it; raises ``LineError``."""
        try:
            port = _KeptInput(self._device, self._baud, timeout=0, write_timeout=0, exclusive=True)
        except (OSError, ValueError) as error:
            raise LineError(f"cannot open {self._device}", why=str(error)) from error
        return SerialChannel(port)
