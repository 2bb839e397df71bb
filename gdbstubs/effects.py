"""What the protocol asks of the shell that does its I/O: values, executed in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, NewType

from gdbstubs.target import Breakpoint

SessionId = NewType("SessionId", int)
"""A debugger's session, numbered by the shell."""


class ToStub(NamedTuple):
    """Send bytes to the stub."""

    data: bytes


class ToSession(NamedTuple):
    """Send bytes to a debugger."""

    session: SessionId
    data: bytes


class CloseSession(NamedTuple):
    """Close a debugger's connection once everything before was sent."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class ConnectStub:
    """Connect to the stub, starting it first where that is to be done.

    Answer with ``Exchange.stub_connected`` or ``Exchange.stub_failed``.  Connecting stops the guest: whether it
    ran must be found out before.  With ``unless_running`` a guest that runs, or of which nobody can tell, is left
    alone: answer with ``Exchange.guest_runs``.
    """

    unless_running: bool = False


@dataclass(frozen=True, slots=True)
class CloseStub:
    """Close the connection to the stub, then see to it that the guest runs, if ``run``.

    Answer with ``Exchange.stub_left``.  Without ``run`` the guest is left standing.  ``detached``: the stub has let it
    run already, so if it is found paused then somebody else has paused it since.
    """

    run: bool
    detached: bool = False


@dataclass(frozen=True, slots=True)
class QueryMachine:
    """Ask the machine monitor whether the guest runs; answer with ``Exchange.machine_status``."""


@dataclass(frozen=True, slots=True)
class BreakIn:
    """Make a running kernel enter its stub, which takes no interrupt (kgdb); the stub's bytes are the answer.

    The stub has been asked why it stands: if that is answered, there is nothing to do.  Answer with
    ``Exchange.break_in_failed`` where no way led in.
    """


@dataclass(frozen=True, slots=True)
class ReadLive:
    """Read virtual memory of a running guest without stopping it; answer with ``Exchange.live_memory``."""

    token: int
    address: int
    length: int


@dataclass(frozen=True, slots=True)
class Journal:
    """Write down, before anything that follows is sent, what a successor would have to undo.

    ``attached``: whether the stub may hold anything of ours; ``run``: whether the guest is to run after us.
    """

    attached: bool
    run: bool
    breakpoints: tuple[Breakpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """An event for the time line, such as ``debugger.stop``."""

    kind: str
    fields: dict[str, str | int | bool | None] = field(default_factory=dict)


Effect = (
    ToStub
    | ToSession
    | CloseSession
    | ConnectStub
    | CloseStub
    | QueryMachine
    | BreakIn
    | ReadLive
    | Journal
    | Report
)
