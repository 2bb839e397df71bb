"""What a watch notices of a guest, by made-up consoles and machines and a clock that stands until it is moved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from capture_lab import FakeMachine, at_once, controlled_by, fake_guest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from kbridge.crash.facts import How, Noticed
from kbridge.crash.sweep import Sweep
from kbridge.crash.watch import GONE_SECONDS, CrashWatch
from kbridge.hypervisors.interface import MachineState, RunState
from kbridge.transports.lines import LineState

PANIC = b"""\
[    8.335000] sysrq: Trigger a crash\r
[    8.335317] Kernel panic - not syncing: sysrq triggered crash\r
[    8.335317] CPU: 0 PID: 1 Comm: sh Not tainted 6.1.0 #1\r
[    8.335317] Call Trace:\r
[    8.335317]  <TASK>\r
[    8.335317]  panic+0x118/0x2f4\r
[    8.335317]  sysrq_handle_crash+0x16/0x20\r
[    8.335317]  </TASK>\r
"""
END = b"[    8.400000] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\r\n"
WARNING = b"""\
[   25.108984] ------------[ cut here ]------------\r
[   25.109119] WARNING: CPU: 1 PID: 60 at drivers/misc/lkdtm/bugs.c:85 lkdtm_WARNING+0x8/0xb\r
[   25.109965] CPU: 1 PID: 60 Comm: sh Not tainted 6.1.192-kgdb #1\r
[   25.121085] RIP: 0010:lkdtm_WARNING+0x8/0xb\r
[   25.130000] Call Trace:\r
[   25.130000]  <TASK>\r
[   25.130000]  direct_entry+0x1/0x2\r
[   25.130000]  </TASK>\r
[   25.130000] ---[ end trace 0000000000000000 ]---\r
"""
BOOT = b"[    0.000000] Linux version 6.1.0 (a@b) #1 SMP\r\n[    0.100000] x86: ok\r\n"


class Watched:
    """One guest under a watch."""

    def __init__(self, folder: Path, machine: bool = True, **config: Any) -> None:
        self.clock = Clock()
        self.machine = FakeMachine(RunState.RUNNING) if machine else None
        config = {"crash_warnings": True, "crash_quiet_seconds": 1.0, **config}
        self.guest = fake_guest(folder, machine=self.machine, **config)
        self.guest.line = SimpleNamespace(state=LineState.OPEN)
        self.told: list[Noticed] = []
        self.asked: list[str] = []
        library: Any = SimpleNamespace(
            prepare=lambda _: self.asked.append("prepare"), warm=lambda _: self.asked.append("warm")
        )
        sweep = Sweep(self.clock)
        self.watch = CrashWatch(self.clock, self.guest, sweep, library, self.told.append)
        self.watch._in_thread = lambda work: at_once(None, None, work)  # type: ignore[method-assign]
        self.watch.start()

    def says(self, data: bytes) -> None:
        self.guest.recorder.append(data)

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds * 20)):
            self.clock.advance(0.05)

    @property
    def titles(self) -> list[str]:
        return [one.title for one in self.told]

    def panics(self) -> None:
        assert self.machine is not None
        self.machine.state = MachineState(RunState.PANICKED, "guest-panicked")
        self.machine.says("machine.panic", action="pause")

    def close(self) -> None:
        self.watch.stop()
        self.guest.recorder.close()
        assert not [one for one in self.clock.getDelayedCalls() if one.active()]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    one = Watched(tmp_path)
    yield one
    one.close()


def test_a_panic_is_told_when_its_text_is_over(watched: Watched) -> None:
    watched.says(BOOT + PANIC)
    watched.wait(0.5)
    assert watched.titles == []
    watched.says(END)
    watched.wait(0.4)
    assert watched.titles == ["kernel panic: sysrq triggered crash"]
    (one,) = watched.told
    assert (one.how, one.kind, one.fatal, one.hands_off) == (How.CONSOLE, "panic", True, "")
    ring = watched.guest.recorder.ring
    said = ring.read(one.begin, one.end - one.begin)
    assert said is not None
    assert said.startswith(b"[    8.335")
    assert b"sysrq_handle_crash" in said


def test_what_explains_crashes_is_loaded_with_the_first_line_of_one(watched: Watched) -> None:
    watched.says(BOOT)
    watched.wait(6)
    assert watched.asked == ["prepare"]
    watched.says(PANIC[:200])
    watched.wait(0.3)
    assert watched.titles == []
    assert watched.asked == ["prepare", "warm"]
    watched.says(PANIC[200:] + END)
    watched.panics()
    watched.wait(1)
    assert watched.asked == ["prepare", "warm"]


def test_the_same_text_of_the_next_boot_is_another_crash(watched: Watched) -> None:
    for _ in range(2):
        watched.says(BOOT + PANIC + END)
        watched.panics()
        watched.wait(1)
        assert watched.machine is not None
        watched.machine.says("machine.reset", ours=True)
        watched.wait(1)
    # As of a machine that is replayed, whose clock runs alike each time.
    assert [(one.title, one.fatal, one.hands_off) for one in watched.told] == [
        ("kernel panic: sysrq triggered crash", True, "")
    ] * 2


def test_silence_ends_a_report_that_the_kernel_does_not(watched: Watched) -> None:
    watched.says(PANIC)
    watched.wait(0.9)
    assert watched.titles == []
    watched.wait(0.4)
    assert watched.titles == ["kernel panic: sysrq triggered crash"]


def test_the_machines_word_ends_a_report_at_once_and_one_death_is_told_once(watched: Watched) -> None:
    watched.says(PANIC)
    watched.panics()
    # The line still brings something.
    watched.clock.advance(0.05)
    watched.says(b"[    8.336000] Kernel Offset: disabled\r\n")
    watched.wait(0.5)
    assert watched.titles == ["kernel panic: sysrq triggered crash"]
    watched.panics()
    watched.wait(5)
    assert len(watched.told) == 1


def test_a_panic_of_which_the_console_says_nothing_is_the_machines(watched: Watched) -> None:
    watched.panics()
    watched.wait(0.5)
    assert [(one.how, one.kind, one.title) for one in watched.told] == [
        (How.MACHINE, "panic", "kernel panic")
    ]


def test_a_guest_that_saves_itself_is_not_to_be_touched(watched: Watched) -> None:
    assert watched.machine is not None
    watched.says(PANIC)
    watched.machine.says("machine.crashloaded")
    watched.wait(0.5)
    assert "kdump" in watched.told[0].hands_off


OOPS = b"""\
[   12.348804] BUG: TASK stack guard page was hit at ffff97380013be28 (stack is ffff97380013c000..ffff973800140000)\r
[   12.349538] stack guard page: 0000 [#1] SMP\r
[   12.349538] CPU: 1 PID: 58 Comm: sh Not tainted 6.1.192-kgdb #1\r
[   12.349538] RIP: 0010:recursive_loop+0x2a/0x91\r
[   12.349538] Call Trace:\r
[   12.349538]  <TASK>\r
[   12.349538]  lkdtm_EXHAUST_STACK+0x22/0x2e\r
[   12.349538]  direct_entry+0xb2/0xc8\r
[   12.349538]  </TASK>\r
"""
FATAL = b"[   12.350000] Kernel panic - not syncing: Fatal exception in interrupt\r\n"


@pytest.mark.parametrize("settles", [0, 0.1, 2])
def test_the_rest_of_a_panics_text_is_the_same_death(watched: Watched, settles: float) -> None:
    assert watched.machine is not None
    watched.says(OOPS)
    watched.panics()
    watched.wait(0.5)
    assert watched.titles == ["BUG: stack guard page was hit in lkdtm_EXHAUST_STACK", "kernel panic"]
    # Let go, the kernel says what it had not said when its machine paused it.
    watched.machine.says("machine.resume", ours=True)
    watched.says(FATAL)
    watched.wait(settles)
    # Put back by somebody, it is another life; what came before is not of that.
    watched.machine.says("machine.resume", ours=False)
    watched.wait(2)
    assert len(watched.told) == 2
    # Not so the next kernel's.
    watched.machine.says("machine.reset", ours=True)
    watched.says(BOOT + OOPS + FATAL)
    watched.wait(2)
    assert watched.titles[2:] == watched.titles[:1]


def test_a_word_of_the_monitor_that_comes_late_is_of_what_was_before(watched: Watched) -> None:
    assert watched.machine is not None
    watched.says(BOOT + PANIC + END)
    watched.wait(0.5)
    # It was let go before it said that; the relay was busy.
    watched.machine.says("machine.resume", ours=False, time=time.time() - 10)
    watched.panics()
    watched.wait(2)
    assert watched.titles == ["kernel panic: sysrq triggered crash"]
    # Let go after that, and put back by it perhaps, it may die once more.
    watched.machine.says("machine.resume", ours=False, time=time.time() + 10)
    watched.panics()
    watched.wait(2)
    assert watched.titles[1:] == ["kernel panic"]


def test_what_the_kernel_survives_is_no_death(watched: Watched) -> None:
    watched.says(WARNING)
    watched.wait(0.4)
    assert [(one.title, one.fatal) for one in watched.told] == [("WARNING in lkdtm_WARNING", False)]
    watched.says(PANIC + END)
    watched.wait(0.4)
    assert watched.titles[1:] == ["kernel panic: sysrq triggered crash"]


def test_a_debugger_that_somebody_wanted_is_no_crash(watched: Watched) -> None:
    entered = (
        b"\r\n[    5.000000] sysrq: DEBUG\r\n\r\n"
        b"Entering kdb (current=0x1, pid 0) on processor 0 due to %s\r\n[0]kdb> "
    )
    watched.says(entered % b"Keyboard Entry")
    watched.wait(2)
    assert watched.told == []
    watched.guest.relay = SimpleNamespace(sessions=("ann",))
    watched.says(entered % b"NonMaskable Interrupt @ 0xffffffff8100")
    watched.wait(2)
    assert watched.told == []
    watched.guest.relay = None
    watched.says(entered % b"NonMaskable Interrupt @ 0xffffffff8100")
    watched.wait(2)
    assert [(one.kind, one.fatal, one.in_debugger) for one in watched.told] == [("kdb", True, True)]


def test_warnings_are_no_crashes_unless_asked_for(tmp_path: Path) -> None:
    one = Watched(tmp_path, crash_warnings=False)
    one.says(WARNING)
    one.wait(2)
    assert one.told == []
    one.close()


def test_a_reset_without_a_word_is_a_crash_and_an_orderly_one_is_none(watched: Watched) -> None:
    machine = watched.machine
    assert machine is not None
    # Firmware resets the machine while nothing is booted.
    watched.says(b"SeaBIOS (version 1.16)\r\n")
    machine.says("machine.reset")
    assert watched.told == []
    watched.says(BOOT)
    machine.says("machine.reset", ours=True)
    watched.says(BOOT + b"[  100.000000] reboot: Restarting system\r\n")
    machine.says("machine.reset")
    assert watched.told == []
    watched.says(BOOT)
    machine.says("machine.reset")
    (one,) = watched.told
    assert (one.kind, one.title) == ("reset", "unexpected reset")
    assert "next boot" in one.hands_off
    # A panic that ends in a reset is a panic.
    watched.says(BOOT + PANIC + END)
    watched.wait(0.4)
    machine.says("machine.reset")
    assert len(watched.told) == 2


def test_a_machine_that_ends_without_a_word_is_gone(watched: Watched) -> None:
    machine = watched.machine
    assert machine is not None

    def lost(seconds: float) -> None:
        machine.connected = False
        machine.says("machine.lost", why="it hung up")
        watched.wait(seconds)

    lost(GONE_SECONDS / 2)
    machine.connected = True
    machine.says("machine.found")
    watched.wait(2 * GONE_SECONDS)
    assert watched.told == []
    machine.says("machine.shutdown", reason="guest-shutdown")
    lost(2 * GONE_SECONDS)
    assert watched.told == []
    machine.connected = True
    machine.says("machine.found")
    lost(2 * GONE_SECONDS)
    assert watched.titles == ["guest gone"]


def test_a_watchdog_and_a_second_death_on_the_next_boot(watched: Watched) -> None:
    assert watched.machine is not None
    watched.machine.says("machine.watchdog", action="reset")
    watched.machine.says("machine.watchdog", action="reset")
    watched.machine.says("machine.reset")
    watched.panics()
    watched.wait(0.5)
    assert watched.titles == ["watchdog fired", "kernel panic"]


def test_a_guest_put_back_to_a_snapshot_lives_and_its_clock_may_fall(watched: Watched) -> None:
    machine = watched.machine
    assert machine is not None
    watched.says((PANIC + END).replace(b"[    8.", b"[   90."))
    watched.panics()
    watched.wait(0.5)
    machine.state = MachineState(RunState.RUNNING, "running")
    machine.says("machine.resume", ours=False)
    watched.says(b"/root # ./provoke\r\n" + PANIC + END)
    watched.wait(0.5)
    watched.panics()
    watched.wait(0.5)
    assert watched.titles == ["kernel panic: sysrq triggered crash"] * 2
    assert [(one.corrupted, one.hands_off, one.fatal) for one in watched.told] == [("", "", True)] * 2
    # Of a death after that nothing need be on the console.
    machine.says("machine.resume", ours=False)
    watched.panics()
    watched.wait(0.5)
    assert watched.titles[2:] == ["kernel panic"]


@pytest.mark.parametrize("who", ["the relay", "a debugger"])
def test_a_guest_that_died_and_is_let_go_by_us_is_dead(watched: Watched, who: str) -> None:
    machine = watched.machine
    assert machine is not None
    if who == "a debugger":
        watched.guest.relay = controlled_by("ann")
    watched.panics()
    watched.wait(0.5)
    machine.says("machine.resume", ours=who == "the relay")
    watched.panics()
    watched.wait(0.5)
    assert watched.titles == ["kernel panic"]


def test_silence_is_told_once_and_only_of_a_guest_that_runs(tmp_path: Path) -> None:
    one = Watched(tmp_path, crash_silence_seconds=10.0)
    assert one.machine is not None
    one.says(b"tick\r\n")
    one.wait(9)
    assert one.told == []
    one.says(b"tick\r\n")
    one.wait(9)
    one.machine.state = MachineState(RunState.PAUSED, "paused")
    one.wait(30)
    assert one.told == []
    one.machine.state = MachineState(RunState.RUNNING, "running")
    one.wait(40)
    assert [(each.how, each.title) for each in one.told] == [(How.SILENCE, "no output")]
    one.close()


def test_a_console_alone_is_watched_too(tmp_path: Path) -> None:
    one = Watched(tmp_path, machine=False)
    one.says(PANIC + END)
    one.wait(0.4)
    assert one.titles == ["kernel panic: sysrq triggered crash"]
    one.close()


def test_a_reader_that_was_overtaken_goes_on(watched: Watched) -> None:
    watched.says(b"x" * (1 << 17))
    watched.says(b"\r\n" + PANIC + END)
    watched.wait(1.5)
    assert watched.titles == ["kernel panic: sysrq triggered crash"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 300), max_size=30), st.lists(st.sampled_from([0.0, 0.05, 0.15]), max_size=30))
def test_however_the_text_comes_it_is_told_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], pauses: list[float]
) -> None:
    one = Watched(tmp_path_factory.mktemp("watch"))
    rest = BOOT + WARNING + PANIC + END + b"[    9.000000] \r\n"
    for number, cut in enumerate(cuts):
        one.says(rest[:cut])
        rest = rest[cut:]
        one.clock.advance(pauses[number] if number < len(pauses) else 0.0)
    one.says(rest)
    one.wait(1.5)
    assert one.titles == ["WARNING in lkdtm_WARNING", "kernel panic: sysrq triggered crash"]
    one.close()
