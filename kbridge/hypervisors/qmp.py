"""QEMU's machine protocol (QMP) without input or output: bytes in, messages out.

In:         bytes of the monitor's socket, in any pieces (``receive``); commands to send (``command``).
Out:        ``Greeting``, ``Returned``, ``Refused``, ``Event`` in the order sent; bytes of commands.
States:     GREETING → NEGOTIATING → READY; any → BROKEN at the first malformed line, for good.
Invariant:  each reply belongs to exactly one command sent before it; no event is lost, whatever the split;
            what stood before a malformed line is still handed out; memory is bounded by ``MAX_LINE_BYTES``
            and one read.

Source: QEMU's ``docs/interop/qmp-spec.txt``: one JSON object a line, ended by CR LF, UTF-8.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn

from kbridge.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_LINE_BYTES = 4 << 20
"""Longest message accepted.  ``query-qmp-schema``, the longest reply of QEMU 7.2, has about 0.2 MB."""

MAX_NESTING = 64
"""Deepest nesting of objects and arrays accepted."""

MAX_OUTSTANDING = 256
"""Most commands that may wait for their reply at a time."""

_BRACKETS_OUTSIDE_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class QmpProtocolError(MachineError):
    """The monitor sent what is not QMP; this connection is of no more use."""


class QmpPhase(Enum):
    """How far a connection has come."""

    GREETING = "waiting for the greeting"
    NEGOTIATING = "greeted, capabilities not yet negotiated"
    READY = "ready for commands"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first message: ``{"QMP": {"version": …, "capabilities": ["oob"]}}``."""

    version: str
    """``7.2.22``, or empty when the monitor names none."""
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Returned:
    """A command was done: ``{"return": {}, "id": 7}``."""

    id: int
    value: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """A command failed: ``{"error": {"class": "GenericError", "desc": "…"}, "id": 7}``."""

    id: int
    kind: str
    """QEMU's error class; nearly always ``GenericError``, so the text is what tells."""
    description: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened: ``{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}``."""

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    time: float = 0.0
    """QEMU's wall clock in seconds since 1970; 0 when it told none (its clock failed)."""


QmpMessage = Greeting | Returned | Refused | Event


