"""All of lkdtm's crashes, provoked on a real guest under a real relay: one bundle each, as the table says.

The guest is booted once and put back before each crash; its log, its memory and its relay's list are as after a boot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bridge_lab import wait_for
from capture_lab import functions
from crash_table import LKDTM, NO_OUTPUT, SPINLOCKUP_AGAIN, Crash, Nothing
from reverting_lab import Reverting

pytestmark = [pytest.mark.guest, pytest.mark.slow]

PATIENT = {
    name: crash
    for name, crash in LKDTM.items()
    if isinstance(crash, Crash) and not crash.title.startswith(("BUG: soft lockup", "INFO: "))
}
"""What the kernel notices at once."""
LOCKED = {name: crash for name, crash in LKDTM.items() if isinstance(crash, Crash) and name not in PATIENT}
SOON = (
    "echo 1 > /proc/sys/kernel/watchdog_thresh",
    "echo 1 > /proc/sys/kernel/hung_task_timeout_secs",
    "echo 4 > /sys/module/rcupdate/parameters/rcu_cpu_stall_timeout",
    # RCU stalls where somebody waits for it, as an ending process does, and who counts that can run.
    "taskset -p 2 $$",
    "taskset -p 2 $(pidof rcu_sched)",
    "while sleep 1; do :; done & true",
)
"""Lockups after 2 s, an RCU stall after 4 s, if the first processor is locked up."""


class Table:
    """The guest, and what of it was checked."""

    def __init__(self, guest: Reverting) -> None:
        self.guest = guest
        crashes = [one for one in LKDTM.values() if isinstance(one, Crash)]
        others = [other for one in crashes for other in one.may_be]
        self.begins = guest.declared(one.function for one in (*crashes, *others, NO_OUTPUT))
        # A slow machine makes kernels report stalls while they boot.
        self.kept = guest.ids()
        """Bundles that were there before the last crash, and its own."""
        self.strange: list[str] = []
        """Bundles that came when nothing was provoked."""
        self.places: dict[tuple[str, int], tuple[str, int]] = {}
        """What the reports say is where."""

    def provoked(self, line: str, *expected: Crash) -> tuple[dict[str, Any], Crash]:
        """Provoke a crash, one of those expected; return its bundle, of the right title, and which it is."""
        guest = self.guest
        self.look_for_strange()
        before = len(guest.console())
        guest.type(line)
        first, *others = guest.new_reports(self.kept)
        assert first["title"] in [one.title for one in expected]
        crash = next(one for one in expected if one.title == first["title"])
        then = expected[0].then

        def also() -> list[str]:
            return [*first["followed_by"], *(one["title"] for one in others)]

        while then and not any(one.startswith(then) for one in (first["title"], *also())):
            others = guest.new_reports([*self.kept, first["id"]])
        if crash.dies and first["noticed_by"] != "silence":
            # Let go, it says the rest of what it had to say.
            wait_for(lambda: b"---[ end Kernel panic" in guest.console()[before:], "the end of panic()")
        self.kept += [one["id"] for one in (first, *others)]
        # A machine tells of the panic where the console's text is cut off before it.
        follows = then or "kernel panic"
        assert all(one.startswith(follows) for one in also())
        assert len(also()) <= (1 if then or crash.dies else 0)
        return first, crash

    def look_for_strange(self) -> None:
        new = [one for one in self.guest.ids() if one not in self.kept]
        self.strange += new
        self.kept += new

    def is_about(self, report: dict[str, Any], expected: Crash) -> None:
        """Fail unless a report is of this place, and whole."""
        assert (report["function"], report["corrupted"]) == (expected.function, None)
        assert report["fatal"] == expected.dies
        assert report["outcome"] == ("resumed" if expected.dies else "went on")
        assert report["state"] == "complete", report["parts"]
        # Nobody finds his way on a stack that was overwritten.
        lost = report["crashed_processor"] if "stack is corrupted" in report["title"] else None
        assert not [
            one["problem"] for one in report["processors"] if one["problem"] and one["number"] != lost
        ]
        where = report["where"]
        assert where["symbol"] == expected.function
        if expected.line is None:
            assert where["calls"] == []
            return
        self.is_at(where["calls"][-1], expected)
        inner = where["calls"][0]
        # The call is before what is returned to.
        place = where["symbol"], where["offset"] - (where["trust"] != "exact")
        self.places[place] = inner["file"], inner["line"]
        file, line = where["calls"][-1]["file"], where["calls"][-1]["line"]
        text = "\n".join(report["explained"])
        assert f"{file}:{line}" in text
        said = (self.guest.folder(report) / "report.md").read_text()
        assert f"  {file}:{line}\n" in said

    def is_at(self, call: dict[str, Any], expected: Crash) -> None:
        """Fail unless a call is at the line that provokes the crash."""
        file, begin = self.begins[expected.function]
        assert (call["function"], call["file"]) == (expected.function, file)
        wanted = expected.line if isinstance(expected.line, range) else (expected.line,)
        assert call["line"] - begin in wanted


@pytest.fixture(scope="module")
def table(shared_kgdb_guest: Callable[..., dict[str, Any]]) -> Iterator[Table]:
    settings = (
        "crash_warnings = true\ncrash_quiet_seconds = 0.3\ncrash_image = false\ncrash_keep = 200\n"
        'crash_full = 100\non_crash = "resume"\n'
    )
    with Reverting(shared_kgdb_guest, more=settings) as guest:
        guest.run_line("echo 0 > /proc/sys/kernel/printk_ratelimit")
        guest.keep("patient")
        guest.run_line("; ".join(SOON))
        guest.keep("soon")
        yield Table(guest)


def provoking(name: str, processor: int | None = None) -> str:
    line = f"echo {name} > /sys/kernel/debug/provoke-crash/DIRECT"
    return line if processor is None else f"taskset {1 << processor} sh -c '{line}'"


@pytest.mark.parametrize("name", PATIENT)
def test_each_crash_is_one_bundle_of_its_title_function_and_line(table: Table, name: str) -> None:
    table.guest.put_back("patient")
    table.is_about(*table.provoked(provoking(name), PATIENT[name], *PATIENT[name].may_be))


@pytest.mark.parametrize("name", LOCKED)
def test_what_does_not_get_on_is_one_bundle_too(table: Table, name: str) -> None:
    table.guest.put_back("soon")
    processor = 0 if name == "HARDLOCKUP" else None
    table.is_about(*table.provoked(provoking(name, processor), LOCKED[name], *LOCKED[name].may_be))


def test_who_waits_for_a_lock_that_is_never_given_back_is_found(table: Table) -> None:
    table.guest.put_back("soon")
    first = PATIENT["SPINLOCKUP"]
    table.provoked(provoking("SPINLOCKUP"), first, *first.may_be)
    report, _ = table.provoked(provoking("SPINLOCKUP"), SPINLOCKUP_AGAIN)
    assert (report["function"], report["fatal"]) == (SPINLOCKUP_AGAIN.function, False)
    assert report["state"] == "complete", report["parts"]
    assert report["where"]["calls"][-1]["file"] == "kernel/locking/qspinlock.c"
    assert "direct_entry" in "\n".join(report["explained"])


def test_what_is_no_crash_leaves_nothing(table: Table) -> None:
    guest = table.guest
    guest.put_back("patient")
    quiet = [name for name, one in LKDTM.items() if isinstance(one, Nothing)]
    assert len(quiet) == 20
    for name in quiet:
        guest.run_line(provoking(name))
    # What had been noticed of them would come before this.
    table.is_about(*table.provoked(provoking("BUG"), PATIENT["BUG"]))
    assert b"no such crash" not in guest.console()


def test_a_kernel_that_can_say_nothing_is_told_by_its_silence(table: Table) -> None:
    guest = table.guest
    guest.put_back("soon")
    guest.configure("crash_silence_seconds = 3.0\n")
    report, _ = table.provoked(f"{provoking('HARDLOCKUP', 0)} & {provoking('HARDLOCKUP', 1)}", NO_OUTPUT)
    assert (report["kind"], report["noticed_by"], report["where"]) == ("silence", "silence", None)
    assert report["state"] == "complete", report["parts"]
    for one in report["processors"]:
        assert NO_OUTPUT.function in functions(one["backtrace"])
        (call,) = [
            each
            for frame in one["backtrace"]
            for each in frame["calls"]
            if each["function"] == NO_OUTPUT.function
        ]
        table.is_at(call, NO_OUTPUT)


def test_gdb_finds_the_same_lines(table: Table) -> None:
    assert table.places
    theirs = table.guest.lines(table.places)
    # gdb reads no lines of code that lies among data: EXEC_RODATA's.
    mine = {place: line for place, line in table.places.items() if place[0] != "lkdtm_rodata_do_nothing"}
    assert {place: theirs[place] for place in mine} == mine


def test_there_was_nothing_else(table: Table) -> None:
    table.look_for_strange()
    assert not table.strange
