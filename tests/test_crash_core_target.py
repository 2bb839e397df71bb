"""A core file as a target, over the wire and by its port: registers, memory, threads, refusals."""

from __future__ import annotations

import binascii
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_lab import PHYSICAL, STEXT, core, packed, small_machine, state_note, status_note

from gdbstubs.errors import EFAULT, EIO, EPERM, ESRCH, TargetError
from gdbstubs.server import Server
from gdbstubs.target import Action, Breakpoint, BreakpointKind, Halted, Motion, ThreadId
from gdbstubs.x86 import X86_64
from kbridge.crash.core_file import CoreFile
from kbridge.crash.core_target import FIRST_TASK, CoreTarget, Threads
from symbols.tasks import Task

ASLEEP = Task(1, 57, 57, "sh", 1, 0, False, None, {"rip": STEXT + 8, "rsp": 0x1000, "rbp": 3})
RUNS = Task(2, 58, 58, "panics", 0, 1, True, None, {})


def never() -> None:
    raise AssertionError("nobody waits for tasks")


@pytest.fixture
def opened(tmp_path: Path) -> CoreFile:
    memory, notes = small_machine()
    (tmp_path / "core").write_bytes(packed(core(memory, notes), 10_000))
    return CoreFile.open(tmp_path / "core")


@pytest.fixture
def threads(opened: CoreFile) -> Threads:
    return Threads(opened, ThreadId(2), lambda: None)


@pytest.fixture
def target(opened: CoreFile, threads: Threads) -> CoreTarget:
    return CoreTarget(opened, "vmcore", threads)


def got(ask: Callable[..., None], *arguments: Any) -> Any:
    """What an operation answers, at once."""
    found: list[Any] = []
    ask(*arguments, found.append)
    (answer,) = found
    return answer


def test_processors_have_the_numbers_and_registers_of_a_live_guest(target: CoreTarget) -> None:
    text = got(target.read_registers, ThreadId(1))
    assert len(text) == X86_64.text_length
    values = X86_64.values(text)
    assert (values["rip"], values["cr3"], values["cr4"]) == (STEXT, 0x1000, 0x6A0)
    # What a core file does not have is not made up.
    assert values["xmm0"] is values["efer"] is values["st0"] is None
    assert X86_64.value(got(target.read_register, ThreadId(2), X86_64.names["rip"].number)) == STEXT + 4
    assert got(target.read_register, ThreadId(2), 5000).words == "there is no register 5000"
    assert got(target.read_registers, ThreadId(9)).errno == ESRCH
    assert got(target.why_stopped) == Halted(5, ThreadId(2))
    assert got(target.read_description, "target.xml") == X86_64.document
    assert got(target.read_description, "other.xml") is None


def test_a_machine_that_is_not_in_long_mode_says_so(tmp_path: Path) -> None:
    real = {"cr0": 0x10, "rip": 0xFFF0, "cs": 0xF000}
    (tmp_path / "core").write_bytes(
        core(b"x" * 4096, [status_note(real), state_note(real)]).replace(
            b"\x04\x00>\x00", b"\x04\x00\x03\x00", 1
        )
    )
    found = CoreFile.open(tmp_path / "core")
    target = CoreTarget(found, "vmcore", Threads(found, ThreadId(1), never))
    assert X86_64.values(got(target.read_registers, ThreadId(1)))["efer"] == 0
    found.close()


def test_memory_is_what_each_thread_sees(opened: CoreFile, target: CoreTarget, threads: Threads) -> None:
    assert got(target.read_memory, ThreadId(1), STEXT, 10) == b"the kernel"
    assert got(target.read_memory, ThreadId(1), 0x10, 10).errno == EFAULT
    assert not target.pass_read(ThreadId(1), STEXT, 10, b"", None)  # type: ignore[arg-type]
    threads.complete(opened, [ASLEEP, RUNS], opened.tables(0))
    assert got(target.read_memory, ThreadId(FIRST_TASK + 57), STEXT + 4, 6) == b"kernel"
    assert got(target.read_memory, ThreadId(FIRST_TASK + 99), STEXT, 6).errno == ESRCH


