"""Where a line or a stub is, as text in the configuration and as a value.

    unix:/path   tcp:host:port   pty:/dev/pts/3   serial:/dev/ttyS0:115200   telnet:host:port
    rfc2217:host:port[:baud]

An IPv6 address stands in brackets: ``tcp:[::1]:4000``.  ``str()`` of a value is the text that makes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final

FORMS: Final = (
    "unix:/path, tcp:host:port, pty:/dev/pts/N, serial:/dev/ttyS0:baud, telnet:host:port, "
    "rfc2217:host:port[:baud]"
)
MAX_UNIX_PATH_BYTES: Final = 107
MAX_BAUD: Final = 4_000_000
_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})")
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,15})?")


class Break(Enum):
    """How BREAK goes over a line."""

    SERIAL = "serial"
    """A serial device holds its wire."""
    TELNET = "telnet"
    """A telnet command (RFC 854); what the server does for how long is its own affair."""
    RFC2217 = "rfc2217"
    """A console server is told when BREAK begins and ends (RFC 2217)."""


@dataclass(frozen=True, slots=True)
class Unix:
    """A unix stream socket that the other side listens on."""

    breaks: ClassVar[tuple[Break, ...]] = ()
    """The ways in which BREAK goes over such a line, the best first."""
    path: str

    def __post_init__(self) -> None:
        _check_path(self.path)
        if len(self.path.encode()) > MAX_UNIX_PATH_BYTES:
            raise ValueError(
                f"the socket path is {len(self.path.encode())} bytes long; {MAX_UNIX_PATH_BYTES} fit"
            )

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class Tcp:
    """A TCP port that the other side listens on."""

    breaks: ClassVar[tuple[Break, ...]] = ()
    host: str
    port: int

    def __post_init__(self) -> None:
        _check_host(self.host, self.port)

    def __str__(self) -> str:
        return f"tcp:{_host_text(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class Pty:
    """The slave of a pseudo terminal, such as QEMU's ``-chardev pty`` names."""

    breaks: ClassVar[tuple[Break, ...]] = ()
    path: str

    def __post_init__(self) -> None:
        _check_path(self.path)

    def __str__(self) -> str:
        return f"pty:{self.path}"


@dataclass(frozen=True, slots=True)
class Serial:
    """A serial device: 8 data bits, no parity, 1 stop bit, ``baud`` bits a second."""

    breaks: ClassVar[tuple[Break, ...]] = (Break.SERIAL,)
    device: str
    baud: int

    def __post_init__(self) -> None:
        _check_path(self.device)
        _check_baud(self.baud)

    def __str__(self) -> str:
        return f"serial:{self.device}:{self.baud}"


@dataclass(frozen=True, slots=True)
class Telnet:
    """A telnet server, such as QEMU's ``-chardev socket,telnet=on``."""

    breaks: ClassVar[tuple[Break, ...]] = (Break.TELNET,)
    host: str
    port: int

    def __post_init__(self) -> None:
        _check_host(self.host, self.port)

    def __str__(self) -> str:
        return f"telnet:{_host_text(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class Rfc2217:
    """A console server that lets its clients set the serial port (RFC 2217).

    ``baud`` ``None`` leaves its speed as it is.
    """

    breaks: ClassVar[tuple[Break, ...]] = (Break.RFC2217, Break.TELNET)
    host: str
    port: int
    baud: int | None = None

    def __post_init__(self) -> None:
        _check_host(self.host, self.port)
        if self.baud is not None:
            _check_baud(self.baud)

    def __str__(self) -> str:
        speed = "" if self.baud is None else f":{self.baud}"
        return f"rfc2217:{_host_text(self.host)}:{self.port}{speed}"


Endpoint = Unix | Tcp | Pty | Serial | Telnet | Rfc2217


def parse_endpoint(text: str) -> Endpoint:
    """Return the endpoint that ``text`` names.

    Raises ``ValueError`` whose text says what is wrong with it and what forms there are.
    """
    try:
        return _parse(text)
    except ValueError as error:
        shown = text if len(text) <= 200 else text[:200] + "…"
        raise ValueError(f"{shown!r} is no endpoint: {error}; the forms are {FORMS}") from None


def _parse(text: str) -> Endpoint:
    kind, colon, rest = text.partition(":")
    if not colon:
        raise ValueError("it has no kind before a colon")
    match kind:
        case "unix":
            return Unix(rest)
        case "pty":
            return Pty(rest)
        case "serial":
            device, _, baud = rest.rpartition(":")
            if not device:
                raise ValueError("a serial device needs its speed, as in serial:/dev/ttyS0:115200")
            return Serial(device, _number(baud, "speed"))
        case "tcp" | "telnet":
            host, port, more = _host_and_port(rest)
            if more is not None:
                raise ValueError(f"there is something after the port: {more!r}")
            return Tcp(host, port) if kind == "tcp" else Telnet(host, port)
        case "rfc2217":
            host, port, more = _host_and_port(rest)
            return Rfc2217(host, port, None if more is None else _number(more, "speed"))
        case _:
            raise ValueError(f"there is no kind {kind!r}")


def _host_and_port(text: str) -> tuple[str, int, str | None]:
    """Split ``host:port[:more]``."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise ValueError("after an address in brackets comes ]:port")
        if ":" not in host:
            raise ValueError("only an IPv6 address stands in brackets")
        rest = rest[1:]
    else:
        host, colon, rest = text.partition(":")
        if not colon:
            raise ValueError("the port is missing")
        if rest.count(":") > 1:
            raise ValueError("an IPv6 address stands in brackets")
    port, colon, more = rest.partition(":")
    return host, _number(port, "port"), more if colon else None


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or (text.startswith("0") and len(text) > 1):
        raise ValueError(f"the {what} is not a number: {text!r}")
    return int(text)


def _check_path(path: str) -> None:
    if not path.startswith("/"):
        raise ValueError(f"the path must start with /, not {path!r}")
    if "\0" in path:
        raise ValueError("the path has a zero byte in it")


def _check_host(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise ValueError(f"the port must be 1 to 65535, not {port}")
    if not (_IPV6.fullmatch(host) if ":" in host else _HOST.fullmatch(host)):
        raise ValueError(f"the host is no name or address: {host!r}")


def _check_baud(baud: int) -> None:
    if not 1 <= baud <= MAX_BAUD:
        raise ValueError(f"the speed must be 1 to {MAX_BAUD}, not {baud}")


def _host_text(host: str) -> str:
    return f"[{host}]" if ":" in host else host
