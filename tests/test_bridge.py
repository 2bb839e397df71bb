"""The bridge end to end: a booted kernel, an unmodified gdb, and both killed at bad moments."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bridge_lab import Bridge, wait_for

pytestmark = [pytest.mark.guest, pytest.mark.gdb]

StartGuest = Callable[..., dict[str, Any]]


@pytest.fixture
def bridge(cloud_guest: StartGuest) -> Iterator[Bridge]:
    with Bridge(cloud_guest) as bridge:
        yield bridge


def ten_times(bridge: Bridge) -> None:
    for number in range(10):
        gdb = bridge.gdb("info threads", "detach")
        said = gdb.finish()
        assert "* 1    Thread 1" in said, (number, said)
        assert "CPU#1" in said
        assert "detached" in said
        assert gdb.process.returncode == 0
        bridge.goes_on()
    ticks = bridge.ticks()
    assert ticks == list(range(ticks[0], ticks[-1] + 1)), "the console lost or repeated something"


def test_gdb_attaches_and_leaves_ten_times_on_the_cloud_kernel(bridge: Bridge) -> None:
    ten_times(bridge)


@pytest.mark.slow
def test_gdb_attaches_and_leaves_ten_times_on_the_kgdb_kernel(kgdb_guest: StartGuest) -> None:
    with Bridge(kgdb_guest) as bridge:
        ten_times(bridge)


BUSY = (
    # Wherever the guest stands, it comes back there soon: breakpoints that hit again and again.
    "break *$pc",
    "hbreak *$pc",
    "watch *(long *)($sp - 64)",
    "continue",
    "stepi 20",
    "info threads",
    "x/200i $pc",
    "continue 5",
    "next",
    "stepi 200",
    "continue 100000",
)


@pytest.mark.slow
def test_gdb_killed_at_random_moments_leaves_the_guest_running(bridge: Bridge) -> None:
    moments = random.Random(2026)
    for number in range(30):
        gdb = bridge.gdb(*BUSY)
        # From before it connects to deep in its breakpoints; the spread is the point, not the length.
        time.sleep(moments.random() ** 2 * 2.5)
        gdb.kill()
        wait_for(
            lambda: bridge.state() == "running" and not bridge.sessions(),
            f"rest after kill {number}",
            30,
        )
        assert bridge.breakpoints() == []
        bridge.goes_on()
    # The relay still serves, and nothing stops the guest any more.
    assert "Thread 1" in bridge.gdb("info threads", "detach").finish()
    bridge.goes_on()
    assert bridge.state() == "running"


def test_a_second_debugger_observes_and_is_told_so(bridge: Bridge) -> None:
    first = bridge.gdb('printf "attached %d\\n", 1')
    first.wait_for("attached 1")
    second = bridge.gdb("info threads", "stepi", "monitor control")
    second.wait_for("CPU#1")
    second.wait_for("controls the guest")
    assert b"you observe" in second.output
    second.then("detach")
    assert "detached" in second.finish()
    # The first is undisturbed.
    first.then("info threads")
    first.wait_for("CPU#1")
    wait_for(lambda: len(bridge.sessions()) == 1, "a session that ended")
    first.then("detach")
    assert "detached" in first.finish()
    bridge.goes_on()


def test_the_relay_killed_with_a_breakpoint_set_cleans_up_when_it_is_back(bridge: Bridge) -> None:
    gdb = bridge.gdb(f"break *{bridge.often:#x}", "continue")
    gdb.wait_for("Breakpoint 1, ")
    bridge.kill_relay()
    before = bridge.ticks()
    said = gdb.finish()
    assert "Remote connection closed" in said or "Remote communication error" in said
    bridge.start_relay()
    bridge.goes_on()
    assert bridge.breakpoints() == []
    ticks = bridge.ticks()
    assert ticks[: len(before)] == before
    assert [event["kind"] for event in bridge.events()].count("relay.recover") == 1
    assert not (bridge.dir / "state/guests/web1/journal").exists()
    # It would have hit again by now: the guest idles there.
    assert bridge.state() == "running"
    assert "Thread 1" in bridge.gdb("info threads", "detach").finish()


def test_the_relay_killed_while_the_guest_runs_under_gdb_loses_no_console_byte(bridge: Bridge) -> None:
    gdb = bridge.gdb("hbreak *0xffffffff00000000", "continue")
    gdb.wait_for("Continuing.")
    bridge.goes_on()
    bridge.kill_relay()
    killed_with = bridge.ticks()
    gdb.finish()
    bridge.start_relay()
    bridge.goes_on()
    ticks = bridge.ticks()
    assert killed_with == list(range(killed_with[0], killed_with[-1] + 1)), "incomplete before the kill"
    assert ticks[: len(killed_with)] == killed_with
    starts = [event for event in bridge.events() if event["kind"] == "relay.start"]
    assert starts[-1]["former"] == "killed"


def test_a_guest_killed_and_started_again_is_followed(bridge: Bridge) -> None:
    gdb = bridge.gdb("continue")
    gdb.wait_for("Continuing.")
    os.kill(bridge.guest["pid"], signal.SIGKILL)
    said = gdb.finish()
    assert "debug stub is gone" in said, said
    assert "terminated with signal SIGKILL" in said
    wait_for(lambda: bridge.state() == "unknown", "a guest that is gone")
    assert "cannot be reached" in bridge.gdb("info threads").finish()
    first_boot = len(bridge.ticks())
    bridge.start_guest()
    wait_for(lambda: bridge.ticks()[first_boot : first_boot + 1] == [1], "the first tick of the second boot")
    assert "Thread 1" in bridge.gdb("info threads", "detach").finish()
    bridge.goes_on()
    kinds = [event["kind"] for event in bridge.events()]
    lost, found = kinds.index("line.lost"), len(kinds) - 1 - kinds[::-1].index("line.open")
    assert lost < found
    assert "machine.lost" in kinds[lost - 3 : found]


def test_a_pause_by_somebody_else_is_told_and_not_undone(bridge: Bridge) -> None:
    gdb = bridge.gdb("continue")
    gdb.wait_for("Continuing.")
    monitor = bridge.monitor()
    # gdb says so before it does so.
    wait_for(lambda: monitor.status() == "running", "a guest that runs")
    monitor.command("stop")
    gdb.wait_for("SIGINT")
    gdb.then("info registers rip")
    gdb.wait_for("rip  ")
    assert b"stopped by something else" in gdb.output
    gdb.then("detach")
    gdb.finish()
    bridge.stands_still(monitor)
    wait_for(lambda: not bridge.sessions(), "a session that ended")
    assert monitor.status() == "paused"
    monitor.command("cont")
    bridge.goes_on()


def test_a_guest_that_was_paused_before_is_left_paused(bridge: Bridge) -> None:
    monitor = bridge.monitor()
    monitor.command("stop")
    wait_for(lambda: bridge.state() == "paused", "a paused guest")
    assert "detached" in bridge.gdb("stepi", "info threads", "detach").finish()
    assert monitor.status() != "running"
    bridge.gdb("stepi").kill()
    wait_for(lambda: not bridge.sessions(), "a session that ended")
    assert monitor.status() != "running"
    # Somebody who lets it run means it.
    gdb = bridge.gdb("continue")
    gdb.wait_for("Continuing.")
    bridge.goes_on()
    gdb.kill()
    bridge.goes_on()


def test_a_guest_resumed_by_somebody_else_does_not_hang_its_debugger(bridge: Bridge) -> None:
    gdb = bridge.gdb('printf "attached %d\\n", 1')
    gdb.wait_for("attached 1")
    monitor = bridge.monitor()
    monitor.command("cont")
    bridge.goes_on()
    wait_for(
        lambda: any(event["kind"] == "debugger.overtaken" for event in bridge.events()),
        "a relay that knows of it",
    )
    gdb.then("x/4xg 0xffffffff81000000")
    gdb.wait_for("Cannot access memory")
    bridge.goes_on()
    gdb.then("continue")
    gdb.wait_for("was resumed by its machine monitor")
    gdb.interrupt()
    gdb.wait_for("SIGINT")
    gdb.then("info threads")
    gdb.wait_for("CPU#1")
    gdb.then("detach")
    gdb.finish()
    bridge.goes_on()


def test_a_reset_under_a_waiting_gdb_is_told_and_survived(bridge: Bridge) -> None:
    gdb = bridge.gdb("continue")
    gdb.wait_for("Continuing.")
    boots = len(bridge.ticks())
    assert bridge.run("power", "web1", "reset").returncode == 0
    gdb.wait_for("web1 was reset")
    wait_for(lambda: 1 in bridge.ticks()[boots:], "the first tick of the second boot")
    gdb.interrupt()
    gdb.wait_for("SIGINT")
    gdb.then("info threads")
    gdb.wait_for("CPU#1")
    gdb.then("detach")
    gdb.finish()
    bridge.goes_on()


def test_a_panicked_guest_is_shown_and_left_as_it_is(bridge: Bridge) -> None:
    gdb = bridge.gdb("continue")
    gdb.wait_for("Continuing.")
    assert bridge.run("break", "web1", "--sysrq", "c").returncode == 0
    gdb.wait_for("web1 has panicked")
    gdb.wait_for("received signal")
    gdb.then("info registers rip")
    gdb.wait_for("rip  ")
    gdb.then("detach")
    gdb.finish()
    wait_for(lambda: not bridge.sessions(), "a session that ended")
    assert bridge.state() == "panicked"
    # And again, from the start: attach to what has panicked, look, leave.
    assert "rip  " in bridge.gdb("info registers rip", "detach").finish()
    assert bridge.monitor().status() == "guest-panicked"


def test_a_guest_configured_to_rest_stays_where_its_debugger_left_it(cloud_guest: StartGuest) -> None:
    with Bridge(cloud_guest, more='on_leave = "stay"\n') as bridge:
        monitor = bridge.monitor()
        assert "detached" in bridge.gdb("info threads", "detach").finish()
        bridge.stands_still(monitor)
        monitor.command("cont")
        bridge.goes_on()
        gdb = bridge.gdb(f"break *{bridge.often:#x}", "continue")
        gdb.wait_for("Breakpoint 1, ")
        gdb.kill()
        wait_for(lambda: not bridge.sessions(), "a session that ended")
        bridge.stands_still(monitor)
        monitor.command("cont")
        bridge.goes_on()


def test_gdb_interrupts_and_goes_on(bridge: Bridge) -> None:
    gdb = bridge.gdb("continue")
    gdb.wait_for("Continuing.")
    for _ in range(5):
        bridge.goes_on()
        gdb.output = b""
        gdb.interrupt()
        gdb.wait_for("SIGINT")
        gdb.output = b""
        gdb.then("continue")
        gdb.wait_for("Continuing.")
    gdb.kill()
    bridge.goes_on()


def test_the_relay_stopped_with_gdb_attached_lets_the_guest_go(bridge: Bridge) -> None:
    gdb = bridge.gdb(f"break *{bridge.often:#x}", "continue")
    gdb.wait_for("Breakpoint 1, ")
    assert bridge.relay is not None
    monitor = bridge.monitor()
    bridge.relay.terminate()
    assert bridge.relay.wait(30) == 0
    gdb.finish()
    assert monitor.status() == "running"
    bridge.start_relay()
    bridge.goes_on()
    assert not any(event["kind"] == "relay.recover" for event in bridge.events())


def test_a_guest_without_a_monitor_is_debugged_by_its_stub_alone(cloud_guest: StartGuest) -> None:
    with Bridge(cloud_guest, "--stub", monitor=False) as bridge:
        for _ in range(3):
            said = bridge.gdb("break *$pc", "info threads", "stepi", "x/8i $pc", "detach").finish()
            assert "CPU#1" in said
            assert "detached" in said
            bridge.goes_on()
        # A gdb straight on the stub leaves QEMU in another mode, in which it refuses a plain detach.
        stub = bridge.guest["stub"].removeprefix("unix:")
        assert "detached" in bridge.gdb(f"target remote {stub}", "detach", attach=False).finish()
        gdb = bridge.gdb("break *$pc", "continue")
        gdb.wait_for("Breakpoint 1, ")
        gdb.kill()
        bridge.goes_on()
        assert bridge.breakpoints() == []
