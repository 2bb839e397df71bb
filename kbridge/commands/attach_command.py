"""``kbridge attach``."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from typing import Final, NoReturn
from urllib.parse import urlsplit

import click

from kbridge.control import CONNECT_SECONDS, guest_path, relay
from kbridge.errors import GuestError, KbridgeError
from kbridge.near import pump
from kbridge.options import relay_options
from kbridge.transports.endpoints import Tcp, Unix, parse_endpoint

_GUEST: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,30}")
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_HOST: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}")


@click.command("attach")
@relay_options
@click.argument("where")
def command(control: str | None, config: str | None, where: str) -> None:
    """Connect stdin and stdout to a stub: for `target remote |`.

    \b
    WHERE is  a guest's name                  a guest of the relay on this host
              ssh://user@host/guest           a guest of the relay on another host
              unix:/path or tcp:host:port     any stub; no relay is needed

    In gdb: `target remote | kbridge attach web1`.  Ends when gdb ends, or the stub.
    """  # noqa: D301 (click's mark for a text that is not to be filled)
    if where.startswith("ssh:"):
        over_ssh(where)
    stub = connect(where) if ":" in where else _guest(control, config, where)
    # Ctrl-C is meant for gdb, which passes it on as a packet.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stub:
        pump(sys.stdin.fileno(), sys.stdout.fileno(), stub)


def ssh_arguments(where: str) -> list[str]:
    """Return the command that runs the other host's relay; raises ``KbridgeError`` for a strange ``where``."""
    try:
        parts = urlsplit(where)
        guest, host, user, port = parts.path.lstrip("/"), parts.hostname or "", parts.username, parts.port
    except ValueError as error:
        raise KbridgeError(f"{where!r} names no host", why=str(error)) from error
    fits = _GUEST.fullmatch(guest) and _HOST.fullmatch(host) and (user is None or _USER.fullmatch(user))
    if not fits or parts.query or parts.fragment or parts.password:
        raise KbridgeError(f"{where!r} names no guest on a host", todo="write ssh://user@host/guest")
    return [
        "ssh",
        *(("-p", str(port)) if port is not None else ()),
        # No terminal and no escapes: what passes is binary.
        *("-T", "-e", "none", "--", host if user is None else f"{user}@{host}"),
        *("kbridge", "attach", guest),
    ]


def over_ssh(where: str) -> NoReturn:
    """Become the ssh that runs the other host's relay."""
    arguments = ssh_arguments(where)
    try:
        os.execvp(arguments[0], arguments)  # noqa: S606 (no shell is wanted)
    except OSError as error:
        raise KbridgeError(
            "cannot run ssh", why=error.strerror or str(error), todo="apt-get install openssh-client"
        ) from error


def connect(where: str) -> socket.socket:
    """Connect to a unix or tcp endpoint; raises ``KbridgeError``."""
    try:
        endpoint = parse_endpoint(where)
    except ValueError as error:
        raise KbridgeError(str(error)) from None
    try:
        match endpoint:
            case Unix(path):
                stub = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                stub.settimeout(CONNECT_SECONDS)
                stub.connect(path)
            case Tcp(host, port):
                stub = socket.create_connection((host, port), CONNECT_SECONDS)
                # Requests are small and each is waited for.
                stub.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            case _:
                raise KbridgeError(f"{where} is no stub's socket", todo="give unix:/path or tcp:host:port")
    except OSError as error:
        raise KbridgeError(
            f"cannot connect to {where}", why=error.strerror or str(error), todo="is the guest running?"
        ) from error
    return stub


def _guest(control: str | None, config: str | None, name: str) -> socket.socket:
    path = relay(control, config).get(guest_path(name))["sockets"]["gdb"]
    if path is None:
        raise GuestError(f"{name} has no debug stub", todo="configure `qmp` or `stub` for it")
    return connect(f"unix:{path}")