def test_what_is_damaged_in_the_file_is_an_error_of_that_read(tmp_path: Path) -> None:
    memory, notes = small_machine()
    whole = bytearray(packed(core(memory, notes), 10_000))
    (tmp_path / "core").write_bytes(whole)
    found = CoreFile.open(tmp_path / "core")
    load = found.loads[0]
    place = found.source._table.frame(load.offset + PHYSICAL)  # type: ignore[attr-defined]
    found.close()
    whole[place.at + 12] ^= 0xFF
    (tmp_path / "core").write_bytes(whole)
    found = CoreFile.open(tmp_path / "core")
    target = CoreTarget(found, "vmcore", Threads(found, ThreadId(1), never))
    answer = got(target.read_memory, ThreadId(1), STEXT, 10)
    assert answer.errno == EIO
    assert f"is damaged at byte {place.at}" in answer.words
    assert got(target.read_memory, ThreadId(1), STEXT + 0x1_0000, 10) == bytes(10)
    found.close()


def test_tasks_come_after_the_processors_and_name_what_those_execute(opened: CoreFile) -> None:
    wanted: list[bool] = []
    threads = Threads(opened, ThreadId(2), lambda: wanted.append(True))
    target = CoreTarget(opened, "vmcore", threads)
    # The first list is wanted before there is one of tasks; the second waits for them.
    assert [one.extra for one in got(target.list_threads)] == ["CPU#0", "CPU#1"]
    assert wanted == []
    later: list[Any] = []
    target.list_threads(later.append)
    assert (later, wanted) == ([], [True])
    threads.complete(opened, [RUNS, ASLEEP], opened.tables(0))
    (listed,) = later
    assert [(one.id, one.extra) for one in listed] == [
        (1, "CPU#0"), (2, "CPU#1 [58 panics]"), (FIRST_TASK + 57, "57 sh [sleeping]"),
    ]  # fmt: skip
    values = X86_64.values(got(target.read_registers, ThreadId(FIRST_TASK + 57)))
    assert (values["rip"], values["rsp"], values["rbp"], values["rax"]) == (STEXT + 8, 0x1000, 3, None)
    assert got(target.is_alive, ThreadId(FIRST_TASK + 57)) is True
    assert got(target.is_alive, ThreadId(FIRST_TASK + 58)) is False


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("write_memory", (ThreadId(1), STEXT, b"x"), "its memory cannot be changed"),
        ("write_register", (ThreadId(1), 0, b"x" * 8), "its registers cannot be changed"),
        ("write_registers", (ThreadId(1), b""), "its registers cannot be changed"),
        ("resume", ((Action(Motion.CONTINUE),),), "nothing in it runs"),
    ],
)
def test_nothing_is_changed(target: CoreTarget, name: str, arguments: Any, words: str) -> None:
    answer = got(getattr(target, name), *arguments)
    assert isinstance(answer, TargetError)
    assert answer.errno == EPERM
    assert words in answer.words
    assert got(target.insert, Breakpoint(BreakpointKind.SOFTWARE, STEXT, 1)) is None
    assert got(target.remove, Breakpoint(BreakpointKind.SOFTWARE, STEXT, 1)) is None
    target.forget_breakpoints()
    target.interrupt()
    assert got(target.attach) is got(target.detach) is None


def test_over_the_wire_a_resume_is_refused_in_words_and_the_session_goes_on(target: CoreTarget) -> None:
    server = Server(target, lambda command, done: done(""))

    def ask(payload: bytes) -> bytes:
        server.receive(b"$%s#%02x" % (payload, sum(payload) & 0xFF))
        return server.take_output()

    ask(b"qSupported:multiprocess+;swbreak+")
    assert b"T05thread:2;" in ask(b"?")
    words = binascii.hexlify(b"kbridge: vmcore is a memory image: nothing in it runs")
    assert words in (said := ask(b"vCont;c"))
    assert b"T02thread:2;" in said
    assert binascii.hexlify(b"the kernel") in ask(b"m%x,a" % STEXT)
