"""Starting QEMU's gdbstub at run time: the human monitor's ``gdbserver`` command and its answers.

The human monitor has no error codes: success is the text ``Waiting for gdb connection on device '…'``, all
else is a failure in words (seen with QEMU 7.2).  All is pure but ``check_socket``.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kbridge.errors import MachineError

MAX_PATH_BYTES = 107
"""Longest path of a unix socket: 108 bytes with the closing zero (``unix(7)``)."""

STOP_COMMAND = "gdbserver none"


def start_command(path: str) -> str:
    """Give the command that starts the stub on a socket: ``gdbserver "unix:/x,server=on,wait=off"``.

    ``MachineError`` for a path that no socket can have.
    """
    length = len(os.fsencode(path))
    if not path.startswith("/") or not path.isprintable():
        raise _not_started(f"{path!r} is not an absolute, printable path")
    if length > MAX_PATH_BYTES:
        raise _not_started(f"{path} is {length} bytes long, and a socket's path at most {MAX_PATH_BYTES}")
    # Two layers of quoting: QEMU's option parser doubles commas, the human monitor takes C-like strings.
    device = f"unix:{path.replace(',', ',,')},server=on,wait=off"
    quoted = device.replace("\\", "\\\\").replace('"', '\\"')
    return f'gdbserver "{quoted}"'


def check_started(answer: str, path: str) -> None:
    """Raise ``MachineError`` unless ``answer`` says that the stub listens on ``path``."""
    if answer.startswith("Waiting for gdb connection"):
        return
    text = " ".join(answer.split())
    folder = str(Path(path).parent)
    if "Permission denied" in text:
        raise _not_started(
            f"QEMU may not make a socket in {folder} (it runs as another user)",
            f"give QEMU's user write access to {folder}, or start QEMU with "
            "-gdb unix:PATH,server=on,wait=off and name that in `stub`",
        )
    if "No such file or directory" in text:
        raise _not_started(
            f"QEMU sees no folder {folder}",
            "make it, and make it visible to QEMU if that runs in a container",
        )
    if "unknown command" in text:
        raise _not_started("this QEMU has no `gdbserver` command", 'set stub = "none" or name another stub')
    if "Address already in use" in text or "Read-only file system" in text or "No space left" in text:
        raise _not_started(text, f"look at {folder}, or set another runtime_dir")
    raise _not_started(text or "QEMU gave no answer")


def check_stopped(answer: str) -> None:
    """Raise ``MachineError`` unless ``answer`` says that the stub is gone."""
    if not answer.startswith("Disabled gdbserver"):
        text = " ".join(answer.split()) or "QEMU gave no answer"
        raise MachineError("QEMU's gdbstub was not closed", why=text)


def check_socket(path: str) -> None:
    """Raise ``MachineError`` unless there is a socket at ``path`` that this process may connect to."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise _not_started(
            f"QEMU says that it listens on {path}, but there is nothing here ({error.strerror})",
            "QEMU sees other folders (a container, a chroot): give it the same runtime_dir",
        ) from None
    if not stat.S_ISSOCK(mode):
        raise _not_started(f"{path} is not a socket: QEMU sees other folders")
    if not os.access(path, os.W_OK):
        raise _not_started(
            f"QEMU made {path} but this process may not connect to it",
            "run both as the same user or group, or kbridge as root",
        )


def _not_started(why: str, todo: str = "") -> MachineError:
    return MachineError("QEMU's gdbstub was not started", why=why, todo=todo)
