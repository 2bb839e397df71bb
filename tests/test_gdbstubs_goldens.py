"""Real debuggers on a real stub, recorded: the exchange must say to both what it said then.

`tests/rsp/record.py` makes the recordings anew where that is meant to change.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rsp import goldens

from gdbstubs.dialects import QEMU
from gdbstubs.effects import (
    CloseSession,
    CloseStub,
    ConnectStub,
    Effect,
    QueryMachine,
    SessionId,
    ToSession,
    ToStub,
)
from gdbstubs.exchange import Exchange
from gdbstubs.sharing import MachineStatus, Phase

YES = {"yes": True, "no": False, "running": True, "paused": False}


def outcome(effect: Effect) -> tuple[str, bytes] | None:
    match effect:
        case ToStub(data):
            return "stub", data
        case ToSession(number, data):
            return f"session {number}", data
        case CloseSession(number):
            return f"close session {number}", b""
        case ConnectStub():
            return "connect", b""
        case CloseStub(run):
            return f"close {'run' if run else 'rest'}", b""
        case QueryMachine():
            return "query", b""
        case _:
            return None


def recorded(text: str) -> tuple[str, bytes]:
    kind, _, rest = text.partition(" ")
    if kind == "stub":
        return kind, goldens.to_bytes(rest)
    if kind == "session":
        number, _, rest = rest.partition(" ")
        return f"session {number}", goldens.to_bytes(rest)
    return text, b""


def play(exchange: Exchange, event: str) -> None:
    name, _, rest = event.partition(" ")
    first, _, text = rest.partition(" ")
    match name:
        case "session_opened":
            assert exchange.session_opened(SessionId(int(first)), text, 0.0)
        case "session_data":
            exchange.session_data(SessionId(int(first)), goldens.to_bytes(text), 0.0)
        case "session_closed":
            exchange.session_closed(SessionId(int(first)), 0.0)
        case "stub_connected":
            exchange.stub_connected(0.0, running=YES[first])
        case "stub_data":
            exchange.stub_data(goldens.to_bytes(rest), 0.0)
        case "stub_closed":
            exchange.stub_closed("recorded", 0.0)
        case "stub_left":
            exchange.stub_left(0.0)
        case "machine_runs":
            exchange.machine_runs(0.0, runs=YES[first])
        case "machine_status":
            exchange.machine_status(MachineStatus(YES[first], text), 0.0)
        case "expire":
            exchange.expire(float(first))
        case _:
            raise AssertionError(f"{event!r} cannot be played")


@pytest.mark.parametrize("path", goldens.paths(), ids=lambda path: path.stem)
def test_what_was_said_then_is_said_now(path: Path) -> None:
    exchange = Exchange("web1", QEMU, monitor=lambda session, command, done: done(f"you said {command}\n"))
    for step in goldens.read(path):
        play(exchange, step.event)
        said = [one for effect in exchange.effects if (one := outcome(effect)) is not None]
        exchange.effects.clear()
        assert said == [recorded(one) for one in step.outcome], f"{path.name}:{step.line}"
    assert exchange.sharing.phase is Phase.ABSENT
    assert exchange.client.inserted == set()


def test_there_are_recordings_of_each_debugger() -> None:
    assert {path.stem.rpartition("-")[0] for path in goldens.paths()} == {"gdb-13", "gdb-18", "lldb-23"}
