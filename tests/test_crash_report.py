"""The report: what is said of the facts, and that nothing in them acts on who reads it."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from kbridge.crash.evidence_kgdb import processor
from kbridge.crash.facts import (
    Call,
    Facts,
    How,
    Instruction,
    KernelFacts,
    LoadedModule,
    Noticed,
    Part,
    PartState,
    Place,
    Processor,
    TaskStack,
)
from kbridge.crash.kinds import Kind
from kbridge.crash.policy import LOOP_NS, After, Loops, OnCrash, Standing, after
from kbridge.crash.report import as_json, as_markdown, registers_json, summary, threads_text
from kbridge.crash.words import WARNINGS, fatal, of_title

NOW = 1_790_000_000 * 1_000_000_000


def facts() -> Facts:
    place = Place(
        0xFFFF_FFFF_8100_0010, "exact", "f", 0x10, 0x40, None, (Call("g", "g.h", 3), Call("f", "f.c", 7))
    )
    caller = Place(0xFFFF_FFFF_C000_0020, "return", "m", 0x20, 0x30, "mod", ())
    guess = Place(0xFFFF_FFFF_8100_0100, "guess", "old", 1, 2)
    made = Facts(
        "20260921-141320-web1",
        "web1",
        Noticed(
            How.CONSOLE, "panic", "kernel panic: x", "the kernel panicked", NOW, alternatives=("y",), function="f",
            begin=10, end=90,
        ),
        machine="panicked",
        kernel=KernelFacts("ab" * 20, 0x1000, "/v", "VMCOREINFO", "Linux version 6.1 (x)", "6.1", "quiet", 75.5),
        processors=(
            Processor(0, {"rip": 0x10}, (Place(0x10),), is_user=True),
            Processor(
                1, {"rip": place.address, "rsp": 1}, (place, caller, guess), "no unwind table knows it",
                code=(Instruction(-1, b"\x90", "nop"), Instruction(0, b"\x0f\x0b", "ud2")),
            ),
        ),
        guilty=1,
        explained=("Kernel panic - not syncing: x", " f+0x10/0x40  f.c:7"),
        last_lines=("before",),
        modules=(LoadedModule("mod", 0xFFFF_FFFF_C000_0000, 4096, None, 1 << 12),),
        policy="leave",
        count=3,
        first_ns=NOW - 10**9,
    )  # fmt: skip
    made.parts = {
        "console": Part(PartState.DONE, file="console.log"),
        "vmcore": Part(PartState.MISSING, "the disk is full"),
    }
    return made


def test_the_report_says_what_where_and_what_next() -> None:
    text = as_markdown(facts())
    assert text.startswith("# kernel panic: x\n\nweb1, 2026-09-21 14:13:20 UTC: the kernel panicked.\n")
    assert "seen          3rd time here, first 2026-09-21 14:13:19 UTC" in text
    assert "build-id      " + "ab" * 20 + ", moved by 0x1000" in text
    assert (
        "## Processor 1, which crashed\n\n    g  g.h:3 (inlined)\n    f+0x10/0x40  f.c:7\n    m+0x20/0x30 [mod]\n"
        in text
    )
    assert "    ? old+0x1/0x2\n    -- no unwind table knows it" in text
    assert "    =>   <+0x10>  0f 0b" in text
    assert "Processor 0: in user space" in text
    assert "- The memory image is missing: the disk is full." in text
    assert "`kbridge gdb web1`" in text
    assert "crash open" not in text
    assert "mod (taints the kernel)" in text


def test_the_document_has_the_same() -> None:
    made = facts()
    document = json.loads(json.dumps(as_json(made)))
    assert document["version"] == 1
    assert document["state"] == "incomplete"
    assert document["processors"][1]["backtrace"][0]["calls"][1] == {
        "function": "f",
        "file": "f.c",
        "line": 7,
    }
    assert document["processors"][1]["backtrace"][2]["trust"] == "guess"
    assert document["parts"]["vmcore"]["why"] == "the disk is full"
    assert summary(document)["count"] == 3
    assert registers_json(made.processors)["1"]["rip"] == "0xffffffff81000010"


def test_a_state_is_pending_until_every_part_was_tried() -> None:
    made = facts()
    made.parts["gdb"] = Part()
    assert made.state == "pending"
    assert "**Not finished**: gdb's view will be added." in as_markdown(made)
    made.parts = {"gdb": Part(PartState.DONE)}
    assert made.state == "complete"
    made.interrupted = "the relay was killed"
    assert made.state == "incomplete"


@given(st.text(max_size=80), st.lists(st.text(max_size=80), max_size=5))
def test_nothing_of_the_guests_acts_on_a_terminal_or_is_markup(title: str, lines: list[str]) -> None:
    made = facts()
    made.noticed = Noticed(How.CONSOLE, "panic", title, "it", NOW, alternatives=(title,), corrupted=title)
    made.explained = made.last_lines = tuple(lines)
    made.kernel = KernelFacts(banner=title, command_line=title)
    text = as_markdown(made)
    assert all(one.isprintable() or one == "\n" for one in text)
    # Its own headings, and no other.
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert [one for one in headings if not one.startswith("## ")] == headings[:1]
    assert len(headings) <= 10
    assert "<" not in text.splitlines()[0]
    json.dumps(as_json(made))


def test_a_function_that_calls_itself_is_shown_once() -> None:
    made = facts()
    again = Place(0x10, "return", "again", 1, 2, None, (Call("h", "h.h", 1), Call("again", "a.c", 2)))
    last = Place(0x20, "return", "last", 1, 2)
    made.processors = (Processor(1, {}, (again,) * 30 + (last,) * 3),)
    said = [f"[   14.39{number:04}]  again+0x5c/0x91  a.c:2" for number in range(30)]
    more = ["[   15.0]  last+0x1/0x2", "[   15.0]  last+0x1/0x2", *["[   15.0] Code: 00"] * 9]
    made.explained = (*said, *more)
    text = as_markdown(made)
    shown = (
        "    h  h.h:1 (inlined)\n    again+0x1/0x2  a.c:2\n    … 29 times more\n" + "    last+0x1/0x2\n" * 3
    )
    assert shown in text
    assert f"    {said[0]}\n    [   14.390000]  … 29 times more\n" in text
    assert "".join(f"    {line}\n" for line in more) in text
    # Programs get them all.
    assert len(as_json(made)["processors"][0]["backtrace"]) == 33
    assert len(as_json(made)["explained"]) == 41


def test_threads_are_listed_with_their_calls() -> None:
    sleeping = TaskStack(
        7, 7, "sh", "sleeping", 1, runs=False, kernel=False, frames=(Place(1, "return", "f", 1, 2),)
    )
    text = threads_text([sleeping, TaskStack(8, 7, "x\x1b", "running", 0, runs=True, kernel=False)])
    assert text.startswith("task 7 sh (sleeping, processor 1)\n    f+0x1/0x2\n\n")
    assert "task 8 x� (running, a thread of 7, processor 0: see registers.json)" in text


# ── the policy ──────────────────────────────────────────────────────────────────────────────────────────────────


def crash(**more: bool | str) -> Noticed:
    return Noticed(How.CONSOLE, "panic", "t", "w", NOW, **more)  # type: ignore[arg-type]


def test_a_dead_guest_gets_what_is_configured() -> None:
    free = Standing(paused_by_us=True, controlled=False, has_machine=True)
    done = {how: after(crash(), how, free)[0] for how in OnCrash}
    assert done == {
        OnCrash.LEAVE: After.NOTHING,
        OnCrash.RESUME: After.RESUME,
        OnCrash.RESET: After.RESET,
        OnCrash.OFF: After.OFF,
    }


@given(
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "kdump"]),
    st.sampled_from(OnCrash),
)
def test_nobody_takes_a_guest_from_its_controller_and_who_paused_lets_go(
    fatal_: bool, paused: bool, controlled: bool, machine: bool, hands: str, how: OnCrash
) -> None:
    standing = Standing(paused_by_us=paused, controlled=controlled, has_machine=machine)
    what, words = after(crash(fatal=fatal_, hands_off=hands), how, standing)
    assert words
    if controlled or hands or not machine:
        assert what is After.NOTHING
        # A debugger of the kernel's own stub knows nothing of the machine's pause.
        inside = Standing(paused_by_us=paused, controlled=controlled, has_machine=machine, stub_inside=True)
        expected = After.RESUME if controlled and paused and machine and not hands else After.NOTHING
        assert after(crash(fatal=fatal_, hands_off=hands), how, inside)[0] is expected
    elif not fatal_:
        assert what is (After.RESUME if paused else After.NOTHING)


@given(st.booleans(), st.booleans(), st.sampled_from(OnCrash))
def test_a_guest_of_which_there_is_only_kgdb_is_left_to_it(
    fatal_: bool, controlled: bool, how: OnCrash
) -> None:
    held = Standing(paused_by_us=False, controlled=controlled, has_machine=False, stub_inside=True, held=True)
    what, words = after(crash(fatal=fatal_), how, held)
    assert what is After.NOTHING
    if controlled:
        assert words == "as it was: it has no machine monitor"
    elif fatal_ and how is not OnCrash.RESUME:
        assert words.startswith("left in its kernel's debugger")
    else:
        assert words in ("went on", "resumed, by its kernel's debugger")


def test_the_processors_of_kgdb_are_its_shadows() -> None:
    for number in (0, 1, 255, 8191):
        assert processor(-2 - number) == processor(-2 - number & 0xFFFF_FFFF) == number
    assert [processor(one) for one in (-1, 0, 1, 42, 0x7FFF_FFFF, 0xFFFF_FFFF, -9000)] == [None] * 7


def test_a_loop_is_kept_in_full_at_first_and_again_after_an_hour() -> None:
    loops = Loops(3)
    assert [loops.is_full("a", NOW + n) for n in range(5)] == [True, True, True, False, False]
    assert loops.is_full("b", NOW)
    assert loops.is_full("a", NOW + LOOP_NS + 1)


@given(st.lists(st.integers(0, 3 * LOOP_NS), max_size=60), st.integers(1, 4))
def test_no_hour_has_more_in_full_than_configured(moments: list[int], full: int) -> None:
    loops = Loops(full)
    kept = [one for one in sorted(moments) if loops.is_full("t", one)]
    for one in kept:
        assert len([other for other in kept if one <= other <= one + LOOP_NS]) <= full


def test_every_kind_has_words_and_only_some_are_deaths() -> None:
    for kind in Kind:
        assert of_title(kind, "")
        assert fatal(kind, "") is (kind in (Kind.PANIC, Kind.KDB))
        assert fatal(kind, "…\nKernel panic - not syncing: Fatal exception\n")
    assert of_title(Kind.OOPS, "Kernel panic - not syncing: x").endswith(", and panicked")
    assert Kind.PANIC not in WARNINGS
