"""A boot in the relay, with a clock of its own: pen, time line, the machine's monitor, and what is left at the end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from loaders_lab import FORCE, PLAIN, Grub
from twisted.internet.task import Clock

from kbridge.boot.control import End
from kbridge.boot.running import BootRun, Question
from kbridge.boot.wishes import Wishes
from kbridge.console.log import History
from kbridge.console.pen import Pen
from kbridge.console.recorder import Recorder
from kbridge.errors import GuestError, KbridgeError, LineError, MachineError, PenHeldError
from kbridge.frontends.log_text import LogReader
from kbridge.hypervisors.interface import MachineEvent
from kbridge.transports.lines import LineState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SINGLE = Wishes(single_user=True)


class Line:
    """A line with a loader at its other end."""

    state = LineState.OPEN
    reason = ""

    def __init__(self) -> None:
        self.typed = ""
        self.listeners: list[Callable[[LineState, str], None]] = []

    def write(self, data: bytes) -> None:
        if self.reason:
            raise LineError(self.reason)
        self.typed += data.decode("latin-1")

    def subscribe(self, listener: Callable[[LineState, str], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def on_words(self, _listener: Callable[[str], None]) -> Callable[[], None]:
        return lambda: None


class Monitor:
    """A machine monitor."""

    connected = True
    problem = ""

    def __init__(self) -> None:
        self.listeners: list[Callable[[MachineEvent], None]] = []

    def subscribe(self, listener: Callable[[MachineEvent], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def tell(self, name: str, **data: Any) -> None:
        for listener in tuple(self.listeners):
            listener(MachineEvent(name, data))


class Held:
    """A relay with a debugger."""

    attached = True
    is_kernels_own = False
    sessions = ()
    breakpoints = ()


class Guest:
    """What a run needs of a guest; the loader of the machine that it is."""

    name = "web1"
    relay: Any = None

    def __init__(self, folder: Path) -> None:
        self.reactor = Clock()
        self.recorder = Recorder(folder)
        self.pen = Pen()
        self.boot: Any = None
        self.line: Any = Line()
        self.machine: Any = Monitor()
        self.loader = Grub()
        self.there = True
        self.trouble = ""

    async def power(self, action: str, by: str) -> None:
        assert (action, by) == ("cycle", "ann")
        if self.trouble:
            raise MachineError(self.trouble)
        self.machine.tell("machine.reset")
        self.say(self.loader.reset(self.reactor.seconds()))

    def say(self, text: str) -> None:
        if text:
            self.recorder.append(text.encode("latin-1"))

    def run(self, wishes: Wishes = SINGLE, *, force: bool = False, **options: Any) -> BootRun:
        run = BootRun(self, wishes, by="ann", alive=lambda: self.there, **options)  # type: ignore[arg-type]
        run.start(force=force)
        return run

    def go_on(self, run: BootRun, seconds: float = 1000.0) -> None:
        """Let loader and run work until the run ends."""
        end = self.reactor.seconds() + seconds
        while run.outcome is None and self.reactor.seconds() < end:
            typed, self.line.typed = self.line.typed, ""
            for char in typed:
                self.say(self.loader.key(char, self.reactor.seconds()))
            self.say(self.loader.tick(self.reactor.seconds()))
            self.reactor.advance(0.005 if self.line.typed else 0.02)

    def is_free(self) -> bool:
        """Whether nothing of a run is left."""
        watched = self.recorder._watchers or (self.machine is not None and self.machine.listeners)
        return not (
            self.boot or self.pen.holder or self.line.listeners or watched or self.reactor.getDelayedCalls()
        )

    def told(self) -> list[dict[str, Any]]:
        """What is on the time line."""
        reader = LogReader(History.of(self.recorder), "json", title="web1")
        text = b""
        while (piece := reader.next()) is not None:
            text += piece
        reader.close()
        return [one for one in map(json.loads, text.splitlines()) if one["kind"].startswith("boot.")]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    yield guest
    guest.recorder.close()


def entries(run: BootRun) -> list[dict[str, Any]]:
    found = []
    while (piece := run.next()) is not None:
        found.append(json.loads(piece))
    return found


def test_a_boot_is_told_to_its_peer_and_on_the_time_line(guest: Guest) -> None:
    """States with times, what was seen and sent; the pen is held until then."""
    guest.say("web1 login: ")
    run = guest.run()
    assert guest.pen.holder == "ann (boot)"
    guest.go_on(run)
    assert run.outcome is not None
    assert run.outcome.end is End.DONE, run.outcome
    assert guest.loader.guest.booted == [f"{PLAIN} single {FORCE}"]
    assert guest.is_free()
    shown = entries(run)
    assert not run.follows
    assert [one["kind"] for one in (shown[0], shown[1], shown[-1])] == ["start", "reset", "end"]
    states = [one["state"] for one in shown if one["kind"] == "state"]
    assert states[0] == "loader", "what came before the reset is none of it"
    assert {"menu", "editor", "kernel", "initramfs", "shell"} <= set(states)
    told = guest.told()
    assert [one["kind"] for one in (told[0], told[-1])] == ["boot.start", "boot.end"]
    assert told[0]["single_user"] is True
    assert told[-1]["end"] == "done"
    assert all({"state", "elapsed", "did"} <= set(one) for one in told[1:-1])
    assert {"state", "sent", "note", "reset"} == {one["did"] for one in told[1:-1]}


def test_secrets_are_recorded_nowhere(guest: Guest) -> None:
    """They are typed all the same."""
    guest.loader = Grub(password=("admin", "hunter2"))
    guest.loader.guest.asks = "swordfish"
    run = guest.run(user="admin", secrets={"loader": "hunter2", "root": "swordfish"})
    guest.go_on(run)
    assert run.outcome is not None
    assert run.outcome.end is End.DONE, run.outcome
    said = json.dumps([entries(run), guest.told()])
    assert "hunter2" not in said
    assert "swordfish" not in said
    assert "***" in said


def test_what_a_run_asks_for_is_given_by_its_name(guest: Guest) -> None:
    """The question can be seen on the guest; an answer to another question is refused; it is recorded nowhere."""
    guest.loader = Grub(password=("root", "hunter2"))
    run = guest.run(may_ask=True)
    guest.go_on(run, 5.0)
    question = run.question
    assert question is not None
    assert guest.boot is run
    assert question.secret == "loader"
    asks = next(one for one in entries(run) if one["kind"] == "asks")
    assert (asks["asks"], asks["user"], asks["seconds"]) == ("loader", "root", 120.0)
    for other in (Question("another", "loader"), Question(question.run, "root")):
        with pytest.raises(KbridgeError, match="does not ask for that now"):
            run.answer(other, "x")
    run.answer(question, "hunter2")
    assert run.question is None
    guest.go_on(run)
    assert run.outcome is not None
    assert run.outcome.end is End.DONE, run.outcome
    assert guest.is_free()
    with pytest.raises(KbridgeError, match="it asks for nothing"):
        run.answer(question, "hunter2")
    told = json.dumps([entries(run), guest.told()])
    assert "hunter2" not in told
    assert '"did": "asks"' in told


def test_a_guest_that_a_debugger_holds_is_reset_by_force_only(guest: Guest) -> None:
    """Nothing was touched."""
    guest.relay = Held()
    with pytest.raises(GuestError, match="a debugger holds it"):
        guest.run()
    assert guest.is_free()
    assert guest.loader.resets == 0
    run = guest.run(force=True)
    guest.go_on(run)
    assert guest.loader.resets == 1


def test_what_it_takes_is_said_before_anything_is_touched(guest: Guest) -> None:
    """A pen, a line, a monitor."""
    grip = guest.pen.take("ben")
    with pytest.raises(PenHeldError, match="ben"):
        guest.run()
    grip.release()
    guest.machine.connected = False
    with pytest.raises(GuestError, match="monitor does not answer"):
        guest.run()
    guest.machine = None
    with pytest.raises(GuestError, match="no machine monitor"):
        guest.run()
    guest.line.state = LineState.LOST
    with pytest.raises(LineError, match="is lost"):
        guest.run()
    guest.line = None
    with pytest.raises(GuestError, match="has no console"):
        guest.run()
    assert guest.loader.resets == 0


def test_without_a_monitor_somebody_else_restarts_it(guest: Guest) -> None:
    """A plain line is enough."""
    guest.machine = None
    run = guest.run(reset=False)
    guest.say("[  100.000000] reboot: Restarting system\r\n")
    guest.say(guest.loader.reset(guest.reactor.seconds()))
    guest.go_on(run)
    assert run.outcome is not None
    assert run.outcome.end is End.DONE, run.outcome
    assert guest.is_free()


@pytest.mark.parametrize(
    ("happens", "what"),
    [
        (lambda guest, _run: guest.machine.tell("machine.shutdown"), "switched off"),
        (lambda guest, _run: guest.machine.tell("machine.lost", why="gone"), "the machine is gone"),
        (lambda guest, _run: guest.machine.tell("machine.stop", cause="panic"), "reported a panic"),
        (lambda guest, _run: guest.line.listeners[0](LineState.LOST, "unplugged"), "the line was lost"),
        (lambda guest, _run: guest.line.listeners[0](LineState.CLOSED, ""), "lets web1 go"),
        (lambda guest, _run: guest.pen.take("ben", force=True).release(), "ben took the pen"),
        (lambda _guest, run: run.close(), "is gone"),
        (lambda _guest, run: run.cancel("enough"), "enough"),
    ],
)
def test_however_it_ends_nothing_is_left(
    guest: Guest, happens: Callable[[Guest, BootRun], None], what: str
) -> None:
    """In the midst of a menu."""
    run = guest.run()
    guest.go_on(run, 0.51)
    assert run.outcome is None
    happens(guest, run)
    assert run.outcome is not None
    assert run.outcome.end is not End.DONE
    assert what in run.outcome.what
    assert guest.is_free()
    assert guest.told()[-1]["kind"] == "boot.end"


def test_a_reset_that_is_refused_ends_it(guest: Guest) -> None:
    """With the monitor's words."""
    guest.trouble = "QEMU says no"
    run = guest.run()
    assert run.outcome is not None
    assert "QEMU says no" in run.outcome.why
    assert guest.is_free()


def test_a_guest_that_vanishes_ends_it(guest: Guest) -> None:
    """Seen when the peer asks for more."""
    run = guest.run()
    guest.there = False
    assert entries(run)[-1]["what"] == "the relay lets web1 go"
    assert guest.is_free()
