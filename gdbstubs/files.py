"""The files that a debugger opens through its stub: read only, by names that nothing on the host has.

in:      file operations of one session (``vFile``), contents that whoever knows the names gives
out:     replies; each operation is answered once
invariant: no more than ``MOST_OPEN`` descriptors; contents are shared, never copied whole

Source: GDB manual, "Host I/O Packets", "struct stat" (64 bytes, each field big-endian) and "Errno Values".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from gdbstubs.errors import ENOENT
from gdbstubs.requests import CloseFile, FileRequest, OpenFile, OtherFile, ReadFile, SelectFiles, StatFile
from gdbstubs.wire import escape

MOST_OPEN: Final = 32
EBADF: Final = 9
EMFILE: Final = 24
EROFS: Final = 30
"""The protocol's own numbers, which are written in hexadecimal."""
_STAT: Final = struct.Struct(">IIIIIIIQQQIII")
_REGULAR_READABLE: Final = 0o100444
_BLOCK: Final = 512
_O_ACCMODE: Final = 3
_REFUSED: Final = {"pwrite": EROFS, "unlink": EROFS, "readlink": ENOENT, "stat": ENOENT, "lstat": ENOENT}

Find = Callable[[str, Callable[[bytes | None], None]], None]
"""Gives the contents of the file of a name, now or later, once; None where there is none."""


class Files:
    """The files of one session; the module's text says how.  ``most`` is the longest piece that is read at once."""

    def __init__(self, find: Find, most: int) -> None:
        self._find = find
        self._most = most
        self._open: dict[int, bytes] = {}
        self._opening = 0

    def do(self, request: FileRequest, done: Callable[[bytes], None]) -> None:
        """Carry out one operation; ``done`` is given the payload of its reply."""
        match request:
            case OpenFile():
                self._open_file(request, done)
            case ReadFile(descriptor, length, offset):
                contents = self._open.get(descriptor)
                if contents is None:
                    done(failed(EBADF))
                else:
                    piece = contents[offset : offset + min(length, self._most)]
                    done(b"F%x;" % len(piece) + escape(piece))
            case StatFile(descriptor):
                contents = self._open.get(descriptor)
                if contents is None:
                    done(failed(EBADF))
                else:
                    done(b"F%x;" % _STAT.size + escape(stat(len(contents))))
            case CloseFile(descriptor):
                done(failed(EBADF) if self._open.pop(descriptor, None) is None else b"F0")
            case SelectFiles():
                done(b"F0")
            case OtherFile(operation):
                # An empty reply says that the operation is unknown.
                errno = _REFUSED.get(operation)
                done(b"" if errno is None else failed(errno))

    def _open_file(self, request: OpenFile, done: Callable[[bytes], None]) -> None:
        if request.flags & _O_ACCMODE:
            done(failed(EROFS))
            return
        if len(self._open) + self._opening >= MOST_OPEN:
            done(failed(EMFILE))
            return
        self._opening += 1

        def found(contents: bytes | None) -> None:
            self._opening -= 1
            if contents is None:
                done(failed(ENOENT))
                return
            descriptor = next(number for number in range(3, MOST_OPEN + 4) if number not in self._open)
            self._open[descriptor] = contents
            done(b"F%x" % descriptor)

        self._find(request.name, found)


def failed(errno: int) -> bytes:
    """Return the reply to an operation that failed."""
    return b"F-1,%x" % errno


def stat(size: int) -> bytes:
    """Return a regular file's ``struct stat``.

    Device, inode, mode, links, user, group, device type; size, block size, blocks; three times.
    """
    return _STAT.pack(0, 1, _REGULAR_READABLE, 1, 0, 0, 0, size, _BLOCK, -(-size // _BLOCK), 0, 0, 0)
