"""Who is at the other end of a unix socket, as the kernel says (``SO_PEERCRED``, unix(7))."""

from __future__ import annotations

import pwd
import socket
import struct
from typing import Final

_CREDENTIALS: Final = struct.Struct("3i")


def uid_of(connection: socket.socket) -> int:
    """Return the user id of the process that connected."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(packed)
    return int(uid)


def user_of(connection: socket.socket) -> str:
    """Return the name of the user whose process connected, ``uidN`` where the host knows none."""
    uid = uid_of(connection)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid{uid}"
