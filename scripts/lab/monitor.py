"""The few words of QMP that starting a guest needs: whether it is there, and where its console is."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

from lab.errors import LabError
from lab.machine import CONSOLE_ID, ConsoleBackend

_LINE_LIMIT = 1 << 20
_TIMEOUT_SECONDS = 10.0


def console_filename(qmp: Path) -> str:
    """What QEMU calls the console's far end, such as `pty:/dev/pts/4`.

    Frees the monitor again before it returns. Raises OSError while nobody listens, LabError on an answer that
    makes no sense.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT_SECONDS)
        connection.connect(str(qmp))
        with connection.makefile("rwb") as stream:
            stream.readline(_LINE_LIMIT)
            _execute(stream, "qmp_capabilities")
            for chardev in _execute(stream, "query-chardev"):
                if chardev["label"] == CONSOLE_ID:
                    return str(chardev["filename"])
    raise LabError(f"QEMU has no character device {CONSOLE_ID}")


def _execute(stream: Any, command: str) -> Any:
    stream.write(json.dumps({"execute": command}).encode() + b"\r\n")
    stream.flush()
    while line := stream.readline(_LINE_LIMIT):
        message = json.loads(line)
        if "return" in message:
            return message["return"]
        if "error" in message:
            raise LabError(f"QEMU refused {command}: {message['error'].get('desc', message['error'])}")
    raise LabError(f"QEMU's monitor closed during {command}")


def console_endpoint(backend: ConsoleBackend, filename: str, serial: Path) -> str:
    """The console as kbridge's configuration spells it: `unix:`, `pty:` or `telnet:`.

    QEMU 7.2 writes `telnet:127.0.0.1:4321,server=on`, and `disconnected:` before it while nobody is there.
    """
    match backend:
        case ConsoleBackend.UNIX:
            return f"unix:{serial}"
        case ConsoleBackend.PTY:
            return filename
        case ConsoleBackend.TELNET:
            found = re.search(r"telnet:([0-9.]+:[0-9]+)", filename)
            if found is None:
                raise LabError(f"cannot tell the console's port from QEMU's words: {filename}")
            return f"telnet:{found.group(1)}"
