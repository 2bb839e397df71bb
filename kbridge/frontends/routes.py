"""The table of the API: every path, method, parameter, answer and problem, once.

``http`` dispatches by it and ``openapi`` describes it, so that the document and what happens cannot differ.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel

from kbridge.frontends import models, operations
from kbridge.frontends.log_stream import PieceReader
from kbridge.frontends.log_text import MEDIA_TYPES
from kbridge.frontends.operations import Call
from kbridge.frontends.problems import Kind
from kbridge.frontends.sessions import SocketSession
from kbridge.frontends.trace_stream import MEDIA_TYPES as TRACE_MEDIA_TYPES

PARAMETER: Final = "{name}"
CRASH: Final = "{id}"
"""The other parameter that a path may have."""
EVERYWHERE: Final = (Kind.BAD_REQUEST, Kind.CROSS_ORIGIN, Kind.TOO_LARGE, Kind.BUSY, Kind.INTERNAL)
"""Problems that any request can meet before or beside what it asks for."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers with one JSON document."""

    run: Callable[[Call], Awaitable[BaseModel]]
    result: type[BaseModel]
    body: type[BaseModel] | None = None


@dataclass(frozen=True, slots=True)
class Streams:
    """Answers with a record, piece by piece.

    The query's ``format`` chooses the media type; what has none is ``json``.
    """

    run: Callable[[Call], PieceReader]
    media_types: Mapping[Any, str]
    body: type[BaseModel] | None = None
    lines: type[BaseModel] = models.LogEntry
    """What the lines of ``json`` are."""


@dataclass(frozen=True, slots=True)
class Upgrades:
    """Becomes a WebSocket; ``sends`` and ``takes`` are the schemas' sources of its text messages."""

    run: Callable[[Call], SocketSession]
    sends: Any
    takes: Any = None
    binary: str = ""
    """What binary messages are; empty where there are none."""


@dataclass(frozen=True, slots=True)
class Describes:
    """Answers with the description of this table."""


Action: TypeAlias = Answers | Streams | Upgrades | Describes


@dataclass(frozen=True, slots=True)
class Route:
    """One row: a method of a path, and what it does.  A path's WebSocket is a row of its own."""

    name: str
    """Unique; the document's ``operationId``."""
    method: str
    path: str
    summary: str
    action: Action
    query: type[BaseModel] | None = None
    problems: tuple[Kind, ...] = field(default=())

    @property
    def has_guest(self) -> bool:
        """Whether the path names a guest."""
        return PARAMETER in self.path

    @property
    def has_crash(self) -> bool:
        """Whether the path names a crash."""
        return CRASH in self.path

    @property
    def all_problems(self) -> tuple[Kind, ...]:
        """Every kind of problem that it may answer with."""
        guest = (Kind.UNKNOWN_GUEST,) if self.has_guest else ()
        return (*EVERYWHERE, *guest, *self.problems)


