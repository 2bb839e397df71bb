"""What debuggers are served of a made-up guest: names, files, changes, limits, and nothing where nothing is known."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TypeVar

from symbols_lab import Image
from test_debuginfo_finders import ONE, TWO, kernel
from test_symbols_modules import kernel_in
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from kbridge.console.ring import Ring
from kbridge.debuginfo import objects
from kbridge.debuginfo.claims import Claims
from kbridge.debuginfo.finders import Finder, read_kernel
from kbridge.debuginfo.objects import DebuggerObjects, libraries_xml
from kbridge.errors import GuestError
from symbols import elf
from symbols.reads import Search

_Result = TypeVar("_Result")


class Memory:
    """A guest's memory that a test exchanges, or takes away."""

    def __init__(self) -> None:
        self.image = Image()
        self.problem: Exception | None = None
        self.stalls: Deferred[None] | None = None

    async def run(self, search: Search[_Result]) -> _Result:
        if self.stalls is not None:
            await self.stalls
        if self.problem is not None:
            raise self.problem
        return self.image.run(search)


class ObjectsTest(TestCase):
    def setUp(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="kb-"))
        self.addCleanup(shutil.rmtree, self.dir)
        (self.dir / "vmlinux").write_bytes(kernel(ONE))
        (self.dir / "vmlinux-2").write_bytes(kernel(TWO))
        self.memory = Memory()
        self.objects = DebuggerObjects(
            reactor, "web1", self.memory, Finder(None, [self.dir]), self.dir / "links"
        )
        self.boot("vmlinux", 0x200000)

    def boot(self, name: str, slide: int) -> None:
        self.memory.image = Image()
        linked = read_kernel(self.dir / name).linked
        kernel_in(self.memory.image, linked, slide)

    def ask(self, kind: str, key: str = "", session: str = "ann") -> Deferred[bytes | None]:
        answered: Deferred[bytes | None] = Deferred()
        self.objects.ask(session, kind, key, answered.callback)
        return answered

    async def test_the_main_file_is_at_its_true_address(self) -> None:
        name = await self.ask("exec-file")
        assert name is not None
        assert re.fullmatch(rb"/kbridge/vmlinux-000102030405@ffffffff81201000", name)
        image = await self.ask("file", name.decode())
        assert image is not None
        assert elf.symbol_values(image, ["modules"]) == {"modules": 0xFFFFFFFF81200020}
        assert elf.build_id(image) == ONE.hex()
        assert await self.ask("file", name.decode()) is image

    async def test_the_console_tells_where_a_kernel_without_interrupt_table_is(self) -> None:
        self.memory.image = Image()
        kernel_in(self.memory.image, read_kernel(self.dir / "vmlinux").linked, 0x16800000, table=False)
        ring = Ring.anonymous(1 << 16)
        self.addCleanup(ring.close)

        async def counter() -> int | None:
            return None

        served = DebuggerObjects(
            reactor,
            "web1",
            self.memory,
            Finder(None, [self.dir]),
            self.dir / "links",
            claims=Claims(ring, counter),
        )
        for text, way in (
            (b"", "scan"),
            (b"Kernel Offset: 0x2e400000 from 0xffffffff81000000\n", "scan"),
            (b"Kernel Offset: 0x16800000 from 0xffffffff81000000\n", "console"),
        ):
            ring.append(text)
            served._kernel.forget()
            assert f"found by   {way};" in await served.describe()

    async def test_memory_that_does_not_come_is_said_so_in_time(self) -> None:
        self.patch(objects, "WORDS_SECONDS", 0.05)
        self.memory.stalls = Deferred()
        words = "the guest's memory was not read within 0.05 s"
        assert f"no symbols: {words}" in await self.objects.describe()
        self.memory.stalls = Deferred()
        assert f"no list of modules: {words}" in await self.objects.describe_modules()
        self.memory.stalls = None
        assert f"build-id {ONE.hex()}" in await self.objects.describe()

    async def test_a_kernel_without_symbols_of_its_own_gets_them_from_the_system_map_that_fits(self) -> None:
        linked = read_kernel(self.dir / "vmlinux").linked
        for path in self.dir.glob("vmlinux*"):
            path.unlink()
        assert linked.divide_error is not None
        banner = linked.notes + 0x1000
        notes = [("__start_notes", linked.notes), ("__stop_notes", linked.notes + linked.notes_size)]
        text = "".join(
            f"{address:016x} T {name}\n"
            for name, address in [
                ("asm_exc_divide_error", linked.divide_error),
                *notes,
                ("linux_banner", banner),
            ]
        )
        self.memory.image.pieces[banner + 0x200000] = b"Linux version 6.1.0-test (someone)"
        # Of another release, another layout, and none at all.
        (self.dir / "System.map-6.1.0-tes").write_text(text)
        (self.dir / "System.map-6.1.0-other").write_text(text)
        (self.dir / "System.map-6.1.0").write_text(
            text.replace(f"{linked.divide_error:016x}", f"{1 << 40:016x}")
        )
        (self.dir / "System.map").write_text("nothing\n")
        assert "no System.map fits it" in await self.objects.describe()
        (self.dir / "System.map-6.1.0-test").write_text(text)
        said = await self.objects.describe()
        assert f"build-id {ONE.hex()}" in said
        assert f"found by   interrupt table and {self.dir}/System.map-6.1.0-test" in said
        name = await self.ask("exec-file")
        assert name is not None
        image = await self.ask("file", name.decode())
        assert image is not None
        assert elf.symbol_values(image, ["linux_banner"]) == {"linux_banner": banner + 0x200000}

    async def test_names_that_were_not_offered_lead_nowhere(self) -> None:
        await self.ask("exec-file")
        for name in ("", "/etc/passwd", "/kbridge/vmlinux", "/kbridge/../etc/passwd", "just probing"):
            assert await self.ask("file", name) is None
        assert await self.ask("auxv") is None

    async def test_a_reboot_is_told_to_each_session_once(self) -> None:
        first = await self.ask("exec-file")
        await self.ask("exec-file", session="ben")
        assert await self.ask("changes") == b""
        self.boot("vmlinux", 0x400000)
        told = await self.ask("changes")
        assert told is not None
        name = bytes.fromhex(told.removeprefix(b"exec:").decode())
        assert name != first
        assert await self.ask("changes") == b""
        assert await self.ask("changes", session="ben") == told
        assert await self.ask("file", name.decode())

    async def test_another_kernel_is_told_as_such(self) -> None:
        await self.ask("exec-file")
        self.boot("vmlinux-2", 0x200000)
        told = await self.ask("changes")
        assert told is not None
        assert b"vmlinux-0102030405" in bytes.fromhex(told.removeprefix(b"exec:").decode())

    async def test_who_came_before_there_was_a_kernel_is_told_when_there_is(self) -> None:
        self.memory.image = Image()
        assert await self.ask("exec-file") is None
        assert await self.ask("changes") is None
        self.boot("vmlinux", 0x200000)
        told = await self.ask("changes")
        assert told is not None
        assert told.startswith(b"exec:")

    async def test_no_memory_and_no_files_are_no_objects_and_a_reason(self) -> None:
        self.memory.problem = GuestError("the guest runs")
        assert await self.ask("exec-file") is None
        assert self.objects.problem == "the guest runs"
        assert "no symbols: the guest runs" in await self.objects.describe()
        self.memory.problem = None
        self.memory.image = Image()
        assert await self.ask("libraries") is None
        assert "has no interrupt table" in await self.objects.describe()
        assert "no list of modules" in await self.objects.describe_modules()
        self.boot("vmlinux", 0)
        assert await self.ask("exec-file") is not None
        assert self.objects.problem == ""

    async def test_a_question_is_answered_in_time_and_what_is_found_later_told_with_the_next_stop(
        self,
    ) -> None:
        self.patch(objects, "ANSWER_SECONDS", 0.05)
        stalls = self.memory.stalls = Deferred()
        assert await self.ask("exec-file") is None
        self.patch(objects, "ANSWER_SECONDS", 10)
        self.memory.stalls = None
        stalls.callback(None)
        told = await self.ask("changes")
        assert told is not None
        assert told.startswith(b"exec:")
        assert await self.ask("changes") == b""

    async def test_a_guest_that_never_answers_is_given_up_and_the_next_question_tried(self) -> None:
        self.patch(objects, "WORK_SECONDS", 0.05)
        self.memory.stalls = Deferred()
        assert await self.ask("exec-file") is None
        assert "was not read within" in self.objects.problem
        self.memory.stalls = None
        assert await self.ask("exec-file") is not None

    async def test_over_a_slow_line_only_the_main_file_is_served(self) -> None:
        links = self.dir / "links"
        self.objects = DebuggerObjects(
            reactor, "web1", self.memory, Finder(None, [self.dir]), links, quick=False
        )
        assert await self.ask("exec-file") is not None
        assert await self.ask("libraries") == b"<library-list>\n</library-list>"
        assert await self.ask("changes") == b""
        self.objects = DebuggerObjects(reactor, "web1", self.memory, Finder(None, []), links, quick=False)
        assert await self.ask("exec-file") is None
        assert "slow line" in self.objects.problem

    async def test_a_file_that_was_exchanged_is_not_served_for_the_old_one(self) -> None:
        name = await self.ask("exec-file")
        assert name is not None
        (self.dir / "vmlinux").write_bytes(kernel(TWO))
        assert await self.ask("file", name.decode()) is None
        assert "was changed" in self.objects.problem

    async def test_sessions_and_files_are_limited(self) -> None:
        self.patch(objects, "MOST_SESSIONS", 4)
        self.patch(objects, "MOST_BYTES", 1)
        for number in range(10):
            self.boot("vmlinux", number << 21)
            name = await self.ask("exec-file", session=f"user-{number}")
            assert name is not None
            assert await self.ask("file", name.decode())
        assert len(self.objects._told) == 4
        assert len(self.objects._made) == 1
        assert len(self.objects._makers) <= 8

    async def test_a_bug_is_logged_and_answered(self) -> None:
        self.memory.problem = ZeroDivisionError("on purpose")
        assert await self.ask("exec-file") is None
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    async def test_a_kernel_whose_types_are_not_known_has_no_list_of_modules(self) -> None:
        await self.ask("exec-file")
        assert await self.ask("libraries") is None
        assert "no BTF" in self.objects.problem


def test_the_list_of_libraries() -> None:
    found = libraries_xml([("/kbridge/a<b.ko", [0x1000, 0x2000]), ("/kbridge/empty.ko", [])])
    sections = b'<section address="0x1000"/><section address="0x2000"/>'
    assert b'<library name="/kbridge/a&lt;b.ko">' + sections + b"</library>" in found
    assert b"empty" not in found
    assert libraries_xml([]) == b"<library-list>\n</library-list>"
