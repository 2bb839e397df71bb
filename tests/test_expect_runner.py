"""A run in the relay, with a clock of its own: who does not read, who is slow, and what is left at the end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.task import Clock

from kbridge.console.pen import Pen
from kbridge.console.recorder import Recorder
from kbridge.console.transcript import MAX_ENTRIES
from kbridge.errors import LineError, PenHeldError
from kbridge.expect.runner import ExpectRun
from kbridge.expect.script import read
from kbridge.transports.lines import LineState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class SlowClock(Clock):
    """Time goes by whenever it is asked for."""

    step = 0.0

    def seconds(self) -> float:
        self.rightNow += self.step
        return self.rightNow


class Line:
    """A line that keeps what is written to it."""

    state = LineState.OPEN
    reason = ""
    trouble = ""

    def __init__(self) -> None:
        self.written = b""
        self.listeners: list[Callable[[LineState, str], None]] = []

    def write(self, data: bytes) -> None:
        if self.trouble:
            raise LineError(self.trouble)
        self.written += data

    def subscribe(self, listener: Callable[[LineState, str], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def on_words(self, listener: Callable[[str], None]) -> Callable[[], None]:
        return lambda: None


class Guest:
    """What a run needs of a guest."""

    name = "web1"

    def __init__(self, folder: Path) -> None:
        self.reactor = SlowClock()
        self.recorder = Recorder(folder)
        self.pen = Pen()
        self.line = Line()
        self.there = True

    def run(self, text: str) -> ExpectRun:
        run = ExpectRun(self, read(text), by="ann", alive=lambda: self.there)  # type: ignore[arg-type]
        run.start()
        return run

    def is_free(self) -> bool:
        """Whether nothing of a run is left."""
        watched = self.recorder._watchers
        return not (self.pen.holder or self.line.listeners or watched or self.reactor.getDelayedCalls())


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    yield guest
    guest.recorder.close()


def entries(run: ExpectRun) -> list[dict[str, Any]]:
    found = []
    while (piece := run.next()) is not None:
        found.append(json.loads(piece))
    return found


def test_who_does_not_read_is_told_what_is_missing(guest: Guest) -> None:
    run = guest.run("again:\nwait /x/\ngoto again")
    guest.recorder.append(b"x" * 4000)
    guest.reactor.advance(0)
    first, second, *others = entries(run)
    assert first["kind"] == "skipped"
    assert first["lost"] + 1 + len(others) == 2 * 4000 + 2  # start, and the wait that goes on
    assert second["kind"] in ("waits", "saw")
    assert len(others) == MAX_ENTRIES - 1
    assert entries(run) == []
    run.close()
    assert guest.is_free()


def test_what_came_in_time_counts_though_it_is_read_late(guest: Guest) -> None:
    run = guest.run('wait "login:" 1s')
    guest.reactor.step = 0.002
    guest.recorder.append(b"x" * 60_000 + b"login:")
    for _ in range(10_000):
        if run.outcome is not None:
            break
        guest.reactor.advance(0.001)
    assert run.outcome is not None
    assert run.outcome.state.value == "done"
    assert guest.reactor.rightNow > 2
    assert guest.is_free()


def test_others_have_their_turn(guest: Guest) -> None:
    run = guest.run('wait "login:" 60s')
    guest.reactor.step = 0.001
    turns: list[float] = []
    guest.recorder.append(b"x" * 60_000)
    before = guest.reactor.rightNow
    guest.reactor.callLater(0, lambda: turns.append(guest.reactor.rightNow))
    guest.reactor.advance(0)
    assert turns
    assert turns[0] - before < 0.05
    run.close()


def test_a_loop_that_only_sends_lets_others_have_their_turn(guest: Guest) -> None:
    guest.reactor.step = 0.0001
    turns: list[float] = []
    run = guest.run('pace off\nagain:\nsend "x"\ngoto again')
    assert run.outcome is None
    guest.reactor.callLater(0, lambda: turns.append(guest.reactor.rightNow))
    guest.reactor.advance(0)
    assert turns[0] < 0.1
    for _ in range(10_000):
        guest.reactor.advance(0)
    assert run.outcome is not None
    assert "10000 things" in run.outcome.what
    assert guest.is_free()


def test_one_that_is_in_the_middle_of_a_flood_ends_at_once(guest: Guest) -> None:
    run = guest.run('wait "login:" 60s')
    guest.reactor.step = 0.001
    guest.recorder.append(b"x" * 60_000)
    for listener in tuple(guest.line.listeners):
        listener(LineState.CLOSED, "closed by kbridge")
    assert not run.follows
    assert guest.is_free()
    assert entries(run)[-1]["what"] == "the relay lets web1 go"


def test_a_ring_that_is_overrun_is_said(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    run = guest.run('pace 1 1s\nsend "abc"\nwait "never" 5s')
    guest.recorder.append(b"x" * (6 << 20))
    guest.reactor.pump([1, 1, 1])
    (gap,) = [one for one in entries(run) if one["kind"] == "gap"]
    assert gap["lost"] > 1 << 20
    run.close()
    guest.recorder.close()


def test_keys_that_the_line_refuses_end_it(guest: Guest) -> None:
    guest.line.trouble = "64 KiB wait already"
    run = guest.run('send "x"')
    assert run.outcome is not None
    assert run.outcome.what == "the keys of line 1 could not be sent"
    assert "64 KiB" in run.outcome.why
    assert guest.is_free()


@pytest.mark.parametrize("how", ["close", "gone", "closed", "lost", "taken", "time", "done"])
def test_nothing_is_left_at_the_end(guest: Guest, how: str) -> None:
    run = guest.run('pace 1 10ms\nsend "ab"\nwait "c" 5s')
    assert guest.pen.holder == "ann (expect)"
    with pytest.raises(PenHeldError, match="ann"):
        guest.run("done")
    guest.reactor.pump([0.01, 0.01])
    match how:
        case "close":
            run.close()
        case "gone":
            guest.there = False
            entries(run)
        case "closed" | "lost":
            for listener in tuple(guest.line.listeners):
                listener(LineState(how), "hung up")
        case "taken":
            guest.pen.take("ben", force=True).release()
        case "time":
            guest.reactor.pump([1] * 6)
        case "done":
            guest.recorder.append(b"c")
    assert run.outcome is not None
    assert run.outcome.state.value == {
        "done": "done",
        "lost": "failed",
        "taken": "failed",
        "time": "failed",
    }.get(how, "cancelled")
    assert guest.line.written == b"ab"
    assert not run.follows
    assert guest.is_free()
    run.close()


def test_a_line_that_is_not_open_is_refused(guest: Guest) -> None:
    guest.line.state, guest.line.reason = LineState.LOST, "no such file"  # type: ignore[misc]
    with pytest.raises(LineError, match="no such file"):
        guest.run("done")
    assert guest.is_free()
