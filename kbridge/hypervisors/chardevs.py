"""Which of QEMU's character devices stands behind an endpoint, from ``query-chardev``; pure.

``filename`` is text for people, but the only key that QEMU gives (7.2)::

    disconnected:unix:/run/vm/web1/serial.sock,server=on
    unix:/run/vm/web1/serial.sock,server=on <-> …
    pty:/dev/pts/3
    telnet:127.0.0.1:4000,server=on <-> 127.0.0.1:55728
"""

from __future__ import annotations

import os.path
import re
from typing import TYPE_CHECKING

from kbridge.errors import MachineError
from kbridge.transports.endpoints import Pty, Tcp, Telnet, Unix, parse_endpoint

if TYPE_CHECKING:
    from kbridge.transports.endpoints import Endpoint

_OPTIONS = re.compile(r"(?:,(?:server|abstract|tight|wait)(?:=(?:on|off))?)+$")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_ANY = {"", "0.0.0.0", "::", "*"}  # noqa: S104  # addresses to compare with, not to listen on


def find_chardev(reply: object, console: Endpoint) -> str:
    """Give the label of the character device behind ``console``.

    ``reply`` is what ``query-chardev`` returned.  ``MachineError`` names what there is when none or several
    fit.
    """
    found = [device for device in reply if isinstance(device, dict)] if isinstance(reply, list) else []
    devices = {str(device.get("label", "")): str(device.get("filename", "")) for device in found}
    fitting = [label for label, filename in devices.items() if is_behind(filename, console)]
    if len(fitting) == 1:
        return fitting[0]
    listing = ", ".join(f"{label} ({filename})" for label, filename in sorted(devices.items())) or "none"
    if fitting:
        raise MachineError(
            f"{len(fitting)} character devices of the machine stand behind {console}",
            why=f"it has {listing}",
            todo="name the line by its full address in the configuration",
        )
    raise MachineError(
        f"no character device of the machine stands behind {console}",
        why=f"it has {listing}",
        todo="name the line as QEMU does, or break in through a telnet or rfc2217 line, or by SysRq",
    )


def is_behind(filename: str, console: Endpoint) -> bool:
    """Whether QEMU's text for a character device names the same place as ``console``."""
    kind, _, rest = filename.removeprefix("disconnected:").partition(" <-> ")[0].partition(":")
    place = _OPTIONS.sub("", rest)
    match console:
        case Unix(path):
            return kind == "unix" and _same_path(place, path)
        case Pty(path):
            return kind == "pty" and _same_path(place, path)
        case Tcp(host, port):
            return kind == "tcp" and _same_address(place, host, port)
        case Telnet(host, port):
            return kind == "telnet" and _same_address(place, host, port)
        case _:
            return False


def read_console(text: str) -> Endpoint:
    """Parse an endpoint, turning its ``ValueError`` into ``MachineError``."""
    try:
        return parse_endpoint(text)
    except ValueError as error:
        raise MachineError("BREAK was not sent", why=str(error)) from None


def _same_path(place: str, path: str) -> bool:
    return place == path or os.path.realpath(place) == os.path.realpath(path)


def _same_address(place: str, host: str, port: int) -> bool:
    their_host, _, their_port = place.rpartition(":")
    their_host = their_host.removeprefix("[").removesuffix("]")
    if their_port != str(port):
        return False
    return their_host == host or their_host in _ANY or {their_host, host} <= _LOOPBACK
