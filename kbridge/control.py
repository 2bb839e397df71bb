"""The client of the control socket: what the commands talk to a relay with.  It blocks, and needs no reactor.

A relay that cannot be reached is a ``RelayDown``; a problem document becomes a ``Refused`` with its words.
"""

from __future__ import annotations

import json
import os
import socket
import tomllib
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from kbridge import places
from kbridge.errors import ConfigError, KbridgeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 60.0
"""A relay's own deadlines are shorter: its monitor has 10 s for a command."""
MAX_ANSWER_BYTES: Final = 64 << 20
PIECE_BYTES: Final = 65536


class RelayDown(KbridgeError):
    """No relay answers at the control socket, or it went away."""

    began = False
    """Whether part of an answer had come before."""


class Refused(KbridgeError):
    """The relay answered with a problem."""

    def __init__(self, status: int, kind: str, detail: str, hint: str) -> None:
        super().__init__(detail, todo=hint)
        self.status = status
        self.kind = kind
        """The problem's name, such as ``unknown-guest``."""


class Directories:
    """Where a relay's sockets and records are, read out of its configuration without judging that."""

    def __init__(self, config: str | None, env: Mapping[str, str]) -> None:
        state, runtime = places.default_dirs(env, uid=os.geteuid())
        relay = _relay_table(config, env)
        self.state = _folder(relay, "state_dir", state)
        self.runtime = _folder(relay, "runtime_dir", runtime)


def _relay_table(config: str | None, env: Mapping[str, str]) -> dict[str, Any]:
    try:
        path = places.find(config, env)
    except ConfigError:
        # None is needed: a relay may be at the default place.
        return {}
    try:
        table = tomllib.loads(path.read_text("utf-8")).get("relay", {})
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read", why=str(error), todo="`kbridge config check` names its mistakes"
        ) from error
    return table if isinstance(table, dict) else {}


def _folder(relay: Mapping[str, Any], key: str, default: Path) -> Path:
    value = relay.get(key)
    return Path(value) if isinstance(value, str) else default


def control_path(control: str | None, config: str | None, env: Mapping[str, str]) -> Path:
    """Return the control socket: the one named, or the one of the configuration, or the default one."""
    if control is None:
        return Directories(config, env).runtime / "control"
    kind, colon, path = control.partition(":")
    if kind == "unix" and path.startswith("/"):
        return Path(path)
    if control.startswith("/"):
        return Path(control)
    raise KbridgeError(
        f"{control!r} is no control socket",
        why="it is reached over a unix socket only" if colon else "",
        todo="give unix:/path/to/control",
    )


class Control:
    """A relay, by the path of its control socket; each request has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, path: str, **query: str | int | None) -> dict[str, Any]:
        """Return the document at ``path``; raises ``RelayDown`` or ``Refused``."""
        return self._document("GET", path + _query(query), None)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Have something done; raises ``RelayDown`` or ``Refused``."""
        return self._document("POST", path, None if body is None else json.dumps(body).encode())

    def stream(self, path: str, **query: str | int | None) -> Iterator[bytes]:
        """Yield an answer as it comes, for as long as it comes; raises ``RelayDown`` or ``Refused``."""
        yield from self._stream("GET", path + _query(query), None)

    def run(self, path: str, body: Mapping[str, Any]) -> Iterator[bytes]:
        """Have something done that goes on while its answer comes, and ends when the caller stops taking it.

        Raises ``RelayDown`` or ``Refused``.
        """
        yield from self._stream("POST", path, json.dumps(body).encode())

    def _stream(self, method: str, path: str, body: bytes | None) -> Iterator[bytes]:
        with self.connect() as connection:
            answer = _ask(connection, method, path, body)
            connection.settimeout(None)
            try:
                while piece := answer.read1(PIECE_BYTES):
                    yield piece
            except (OSError, HTTPException) as error:
                down = RelayDown(
                    "the relay went away before the end", why=str(error), todo="what came so far is right"
                )
                down.began = True
                raise down from error

    def connect(self) -> socket.socket:
        """Return a connection; raises ``RelayDown``."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(str(self.path))
        except OSError as error:
            connection.close()
            raise RelayDown(
                f"no relay answers at {self.path}",
                why=error.strerror or str(error),
                todo="start it with `kbridge up`, or name its socket by --control",
            ) from error
        connection.settimeout(ANSWER_SECONDS)
        return connection

    def _document(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        with self.connect() as connection:
            answer = _ask(connection, method, path, body)
            try:
                data = answer.read(MAX_ANSWER_BYTES)
                document = json.loads(data)
            except (OSError, HTTPException, ValueError) as error:
                raise RelayDown(f"the answer of {self.path} cannot be read", why=str(error)) from error
        if not isinstance(document, dict):
            raise RelayDown(f"the answer of {self.path} is not what kbridge answers")
        return document


def relay(control: str | None, config: str | None) -> Control:
    """Return the relay that the options ``--control`` and ``--config`` mean."""
    return Control(control_path(control, config, os.environ))


def guest_path(guest: str, rest: str = "") -> str:
    """Return the API's path of a guest."""
    return f"/guests/{quote(guest, safe='')}{rest}"


def _query(fields: Mapping[str, str | int | None]) -> str:
    given = {name: value for name, value in fields.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def _ask(connection: socket.socket, method: str, path: str, body: bytes | None) -> HTTPResponse:
    client = HTTPConnection("localhost")
    client.sock = connection
    headers = {"Connection": "close"} | ({"Content-Type": "application/json"} if body is not None else {})
    try:
        try:
            client.request(method, path, body, headers)
        except (BrokenPipeError, ConnectionResetError):
            # A relay that has too many connections, or wants no such body, answers before it has read all.
            pass
        answer = HTTPResponse(connection, method=method)
        answer.begin()
    except TimeoutError as error:
        raise RelayDown(f"the relay did not answer within {ANSWER_SECONDS:g} s") from error
    except (OSError, HTTPException) as error:
        raise RelayDown("the relay went away without an answer", why=str(error)) from error
    if answer.status >= 400:
        raise refused(answer.status, answer.read(MAX_ANSWER_BYTES))
    return answer


def refused(status: int, body: bytes) -> Refused:
    """Return the error that a problem document is."""
    try:
        problem = json.loads(body)
        kind = str(problem["type"]).rpartition(":")[2]
        return Refused(status, kind, str(problem["detail"]), str(problem.get("hint", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Refused(status, "", f"the relay answered with status {status}", "")
