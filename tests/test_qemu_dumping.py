"""A dump of memory watched: complete, failed, stalled, the monitor lost; by a monitor that says what it is told to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from kbridge.errors import MachineError
from kbridge.hypervisors.dumping import LOOK_SECONDS, STALL_SECONDS, Dump
from kbridge.hypervisors.interface import MachineEvent


class Monitor:
    """What is asked of it, and what it answers."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuses: dict[str, str] = {}
        self.completed: Any = 0
        self.listeners: list[Callable[[MachineEvent], None]] = []

    async def execute(self, name: str, arguments: Any = None, *, descriptor: int | None = None) -> Any:
        self.asked.append(name)
        if name in self.refuses:
            raise MachineError(f"QEMU refused {name}", why=self.refuses[name])
        if name == "query-dump":
            return {"status": "active", "completed": self.completed, "total": 1000}
        return {}

    def subscribe(self, listener: Callable[[MachineEvent], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def tell(self, name: str, **data: Any) -> None:
        for one in tuple(self.listeners):
            one(MachineEvent(name, data))


class Watched:
    """A dump under way."""

    def __init__(self, **refuses: str) -> None:
        self.clock, self.monitor = Clock(), Monitor()
        self.monitor.refuses = {name.replace("_", "-"): why for name, why in refuses.items()}
        self.seen: list[tuple[int, int]] = []
        dump = Dump(
            self.clock,  # type: ignore[arg-type]
            self.monitor,  # type: ignore[arg-type]
            self.monitor.subscribe,
            lambda done, total: self.seen.append((done, total)),
        )
        self.over = Deferred.fromCoroutine(dump.write_to(5))
        self.results: list[Any] = []
        self.over.addBoth(self.results.append)

    def why(self) -> str:
        (failure,) = self.results
        failure.trap(MachineError)
        assert self.monitor.listeners == []
        assert self.clock.getDelayedCalls() == []
        return str(failure.value)


def test_it_is_over_when_qemu_says_that_all_is_written() -> None:
    one = Watched()
    one.monitor.completed = 300
    one.clock.advance(LOOK_SECONDS)
    assert one.seen == [(300, 1000)]
    assert one.results == []
    one.monitor.tell("machine.event", event="DUMP_COMPLETED", result={"status": "completed"})
    assert one.results == [None]
    assert one.monitor.listeners == []
    assert one.clock.getDelayedCalls() == []
    assert one.monitor.asked == ["getfd", "dump-guest-memory", "query-dump"]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"error": "dump: failed to save memory"}, "dump: failed to save memory"),
        ({"result": {"status": "failed"}}, "the dump failed"),
        ({"result": "nonsense"}, "the dump None"),
    ],
)
def test_a_dump_that_failed_is_told_in_qemus_words(told: dict[str, Any], why: str) -> None:
    one = Watched()
    one.monitor.tell("machine.event", event="DUMP_COMPLETED", **told)
    assert one.why() == f"QEMU did not write the guest's memory: {why}"


def test_a_monitor_that_is_lost_ends_it() -> None:
    one = Watched()
    one.monitor.tell("machine.lost", why="it was killed")
    assert "the machine monitor went away: it was killed" in one.why()


@pytest.mark.parametrize("completed", [0, "nonsense"])
def test_one_that_comes_no_further_ends(completed: Any) -> None:
    one = Watched()
    one.monitor.completed = completed
    for _ in range(int(STALL_SECONDS / LOOK_SECONDS) + 3):
        one.clock.advance(LOOK_SECONDS)
    assert f"nothing was written for {STALL_SECONDS:g} s" in one.why()


def test_one_that_is_slow_goes_on() -> None:
    one = Watched()
    for number in range(2 * int(STALL_SECONDS / LOOK_SECONDS)):
        one.monitor.completed = number // 50
        one.clock.advance(LOOK_SECONDS)
    assert one.results == []
    one.monitor.tell("machine.event", event="DUMP_COMPLETED", result={"status": "completed"})
    assert one.results == [None]


def test_the_file_that_it_does_not_use_is_taken_back() -> None:
    one = Watched(dump_guest_memory="There is a dump in process, please wait.")
    assert "There is a dump in process" in one.why()
    assert one.monitor.asked == ["getfd", "dump-guest-memory", "closefd"]
    one = Watched(dump_guest_memory="no", closefd="no such file")
    assert one.why() == "QEMU refused dump-guest-memory: no"


def test_who_does_not_wait_any_more_leaves_no_clock() -> None:
    one = Watched()
    one.over.cancel()
    assert one.monitor.listeners == []
    assert one.clock.getDelayedCalls() == []
