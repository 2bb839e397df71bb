"""One writer at a time for a guest's folder: an advisory lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from kbridge.errors import RecordError

if TYPE_CHECKING:
    from pathlib import Path

LOCK_NAME = "lock"


class DirectoryLock:
    """An exclusive ``flock`` on ``directory/lock``; the kernel drops it when the process ends.

    The file also holds the holder's process id, as text, for the message to whoever comes second.
    """

    def __init__(self, directory: Path) -> None:
        """Take the lock.

        Raises ``RecordError``, naming the process that holds it, or saying why the file cannot be used.
        """
        path = directory / LOCK_NAME
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise RecordError(f"cannot lock {directory}", why=error.strerror or str(error)) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise RecordError(
                f"cannot record in {directory}",
                why=f"process {holder} records there" if holder else "another process records there",
                todo="stop that process, or give this relay another state_dir",
            ) from error
        except OSError as error:
            os.close(self._fd)
            raise RecordError(f"cannot lock {directory}", why=error.strerror or str(error)) from error

    def release(self) -> None:
        """Let the next writer in."""
        os.close(self._fd)
