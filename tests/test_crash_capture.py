"""Captures that go wrong: each is kept, says what it lacks, and keeps no other from its turn; with fakes of guests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
from capture_lab import FakeMachine, controlled_by, fake_guest, now_ns
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from kbridge.crash import capture as captures
from kbridge.crash import desk as desks
from kbridge.crash.capture import Capture
from kbridge.crash.desk import MOST_AT_ONCE, Desk
from kbridge.crash.facts import How, Noticed
from kbridge.crash.knowledge import Library
from kbridge.crash.store import Store, read_document
from kbridge.errors import GuestError
from kbridge.hypervisors.interface import RunState
from symbols.reads import Search

_Result = TypeVar("_Result")


class Looking:
    """Evidence of a guest: two processors, and memory that has nothing; ``fails`` from a question on, or ``hangs``."""

    def __init__(self, fails: str = "", hangs: bool = False) -> None:
        self.fails = fails
        self.hangs = hangs
        self.closed = 0

    async def processors(self) -> list[tuple[int, dict[str, int]]]:
        if self.fails == "registers":
            raise GuestError("the stub went away")
        return [(0, {"rip": 0xFFFF_FFFF_8100_0000, "rsp": 8}), (1, {"rip": 0x401000, "cs": 0x33})]

    async def run(self, search: Search[_Result]) -> _Result:
        if self.hangs:
            await Deferred()
        if self.fails:
            raise GuestError("the stub went away")
        try:
            batch = next(search)
            while True:
                batch = search.send(tuple(b"" for _ in batch))
        except StopIteration as done:
            result: _Result = done.value
            return result

    async def close(self) -> None:
        self.closed += 1


def crash(title: str = "kernel panic: x", **more: Any) -> Noticed:
    return Noticed(How.CONSOLE, "panic", title, "the kernel panicked", now_ns(), **more)


class Captured(TestCase):
    """A desk with guests."""

    timeout = 30

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def setUp(self) -> None:
        self.free = 1 << 40
        self.store = Store(self.folder / "crashes", now_ns, lambda _: self.free)
        self.desk = Desk(reactor, self.store, Library())
        self.desk.start()
        self.evidence = Looking()
        self.guests: list[Any] = []

        async def open_evidence(guest: Any, _: Any) -> Looking:
            if not guest.machine.connected:
                raise GuestError("the guest is gone")
            return self.evidence

        limits = dict.fromkeys(("QUICK_SECONDS", "NAMES_SECONDS", "MEMORY_SECONDS", "STAND_SECONDS"), 0.5)
        for name, value in {"open_evidence": open_evidence, **limits}.items():
            patcher = patch.object(captures, name, value)
            patcher.start()
            self.addCleanup(patcher.stop)

    async def tearDown(self) -> None:
        await self.desk.stop()
        for one in self.guests:
            one.recorder.close()

    def guest(self, name: str = "web1", machine: FakeMachine | None = None, **config: Any) -> Any:
        made = fake_guest(self.folder / name, name, machine or FakeMachine(), **config)
        made.recorder.append(b"some text\r\nKernel panic - not syncing: x\r\n")
        self.guests.append(made)
        return made

    async def finished(self, guest: Any, noticed: Noticed) -> dict[str, Any]:
        """Have a crash captured, and return its document when it is finished."""
        ended: Deferred[None] = Deferred()
        stop = self.desk.follow(lambda what, _: ended.callback(None) if what == "finished" else None)
        id_ = await self.desk.noticed(guest, noticed)
        if not ended.called:
            await ended
        stop()
        return self.document(id_)

    def document(self, id_: str) -> dict[str, Any]:
        found = read_document(self.store.folder / id_)
        assert found is not None
        return found

    def whys(self, document: dict[str, Any]) -> dict[str, str]:
        return {name: part["why"] for name, part in document["parts"].items() if part["state"] == "missing"}

    async def test_what_can_be_had_is_there_and_the_rest_is_named_with_why(self) -> None:
        guest = self.guest()
        document = await self.finished(guest, crash())
        assert document["state"] == "incomplete"
        assert document["processors"][0]["registers"]["rip"] == "0xffffffff81000000"
        whys = self.whys(document)
        assert set(whys) == {"backtraces", "modules", "dmesg", "tasks", "gdb"}
        text = (self.store.folder / document["id"] / "report.md").read_text()
        assert "The kernel's log, out of its memory is missing: the kernel was not found in memory." in text
        assert self.evidence.closed == 1
        assert document["outcome"] == "left as it died"

    async def test_a_guest_that_vanishes_in_it(self) -> None:
        machine = FakeMachine(RunState.RUNNING)
        self.evidence = Looking(fails="registers")
        document = await self.finished(self.guest(machine=machine), crash())
        assert machine.did == ["pause"]
        assert self.whys(document)["registers"] == "the stub went away"
        machine.connected = False
        document = await self.finished(self.guest("web2", machine), crash())
        assert all("out of reach" in why for name, why in self.whys(document).items())
        assert document["parts"]["console"]["state"] == "done"
        assert document["outcome"] == "as it was: it has no machine monitor"

    async def test_nothing_hangs_for_a_guest_that_does_not_answer(self) -> None:
        self.evidence = Looking(hangs=True)
        document = await self.finished(self.guest(), crash())
        assert self.whys(document)["backtraces"] == "it was not there within 0.5 s"
        machine = FakeMachine()
        machine.hangs = True
        document = await self.finished(self.guest("web2", machine), crash())
        assert "within" in self.whys(document)["registers"]

    async def test_a_disk_that_is_full_keeps_neither_the_capture_nor_the_policy(self) -> None:
        machine = FakeMachine()
        guest = self.guest(machine=machine, on_crash="reset", crash_free_bytes=0)
        self.free = 700
        await self.desk.noticed(guest, crash())
        await self.idle()
        assert machine.did == ["cycle"]
        # With room again the next one is whole, and both were counted.
        self.free = 1 << 40
        document = await self.finished(guest, crash())
        assert document["count"] == 2
        assert document["parts"]["console"]["state"] == "done"

    async def test_a_disk_that_fills_up_in_between(self) -> None:
        guest = self.guest(crash_free_bytes=0)
        evidence = self.evidence
        processors = evidence.processors

        async def filling() -> list[tuple[int, dict[str, int]]]:
            self.free = 0
            return await processors()

        evidence.processors = filling  # type: ignore[method-assign]
        await self.desk.noticed(guest, crash())
        await self.idle()
        # What there was before stands, and the next relay finishes it.
        again = Store(self.store.folder, now_ns)
        again.open()
        (one,) = again.listed()
        assert one["state"] == "incomplete"
        assert (again.folder / one["id"] / "console.log").read_bytes().startswith(b"some text")

    async def idle(self) -> None:
        while self.desk.busy:
            await deferLater(reactor, 0.01)

    async def test_a_panic_inside_a_panic_is_part_of_it(self) -> None:
        guest = self.guest(machine=FakeMachine(RunState.RUNNING), on_crash="reset")
        first = self.desk.noticed(guest, crash("WARNING in f", fatal=False))
        second = self.desk.noticed(guest, crash("kernel panic: y"))
        id_ = await first
        await second
        await self.idle()
        document = self.document(id_)
        assert document["title"] == "WARNING in f"
        assert document["followed_by"] == ["kernel panic: y"]
        # It died after all, and that decides.
        assert document["fatal"]
        assert document["outcome"] == "reset"
        assert len(self.store.listed()) == 1
        assert self.store.counted("web1", "kernel panic: y") is not None

    async def test_ten_guests_at_once(self) -> None:
        most = 0
        running = 0
        run = Capture.run

        async def counted(capture: Capture) -> None:
            nonlocal most, running
            running += 1
            most = max(most, running)
            await run(capture)
            running -= 1

        with patch.object(Capture, "run", counted):
            guests = [self.guest(f"web{number}") for number in range(10)]
            ids = await gatherResults([self.desk.noticed(one, crash()) for one in guests])
            await self.idle()
        assert len(set(ids)) == 10
        assert most == MOST_AT_ONCE
        assert {one["guest"] for one in self.store.listed()} == {one.name for one in guests}
        assert {one["state"] for one in self.store.listed()} == {"incomplete"}

    async def test_a_loop_is_counted_and_its_guest_still_reset(self) -> None:
        machine = FakeMachine()
        guest = self.guest(machine=machine, on_crash="reset", crash_full=2)
        for _ in range(5):
            await self.desk.noticed(guest, crash())
            await self.idle()
        assert len(self.store.listed()) == 2
        assert {one["count"] for one in self.store.listed()} == {5}
        assert [one for one in machine.did if one != "pause"] == ["cycle"] * 5

    async def test_a_guest_that_somebody_controls_is_left_to_him(self) -> None:
        machine = FakeMachine(RunState.RUNNING)
        guest = self.guest(machine=machine, on_crash="reset")
        guest.relay = controlled_by("ann")
        document = await self.finished(guest, crash())
        assert document["machine"]["controlled_by"] == "ann"
        assert machine.did == ["pause"]
        assert document["outcome"] == "left to the debugger that controls it"
        # What he runs on with is not even paused for a warning.
        machine.did.clear()
        machine.state = FakeMachine(RunState.RUNNING).state
        await self.finished(guest, crash("WARNING in f", fatal=False))
        assert machine.did == []

    async def test_a_guest_that_goes_on_is_let_go(self) -> None:
        machine = FakeMachine(RunState.RUNNING)
        document = await self.finished(self.guest(machine=machine), crash("WARNING in f", fatal=False))
        assert machine.did == ["pause", "resume"]
        assert document["outcome"] == "went on"
        assert "vmcore" not in document["parts"]

    async def test_a_guest_paused_for_it_is_let_go_by_the_next_relay(self) -> None:
        machine = FakeMachine(RunState.RUNNING)
        guest = self.guest(machine=machine)
        self.evidence = Looking(hangs=True)
        with patch.object(captures, "NAMES_SECONDS", 20.0):
            self.desk.noticed(guest, crash("WARNING in f", fatal=False))
            while machine.did != ["pause"]:
                await deferLater(reactor, 0.01)
            # As the files are when a relay is killed now.
            again = Desk(reactor, Store(self.store.folder, now_ns), Library())
            again.start()
            assert again.store.owed == {"web1"}
            await again.settle_debt(guest)
            assert machine.did == ["pause", "resume"]
            await again.settle_debt(guest)
            assert machine.did == ["pause", "resume"]
            # A relay that ends in order lets it go itself.
            await machine.pause()
            with patch.object(desks, "STOP_SECONDS", 0.05):
                await self.desk.stop()
            assert machine.did == ["pause", "resume", "pause", "resume"]

    async def test_a_guest_that_was_paused_before_stays_so(self) -> None:
        machine = FakeMachine(RunState.PAUSED)
        document = await self.finished(self.guest(machine=machine), crash("WARNING in f", fatal=False))
        assert machine.did == []
        assert document["outcome"] == "as it was"

    async def test_hands_off_is_hands_off(self) -> None:
        machine = FakeMachine(RunState.RUNNING)
        document = await self.finished(
            self.guest(machine=machine, on_crash="reset"), crash(hands_off="it saves its own memory (kdump)")
        )
        assert machine.did == []
        assert set(self.whys(document)) >= {"registers", "dmesg"}
        assert document["parts"]["console"]["state"] == "done"

    async def test_a_bug_in_a_part_costs_that_part_only(self) -> None:
        def broken(*_: Any) -> None:
            raise ZeroDivisionError

        with patch.object(captures, "_tail", broken):
            document = await self.finished(self.guest(), crash())
        assert "a bug in kbridge: ZeroDivisionError" in self.whys(document)["timeline"]
        assert document["parts"]["registers"]["state"] == "done"
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