class QmpConnection:
    """One client's end of a QMP connection.

    After ``QmpProtocolError`` it is BROKEN: every later ``command`` and look at its messages raises again.
    """

    def __init__(self, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._buffer = bytearray()
        self._searched = 0
        self._next_id = 1
        self._outstanding: set[int] = set()
        self._negotiation: int | None = None
        self._phase = QmpPhase.GREETING
        self._fault = ""

    @property
    def phase(self) -> QmpPhase:
        """How far the connection has come."""
        return self._phase

    @property
    def outstanding(self) -> frozenset[int]:
        """The ids of commands that have no reply yet."""
        return frozenset(self._outstanding)

    def command(self, name: str, arguments: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """Give the id and the bytes of a command: ``{"execute": "stop", "id": 7}``.

        ``ValueError`` when the phase forbids it (``qmp_capabilities`` once after the greeting, all others
        after its reply): a bug of the caller.  ``MachineError`` when ``MAX_OUTSTANDING`` replies are awaited.
        """
        if self._phase is QmpPhase.BROKEN:
            self._broken(self._fault)
        negotiates = name == "qmp_capabilities"
        wanted = QmpPhase.NEGOTIATING if negotiates else QmpPhase.READY
        if self._phase is not wanted or (negotiates and self._negotiation is not None):
            raise ValueError(f"QMP command {name} while {self._phase.value}")
        if len(self._outstanding) >= MAX_OUTSTANDING:
            raise MachineError(
                f"{name} was not sent",
                why=f"{MAX_OUTSTANDING} commands wait for the machine monitor's reply",
                todo="see whether the QEMU process hangs",
            )
        number = self._next_id
        self._next_id += 1
        message: dict[str, Any] = {"execute": name, "id": number}
        if arguments:
            message["arguments"] = dict(arguments)
        encoded = json.dumps(message).encode("ascii") + b"\r\n"
        self._outstanding.add(number)
        if negotiates:
            self._negotiation = number
        return number, encoded

    def receive(self, data: bytes) -> None:
        """Take bytes as they came; ``messages`` then hands out what is complete."""
        if self._phase is not QmpPhase.BROKEN:
            self._buffer += data

    def messages(self) -> Iterator[QmpMessage]:
        """Hand out each complete message once, then stop until more bytes came.

        Raises ``QmpProtocolError`` where a message is malformed, too long or out of place, after all
        before it.
        """
        while True:
            if self._phase is QmpPhase.BROKEN:
                self._broken(self._fault)
            line = self._next_line()
            if line is None:
                return
            if line.strip():
                yield self._interpret(self._decode(line))

    def _next_line(self) -> bytes | None:
        end = self._buffer.find(b"\n", self._searched)
        length = end if end >= 0 else len(self._buffer)
        if length > self._max_line_bytes:
            self._broken(f"a message of more than {self._max_line_bytes} bytes")
        if end < 0:
            self._searched = length
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    def _decode(self, line: bytes) -> dict[str, Any]:
        if line.count(b"[") + line.count(b"{") > MAX_NESTING and _depth(line) > MAX_NESTING:
            self._broken(f"a message nested more than {MAX_NESTING} deep")
        try:
            value = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
            if _SURROGATE.search(line):
                # A lone half of a surrogate pair would fail far from here, when the text is printed.
                json.dumps(value, ensure_ascii=False).encode("utf-8")
        except ValueError as error:
            self._broken(f"a line that is not JSON ({error}): {_shown(line)}")
        if not isinstance(value, dict):
            self._broken(f"a message that is not an object: {_shown(line)}")
        return value

    def _interpret(self, message: dict[str, Any]) -> QmpMessage:
        if self._phase is QmpPhase.GREETING:
            return self._greeting(message)
        if "event" in message:
            return self._event(message)
        if "return" in message or "error" in message:
            return self._reply(message)
        return self._broken(f"a message of no known kind: {_shown(json.dumps(message).encode())}")

    def _greeting(self, message: dict[str, Any]) -> Greeting:
        body = message.get("QMP")
        if not isinstance(body, dict):
            self._broken("no greeting: this socket does not speak QMP (a human monitor, or another service?)")
        capabilities = body.get("capabilities", [])
        if not isinstance(capabilities, list):
            self._broken("a greeting whose capabilities are no list")
        self._phase = QmpPhase.NEGOTIATING
        return Greeting(_version(body.get("version")), tuple(str(name) for name in capabilities))

    def _event(self, message: dict[str, Any]) -> Event:
        name, data, stamp = message["event"], message.get("data", {}), message.get("timestamp", {})
        if not isinstance(name, str) or not isinstance(data, dict) or not isinstance(stamp, dict):
            self._broken("an event whose name, data or time stamp has another type")
        seconds, micros = stamp.get("seconds", -1), stamp.get("microseconds", -1)
        known = (
            _is_whole(seconds) and _is_whole(micros) and 0 <= seconds < 1 << 40 and 0 <= micros < 1_000_000
        )
        return Event(name, data, seconds + micros / 1e6 if known else 0.0)

    def _reply(self, message: dict[str, Any]) -> Returned | Refused:
        number = message.get("id")
        if not _is_whole(number) or number not in self._outstanding:
            # QEMU leaves the id out when it could not read the command at all.
            self._broken(f"a reply to no command of ours: {_shown(json.dumps(message).encode())}")
        self._outstanding.discard(number)
        if "return" in message:
            if number == self._negotiation:
                self._phase = QmpPhase.READY
            return Returned(number, message["return"])
        error = message["error"]
        if not isinstance(error, dict):
            self._broken("an error that is not an object")
        return Refused(number, str(error.get("class", "")), str(error.get("desc", "")))

    def _broken(self, fault: str) -> NoReturn:
        self._phase = QmpPhase.BROKEN
        self._fault = fault
        self._buffer.clear()
        raise QmpProtocolError("the machine monitor broke its protocol", why=f"it sent {fault}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _version(value: object) -> str:
    numbers = value.get("qemu") if isinstance(value, dict) else None
    if not isinstance(numbers, dict):
        return ""
    parts = [numbers.get(key) for key in ("major", "minor", "micro")]
    return ".".join(str(part) for part in parts) if all(map(_is_whole, parts)) else ""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _depth(line: bytes) -> int:
    depth = deepest = 0
    for match in _BRACKETS_OUTSIDE_STRINGS.finditer(line):
        first = match.group()[:1]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in b"]}":
            depth -= 1
    return deepest


def _shown(line: bytes) -> str:
    return ascii(line[:80].decode("latin-1"))
