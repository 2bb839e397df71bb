"""Errors of the protocol.

ProtocolError
  LocalProtocolError    we broke the protocol: a bug, never caught
  RemoteProtocolError   the peer did: ends that connection only
  LinkFailed            retries are exhausted
TargetError             an errno and words for one session's request
"""

from __future__ import annotations

from typing import Final

EPERM: Final = 1
ENOENT: Final = 2
ESRCH: Final = 3
EIO: Final = 5
E2BIG: Final = 7
EAGAIN: Final = 11
EFAULT: Final = 14
EBUSY: Final = 16
EINVAL: Final = 22
ENOSPC: Final = 28
ENOSYS: Final = 38
ETIMEDOUT: Final = 110
"""errno values as gdb prints them; a reply carries them as two hexadecimal digits (``E0e`` is EFAULT)."""


class ProtocolError(Exception):
    """The Remote Serial Protocol was broken by one side."""


class LocalProtocolError(ProtocolError):
    """We asked for something that the protocol does not allow now: a bug of the caller, never caught."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what no peer may send; its connection must be closed, nothing else is affected."""


class LinkFailed(ProtocolError):
    """A packet was not acknowledged after all its retransmissions; the connection must be closed."""


class TargetError(Exception):
    """A request that the target refused: an errno for the wire, words for the user."""

    def __init__(self, errno: int, words: str = "") -> None:
        super().__init__(errno, words)
        self.errno = errno
        self.words = words

    def __str__(self) -> str:
        return self.words or f"errno {self.errno}"
