"""Lines on a pseudo terminal whose master the other side holds, such as QEMU's ``-chardev pty``."""

from __future__ import annotations

import os
import termios
import tty
from typing import TYPE_CHECKING, Final

from kbridge.errors import LineError

if TYPE_CHECKING:
    from kbridge.transports.channels import Channel
    from kbridge.transports.endpoints import Break


_PSEUDO_MAJORS: Final = range(136, 144)
"""Linux, Documentation/admin-guide/devices.txt: "Unix98 PTY slaves"."""


def is_pseudo_terminal(fd: int) -> bool:
    """Whether a descriptor is the slave of a pseudo terminal, whose driver takes a BREAK and carries it nowhere."""
    return os.major(os.fstat(fd).st_rdev) in _PSEUDO_MAJORS


class TtyChannel:
    """An open terminal device in raw mode.  ``EIO`` from a read means that nobody is at the other end."""

    codec = None

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file = open(fd, "rb", buffering=0, closefd=False)  # noqa: SIM115  (close() closes it)
        # A method in C: os.readv, which wants a list, would cost a quarter more a read.
        self.read_into = self._file.readinto

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def write(self, data: bytes) -> int:
        """Write once."""
        return os.write(self._fd, data)

    def set_break(self, on: bool, how: Break) -> bytes:
        """Refuse: a pseudo terminal has no wire to hold."""
        raise LineError("cannot send BREAK", why="a pseudo terminal carries bytes only")

    def close(self) -> None:
        """Close the device."""
        self._file.close()
        os.close(self._fd)


class PtyTransport:
    """The slave of a pseudo terminal, by its path."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def open(self) -> Channel:
        """Open it and set it raw without dropping what waits; raises ``OSError`` or ``LineError``."""
        flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(self._path, flags)
        try:
            # TCSANOW: the default of setraw would throw away what the guest wrote before we came.
            tty.setraw(fd, termios.TCSANOW)
        except termios.error as error:
            os.close(fd)
            raise LineError(f"cannot use {self._path}", why="it is no terminal") from error
        return TtyChannel(fd)
