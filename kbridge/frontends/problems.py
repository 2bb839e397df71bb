"""What can go wrong with a request, each kind with its status, as problem documents (RFC 9457).

{"type": "urn:kbridge:problem:unknown-guest", "title": "There is no such guest", "status": 404,
 "detail": "there is no guest 'web9'", "hint": "`kbridge ls` shows the guests"}
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from kbridge.errors import (
    ConfigError,
    GuestError,
    KbridgeError,
    LineError,
    MachineError,
    PenHeldError,
    RecordError,
    ScriptError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PROBLEM_TYPE = "application/problem+json"
_PREFIX = "urn:kbridge:problem:"


class Kind(Enum):
    """Every kind of problem: its name in ``type``, its status and its title."""

    BAD_REQUEST = ("bad-request", 400, "The request is not valid")
    NOT_FOUND = ("not-found", 404, "There is nothing under this path")
    UNKNOWN_GUEST = ("unknown-guest", 404, "There is no such guest")
    UNKNOWN_CRASH = ("unknown-crash", 404, "There is no such crash")
    METHOD_NOT_ALLOWED = ("method-not-allowed", 405, "This path does not have this method")
    NOT_CAPABLE = ("not-capable", 409, "The guest cannot do this")
    BUSY = ("busy", 503, "The relay has as many connections as it takes")
    TOO_LARGE = ("too-large", 413, "The request's body is too large")
    CROSS_ORIGIN = ("cross-origin", 403, "Requests of web pages are refused")
    UPGRADE_REQUIRED = ("upgrade-required", 426, "This path is a WebSocket")
    INVALID_CONFIGURATION = ("invalid-configuration", 422, "The configuration is not valid")
    INVALID_SCRIPT = ("invalid-script", 422, "The script is not valid")
    LINE = ("line", 409, "The console line refused")
    PEN_HELD = ("pen-held", 409, "Somebody else has the console's pen")
    MACHINE = ("machine", 502, "The machine monitor refused or does not answer")
    RECORD = ("record", 500, "The record cannot be read")
    REFUSED = ("refused", 409, "kbridge refused")
    INTERNAL = ("internal", 500, "kbridge has a bug; its log says where")

    def __init__(self, label: str, status: int, title: str) -> None:
        self.label = label
        self.status = status
        self.title = title


class ProblemError(Exception):
    """A request cannot be served; becomes the answer."""

    def __init__(
        self, kind: Kind, detail: str, *, hint: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.problem = Problem(kind, detail, hint)
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, to be sent."""

    kind: Kind
    detail: str
    hint: str = ""

    def as_json(self) -> dict[str, object]:
        """Return the document; ``hint`` is left out where there is none."""
        document: dict[str, object] = {
            "type": _PREFIX + self.kind.label,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
        }
        return document | ({"hint": self.hint} if self.hint else {})


def problem_of(error: KbridgeError) -> Problem:
    """Return the problem that an error for the operator is."""
    match error:
        case ConfigError():
            kind = Kind.INVALID_CONFIGURATION
        case ScriptError():
            kind = Kind.INVALID_SCRIPT
        case GuestError():
            kind = Kind.NOT_CAPABLE
        case PenHeldError():
            kind = Kind.PEN_HELD
        case LineError():
            kind = Kind.LINE
        case MachineError():
            kind = Kind.MACHINE
        case RecordError():
            kind = Kind.RECORD
        case _:
            kind = Kind.REFUSED
    if isinstance(error, ConfigError | ScriptError):
        # Its text has all mistakes, one a line.
        return Problem(kind, str(error))
    return Problem(kind, f"{error.what}: {error.why}" if error.why else error.what, error.todo)