ROUTES: Final = (
    Route("describe", "GET", "/openapi.json", "This description", Describes()),
    Route("version", "GET", "/version", "Which kbridge this is", Answers(operations.version, models.Version)),
    Route("guests", "GET", "/guests", "All guests", Answers(operations.guests, models.Guests)),
    Route("guest", "GET", "/guests/{name}", "One guest", Answers(operations.guest, models.GuestStatus)),
    Route(
        "power",
        "POST",
        "/guests/{name}/power",
        "Act on the machine",
        Answers(operations.power, models.Done, models.Power),
        problems=(Kind.NOT_CAPABLE, Kind.MACHINE, Kind.REFUSED),
    ),
    Route(
        "break",
        "POST",
        "/guests/{name}/break",
        "Send BREAK on the console, and a SysRq key after it; or bring the kernel to kdb's prompt",
        Answers(operations.break_in, models.Broken, models.Break),
        problems=(Kind.NOT_CAPABLE, Kind.LINE, Kind.PEN_HELD, Kind.MACHINE, Kind.REFUSED),
    ),
    Route(
        "kernel",
        "GET",
        "/guests/{name}/kernel",
        "What the guest's memory shows of its kernel, read while it runs",
        Answers(operations.kernel, models.Kernel),
        problems=(Kind.NOT_CAPABLE, Kind.MACHINE, Kind.REFUSED),
    ),
    Route(
        "log",
        "GET",
        "/guests/{name}/log",
        "The record: console text, gaps and events in order; as a WebSocket, from now on",
        Streams(operations.log, MEDIA_TYPES),
        models.LogQuery,
        problems=(Kind.RECORD,),
    ),
    Route(
        "follow-log",
        "GET",
        "/guests/{name}/log",
        "Follow the record; each entry is a text message",
        Upgrades(operations.follow_log, sends=models.LogEntry),
        models.FollowQuery,
        problems=(Kind.RECORD,),
    ),
    Route(
        "console",
        "GET",
        "/guests/{name}/console",
        "Join the console",
        Upgrades(
            operations.console,
            sends=models.ConsoleNotice,
            takes=models.ConsoleRequest,
            binary="console bytes, both ways",
        ),
        models.ConsoleQuery,
        problems=(Kind.NOT_CAPABLE, Kind.UPGRADE_REQUIRED),
    ),
    Route(
        "expect",
        "POST",
        "/guests/{name}/expect",
        "Run a script on the console; the answer is its transcript, as it comes; who hangs up ends the run",
        Streams(operations.expect, {"json": MEDIA_TYPES["json"]}, models.Expect, models.ExpectEntry),
        problems=(Kind.NOT_CAPABLE, Kind.LINE, Kind.PEN_HELD, Kind.INVALID_SCRIPT),
    ),
    Route(
        "boot",
        "POST",
        "/guests/{name}/boot",
        "Start the guest anew, stop it in its boot loader, change its kernel's command line; the answer is the "
        "transcript, as it comes; who hangs up ends the run",
        Streams(operations.boot, {"json": MEDIA_TYPES["json"]}, models.Boot, models.BootEntry),
        problems=(Kind.NOT_CAPABLE, Kind.LINE, Kind.PEN_HELD, Kind.MACHINE, Kind.REFUSED),
    ),
    Route(
        "boot-secret",
        "POST",
        "/guests/{name}/boot/secret",
        "Give a boot that was started with `ask` the password that it asks for",
        Answers(operations.boot_secret, models.Done, models.BootSecret),
        problems=(Kind.REFUSED,),
    ),
    Route(
        "packets",
        "GET",
        "/guests/{name}/packets",
        "The record of what debuggers, relay and stub said to each other, in words; as a WebSocket, from now on",
        Streams(operations.packets, TRACE_MEDIA_TYPES, lines=models.TraceLine),
        models.TraceQuery,
        problems=(Kind.NOT_CAPABLE,),
    ),
    Route(
        "follow-packets",
        "GET",
        "/guests/{name}/packets",
        "Follow a guest's packets; each is a text message",
        Upgrades(operations.follow_packets, sends=models.TraceLine),
        models.FollowTraceQuery,
        problems=(Kind.NOT_CAPABLE,),
    ),
    Route(
        "crashes",
        "GET",
        "/crashes",
        "The crashes that are kept",
        Answers(operations.crashes, models.Crashes),
        models.CrashesQuery,
    ),
    Route(
        "crash",
        "GET",
        "/crashes/{id}",
        "One crash with its report",
        Answers(operations.crash, models.CrashReport),
        problems=(Kind.UNKNOWN_CRASH,),
    ),
    Route(
        "crash-events",
        "GET",
        "/crash-events",
        "The crashes that are kept, or what happens to them from now on: an object a line",
        Streams(operations.crash_events, {"json": MEDIA_TYPES["json"]}, lines=models.CrashTold),
        models.CrashEventsQuery,
    ),
    Route(
        "capture",
        "POST",
        "/guests/{name}/capture",
        "Take the evidence of a guest now; it goes on afterwards if it ran",
        Answers(operations.capture, models.CrashReport, models.CaptureWish),
        problems=(Kind.NOT_CAPABLE, Kind.MACHINE, Kind.REFUSED),
    ),
    Route(
        "reload",
        "POST",
        "/reload",
        "Read the configuration again and apply what differs",
        Answers(operations.reload, models.Reloaded),
        problems=(Kind.INVALID_CONFIGURATION, Kind.REFUSED),
    ),
)


@dataclass(frozen=True, slots=True)
class Found:
    """The rows of a path, and the guest or crash that it names."""

    rows: tuple[Route, ...]
    guest: str | None
    crash: str | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that the path has."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    def row(self, method: str, *, upgrade: bool) -> Route | None:
        """Return the row for a request, or the only one there is for its method."""
        rows = [row for row in self.rows if row.method == method]
        fitting = [row for row in rows if isinstance(row.action, Upgrades) is upgrade]
        return next(iter(fitting or rows), None)


def find(path: bytes) -> Found | None:
    """Return the rows for a path as it stands in a request line, ``None`` when there are none."""
    parts = path.split(b"/")
    rows = []
    named: dict[str, str] = {}
    for route in ROUTES:
        pattern = route.path.split("/")
        if len(pattern) != len(parts):
            continue
        names = {want: part for want, part in zip(pattern, parts, strict=True) if want in (PARAMETER, CRASH)}
        fixed = all(
            want in names or want == part.decode("latin-1") for want, part in zip(pattern, parts, strict=True)
        )
        if fixed and all(names.values()):
            rows.append(route)
            named = {
                want: unquote_to_bytes(part).decode("utf-8", "backslashreplace")
                for want, part in names.items()
            }
    return Found(tuple(rows), named.get(PARAMETER), named.get(CRASH)) if rows else None
