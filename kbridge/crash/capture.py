"""One capture: a guest that crashed in, a bundle out.

    noticed ─▶ bundle ─▶ console ─▶ guest stands ─▶ registers, backtraces ─▶ the report is out
                                                     └▶ log, modules, tasks, gdb, image ─▶ policy ─▶ drgn ─▶ finished

in          what was noticed, the guest's console, machine and stub, files with symbols, time
out         a bundle; what becomes of the guest
invariant   every part has a deadline and fails by itself: the report says which and why.  There is a bundle unless the
            disk takes nothing at all; the policy is carried out even then.  A guest that somebody controls is left so
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from kbridge import gdbmi
from kbridge.config import StubDialect
from kbridge.console.timeline import TIMELINE_NAME, old_path
from kbridge.crash import policy, report
from kbridge.crash.detector import CrashEnds
from kbridge.crash.evidence import NAME, StubEvidence, open_evidence
from kbridge.crash.evidence_kgdb import KgdbEvidence, open_kgdb
from kbridge.crash.explaining import last_crash
from kbridge.crash.facts import (
    Facts,
    How,
    Part,
    PartState,
)
from kbridge.crash.image import take_image
from kbridge.crash.image_file import ImageLimits
from kbridge.crash.inspection import Inspection
from kbridge.crash.running import run
from kbridge.crash.store import DOCUMENT, REPORT, encoded
from kbridge.crash.words import of_title
from kbridge.errors import GuestError, KbridgeError
from kbridge.relay import debug_links
from symbols.errors import SymbolError

if TYPE_CHECKING:
    from kbridge.crash.desk import Desk
    from kbridge.crash.evidence import Evidence
    from kbridge.crash.facts import Noticed
    from kbridge.crash.store import Bundle
    from kbridge.debuginfo.claims import Claims
    from kbridge.guest import Guest

STAND_SECONDS: Final = 10.0
QUICK_SECONDS: Final = 10.0
"""For the console and the registers."""
NAMES_SECONDS: Final = 60.0
"""For backtraces: an index that is not kept yet is made for them."""
MEMORY_SECONDS: Final = 30.0
"""For what is read of memory after them."""
SLOW_SECONDS: Final = 120.0
"""For each part that is read over a serial line."""
IMAGE_SECONDS: Final = 1800.0
IMAGE: Final = "vmcore"
GDB_SECONDS: Final = 60.0
GDB_COMMANDS: Final = ("info threads", "thread apply all bt", "thread apply all info registers")
TOOL_SECONDS: Final = 60.0
MOST_TOOL: Final = 4 << 20
DRGN_CODE: Final = """
from drgn.helpers.linux import cpu_curr, for_each_online_cpu
for cpu in for_each_online_cpu(prog):
    task = cpu_curr(prog, cpu)
    print(f"processor {cpu}: task {task.pid.value_()} {task.comm.string_().decode('utf-8', 'replace')}")
    try:
        print(prog.stack_trace(task))
    except (ValueError, LookupError) as error:
        print(f"    -- {error}")
"""
MOST_CONSOLE: Final = 1 << 20
MOST_REPORT: Final = 1 << 16
"""Bytes of a report on the console that are explained."""
MOST_TIMELINE: Final = 1 << 18
LAST_LINES: Final = 60
PANIC: Final = "panic"
PARTS: Final = ("console", "timeline", "registers", "backtraces", "modules", "dmesg", "tasks")
_Result = TypeVar("_Result")


class Capture:
    """One capture; the module's text says how."""

    _log = Logger()

    def __init__(self, desk: Desk, guest: Guest, noticed: Noticed) -> None:
        self._desk = desk
        self._reactor = desk.reactor
        self._guest = self.guest = guest
        self._noticed = noticed
        self.told: Deferred[str] = Deferred()
        """Has the bundle's name once its report can be read."""
        self.is_open = True
        """Whether what comes now belongs to this crash: its guest was not let go yet."""
        self._bundle: Bundle | None = None
        self._evidence: Evidence | None = None
        self._inspection: Inspection | None = None
        self._paused = False
        self._was_at_kdb = False
        self._memory_seconds = MEMORY_SECONDS
        folders = (*guest.config.debug_dirs, *desk.debug_dirs())
        self.facts = Facts(
            "", guest.name, noticed, policy=guest.config.on_crash.value, debug_dirs=tuple(map(str, folders))
        )

    @property
    def id(self) -> str:
        """The bundle's name; empty where there is none."""
        return "" if self._bundle is None else self._bundle.id

    def followed_by(self, other: Noticed) -> None:
        """Take note of a crash that came while this one's evidence is being taken."""
        if other.title not in self.facts.also and other.title != self._noticed.title:
            self.facts.also = (*self.facts.also, other.title)
        if other.fatal and not self._noticed.fatal:
            self._noticed = self.facts.noticed = replace(self._noticed, fatal=True)

    def close(self) -> None:
        """Take no more: what comes now is another crash."""
        self.is_open = False

    # -- the whole ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take the evidence and carry out the policy; raises nothing but for a bug."""
        begun = self._now()
        self._begin()
        await self._console()
        stands = await self._stand()
        if stands:
            await self._take_quick()
        self._publish(begun)
        if stands:
            await self._take_rest()
        await self._leave()

    async def finish(self) -> None:
        """Have tools look at the image, while the guest goes on; then the bundle is finished."""
        if "drgn" in self.facts.parts:
            self._write_report()
            await self._part("drgn", self._drgn(), TOOL_SECONDS, "drgn.txt")
        self._finish()

    def _begin(self) -> None:
        facts = self.facts
        try:
            self._bundle = self._desk.store.begin(
                self._guest.name, self._noticed.wall_ns, self._desk.limits(self._guest)
            )
        except OSError as error:
            self._trouble(error)
            return
        facts.id = self._bundle.id
        counted = self._desk.store.counted(facts.guest, self._noticed.title)
        if counted is not None:
            facts.count, facts.first_ns = counted.count, counted.first_ns
        facts.parts = dict.fromkeys(PARTS, Part())
        if self._noticed.fatal or self._noticed.how is How.HAND:
            # A guest that goes on is not to stand for so long.
            facts.parts["gdb"] = Part()
            if self._guest.config.crash_image:
                facts.parts["vmcore"] = Part()
                if find_spec("drgn") is not None and not self._guest.config.crash_image_recipients:
                    facts.parts["drgn"] = Part()
        # What is there if the relay is killed now.
        self._write_document()

    async def _stand(self) -> bool:
        """See to it that the guest stands; False where it cannot be looked at, which the parts then say."""
        try:
            await self._limited(self._stop(), STAND_SECONDS)
            self._evidence, claims = await self._open()
            self._inspection = Inspection(
                self._evidence,
                self._guest.finder,
                self._desk.library,
                self._in_thread,
                self.facts,
                claims=claims,
            )
        except (KbridgeError, OSError) as error:
            self._miss(str(error))
            return False
        return True

    async def _open(self) -> tuple[Evidence, Claims | None]:
        """Open what the guest is looked into by, and what is said of where its kernel is, if that is needed."""
        guest, relay = self._guest, self._guest.relay
        if guest.machine is not None or relay is None or not relay.is_kernels_own:
            return await self._limited(open_evidence(guest, self._reactor), STAND_SECONDS), None
        await self._limited(guest.past_more(), STAND_SECONDS)
        self._was_at_kdb = guest.at_kdb
        self._memory_seconds = SLOW_SECONDS
        is_asked = self._noticed.how is How.HAND
        stays = is_asked or (self._noticed.fatal and guest.config.on_crash is not policy.OnCrash.RESUME)
        work = open_kgdb(guest, relay, self._reactor, breaks_in=is_asked, stays=stays)
        evidence = await self._limited(work, SLOW_SECONDS)
        return evidence, evidence.claims

    async def _stop(self) -> None:
        machine, facts = self._guest.machine, self.facts
        facts.controlled_by = self._controller()
        if self._noticed.hands_off:
            raise GuestError("it was not touched", why=self._noticed.hands_off)
        if machine is None and self._guest.relay is not None and self._guest.relay.is_kernels_own:
            # Whether it stands only its stub tells, which is asked next.
            return
        if machine is None or not machine.connected:
            problem = "" if machine is None else machine.problem
            raise GuestError(
                f"{self._guest.name} is out of reach", why=problem or "it has no machine monitor"
            )
        state = await machine.query()
        facts.machine = state.run.value
        if state.run.executes and (self._noticed.fatal or facts.controlled_by is None):
            # Written down first: a relay that comes after us lets a guest go that is to go on.
            self._paused = facts.paused = True
            self._write_document()
            await machine.pause()

    def _controller(self) -> str | None:
        relay = self._guest.relay
        return None if relay is None else next((one.name for one in relay.sessions if one.controls), None)

    async def _take_quick(self) -> None:
        is_slow = isinstance(self._evidence, KgdbEvidence)
        await self._part(
            "registers", self._registers(), SLOW_SECONDS if is_slow else QUICK_SECONDS, "registers.json"
        )
        await self._part("backtraces", self._backtraces(), SLOW_SECONDS if is_slow else NAMES_SECONDS)

    async def _take_rest(self) -> None:
        seconds = self._memory_seconds
        await self._part("modules", self._modules(), seconds)
        await self._part("dmesg", self._dmesg(), seconds, "dmesg.txt")
        self._write_report()
        await self._part("tasks", self._tasks(), seconds, "threads.txt")
        if "gdb" in self.facts.parts:
            self._write_report()
            await self._part("gdb", self._gdb(), GDB_SECONDS, "gdb.txt")
        if "vmcore" in self.facts.parts:
            self._write_report()
            await self._part("vmcore", self._image(), IMAGE_SECONDS, IMAGE)

    async def _image(self) -> None:
        machine, config = self._guest.machine, self._guest.config
        if machine is None or self._bundle is None:
            raise GuestError("there is nothing to take it by", why="the guest has no machine monitor")
        limits = self._desk.limits(self._guest)
        text = await self._look.vmcoreinfo()
        taken = await take_image(
            self._reactor,
            machine,
            self._bundle.path / IMAGE,
            ImageLimits(min(config.crash_image_bytes, limits.bytes), limits.free_bytes),
            recipients=config.crash_image_recipients,
            vmcoreinfo=text,
        )
        self.facts.image = {
            "file_bytes": taken.file_bytes,
            "memory_bytes": taken.memory_bytes,
            "processors": taken.processors,
            "vmcoreinfo_from": taken.vmcoreinfo_from or None,
            "encrypted": taken.encrypted,
        }

    async def _gdb(self) -> None:
        """Ask a real gdb, which observes as we do."""
        guest = self._guest
        program = shutil.which("gdb")
        if program is None:
            raise GuestError("there is no gdb", todo="apt-get install gdb")
        if guest.relay is None or not isinstance(self._evidence, StubEvidence):
            why = "the guest has no debug stub that it could work on"
            if isinstance(self._evidence, KgdbEvidence):
                why = "the stub is the kernel's own, and its line too slow for it"
            raise GuestError("gdb was not asked", why=why)
        folders = [*self.facts.debug_dirs, debug_links(guest.state_dir)]
        gdb = await gdbmi.start(self._reactor, program, ["-nx"])
        try:
            text = ""
            for command in (
                f"set debug-file-directory {':'.join(map(str, folders))}",
                "set remotetimeout 30",
                "set backtrace limit 128",
                f"target remote {guest.runtime / 'gdb-observe'}",
            ):
                await gdb.run(command, GDB_SECONDS)
            for command in GDB_COMMANDS:
                text += f"(gdb) {command}\n{await gdb.run(command, GDB_SECONDS)}\n"
        finally:
            await gdb.end()
        self._write("gdb.txt", text.encode("utf-8", "replace"))

    async def _drgn(self) -> None:
        """Ask drgn, which reads the image by itself."""
        image = self.facts.parts.get("vmcore")
        if self._bundle is None or image is None or image.state is not PartState.DONE:
            raise GuestError("there is no memory image for it")
        argv = [sys.executable, "-m", "kbridge", "crash", "open", "--with", "drgn"]
        argv += [argument for one in self.facts.debug_dirs for argument in ("--debug-dir", one)]
        if self.facts.kernel.file is not None:
            argv += ["--vmlinux", self.facts.kernel.file]
        argv += [str(self._bundle.path), "--", "-q", "-e", DRGN_CODE]
        # What is unpacked for it lies in the bundle's folder, where room was made for it.
        env = {**os.environ, "TMPDIR": str(self._bundle.path)}
        status, text = await run(self._reactor, argv, self._bundle.path, TOOL_SECONDS, MOST_TOOL, env)
        self._write("drgn.txt", text.encode("utf-8", "replace"))
        if status:
            last = next((line for line in reversed(text.split("\n")) if line.strip()), "")
            raise GuestError(f"drgn ended with status {status}", why=last[:200])

    async def _leave(self) -> None:
        """Let go of the guest, then do with it what is configured."""
        self.close()
        held = False
        if self._evidence is not None:
            try:
                await self._limited(self._evidence.close(), STAND_SECONDS)
            except KbridgeError as error:
                self._log.warn("{guest}: {error}", guest=self._guest.name, error=str(error))
        if isinstance(self._evidence, KgdbEvidence):
            held = True
            self.facts.read_bytes = self._evidence.bytes_read
            await self._back_to_kdb()
        if self._paused and self._guest.machine is not None:
            try:
                # A pause that was answered too late is one all the same.
                await self._limited(self._guest.machine.query(), STAND_SECONDS)
            except KbridgeError as error:
                self._log.warn("{guest}: {error}", guest=self._guest.name, error=str(error))
        self.facts.outcome = await carry_out(self._guest, self._noticed, paused=self._paused, held=held)
        self._paused = self.facts.paused = False

    async def _back_to_kdb(self) -> None:
        """Show kdb's prompt again to those at the console who had it before kgdb was asked."""
        stays = self._noticed.fatal and self._guest.config.on_crash is not policy.OnCrash.RESUME
        if not self._was_at_kdb or not (stays or self._noticed.how is How.HAND):
            return
        try:
            await self._limited(self._guest.enter_kdb(NAME), STAND_SECONDS)
        except KbridgeError as error:
            self._log.warn("{guest}: {error}", guest=self._guest.name, error=str(error))

    async def let_go(self) -> None:
        """Let a guest go that would go on by itself: the relay ends before its evidence was taken."""
        machine = self._guest.machine
        if self._paused and not self._noticed.fatal and machine is not None and machine.stopped_by_us:
            await machine.resume()
            self._paused = self.facts.paused = False
            self._write_document()

    # -- the console ----------------------------------------------------------------------------------------

    async def _console(self) -> None:
        await self._part("console", self._console_text(), QUICK_SECONDS, "console.log")
        await self._part("timeline", self._time_line(), QUICK_SECONDS, "timeline.jsonl")

    async def _console_text(self) -> None:
        ring, noticed = self._guest.recorder.ring, self._noticed
        data = ring.read(max(ring.oldest, ring.head - MOST_CONSOLE), MOST_CONSOLE) or b""
        self._write("console.log", data)
        start = ring.head - len(data)
        begin = noticed.begin if noticed.end > noticed.begin else ring.head
        before = data[: max(0, begin - start)]
        said = (
            data[max(0, begin - start) : max(0, noticed.end - start)] if noticed.end > noticed.begin else b""
        )
        self.facts.last_lines = tuple(lines_of(before)[-LAST_LINES:])
        self.facts.explained = tuple(lines_of(said[:MOST_REPORT]))

    async def _time_line(self) -> None:
        path = self._guest.state_dir / TIMELINE_NAME
        data = await self._in_thread(partial(_tail, [old_path(path, 1), path], MOST_TIMELINE))
        self._write("timeline.jsonl", data)

    # -- registers and backtraces ---------------------------------------------------------------------------

    async def _registers(self) -> None:
        await self._look.registers()
        self._write("registers.json", encoded(report.registers_json(self.facts.processors)))

    async def _backtraces(self) -> None:
        await self._look.backtraces()

    async def _modules(self) -> None:
        self.facts.modules = self._look.modules()

    async def _dmesg(self) -> None:
        log = await self._look.log()
        data = ("\n".join(log.lines()) + "\n").encode("utf-8", "replace")
        self._write("dmesg.txt", data)
        if self._noticed.how is How.MACHINE and self._noticed.kind == PANIC:
            self._call(await self._in_thread(partial(last_crash, data)))
        if self.facts.kernel.seconds is None and log.records:
            seconds = log.records[-1].nanoseconds / 1e9
            self.facts.kernel = replace(self.facts.kernel, seconds=seconds)
        if log.damaged:
            raise GuestError(f"{log.damaged} messages of the log are damaged or were being written")

    def _call(self, crash: CrashEnds | None) -> None:
        """Give a crash of which the console said nothing the title that the kernel's log tells."""
        if crash is None:
            return
        title, before = crash.title, self._noticed
        self._noticed = self.facts.noticed = replace(
            before,
            kind=title.kind.value,
            title=title.title,
            words=of_title(title.kind, crash.text),
            alternatives=title.alternatives,
            function=title.function or None,
            corrupted=title.corrupted,
        )
        counted = self._desk.store.recount(self._guest.name, before.title, title.title, before.wall_ns)
        self.facts.count, self.facts.first_ns = counted.count, counted.first_ns

    async def _tasks(self) -> None:
        listed = await self._look.tasks()
        self.facts.tasks = len(listed)
        self._write("threads.txt", report.threads_text(listed).encode("utf-8", "replace"))

    @property
    def _look(self) -> Inspection:
        assert self._inspection is not None, "only a guest that stands is looked into"
        return self._inspection

    # -- the bundle -----------------------------------------------------------------------------------------

    def _publish(self, begun: float) -> None:
        """Write the report, and let it be seen."""
        self._write_report()
        if self._bundle is None:
            return
        try:
            self._bundle.publish()
        except OSError as error:
            self._trouble(error)
            return
        self._desk.store.note(report.as_json(self.facts))
        self._desk.published(self, self._now() - begun)

    def _finish(self) -> None:
        for name, part in self.facts.parts.items():
            if part.state is PartState.PENDING:
                self.facts.parts[name] = Part(PartState.MISSING, "it was not tried")
        self._write_report()
        self._desk.finished(self)

    def _write_report(self) -> None:
        self._write_document()
        if self._bundle is not None:
            try:
                self._bundle.write(REPORT, report.as_markdown(self.facts).encode("utf-8", "replace"))
            except OSError as error:
                self._trouble(error)

    def _write_document(self) -> None:
        if self._bundle is None:
            return
        document = report.as_json(self.facts)
        try:
            self._bundle.write(DOCUMENT, encoded(document))
        except OSError as error:
            self._trouble(error)
        else:
            if self._bundle.is_out:
                self._desk.store.note(document)

    def _write(self, name: str, data: bytes) -> None:
        """Write a file of the bundle.  Raises ``OSError``."""
        if self._bundle is not None:
            self._bundle.write(name, data)

    def _trouble(self, error: OSError) -> None:
        why = error.strerror or str(error)
        self._log.warn("{guest}: a crash cannot be kept: {why}", guest=self._guest.name, why=why)

    # -- parts ----------------------------------------------------------------------------------------------

    async def _part(
        self, name: str, work: Coroutine[Any, Any, None], seconds: float, file: str | None = None
    ) -> None:
        """Take one part; whatever becomes of it, the next has its turn."""
        begun = self._now()
        why = ""
        try:
            await self._limited(work, seconds)
        except (KbridgeError, SymbolError) as error:
            why = str(error)
        except OSError as error:
            why = error.strerror or str(error)
        except CancelledError:
            # The relay ends: what is pending is finished by the next.
            raise
        except Exception as error:  # noqa: BLE001 (a bug in one part must not cost the others)
            self._log.failure("{guest}: a bug in taking {part}", guest=self._guest.name, part=name)
            why = f"a bug in kbridge: {error!r}"
        there = file is not None and self._bundle is not None and (self._bundle.path / file).exists()
        state = PartState.MISSING if why and not self._is_partly(name, there) else PartState.DONE
        self.facts.parts[name] = Part(state, why, file if there else None, self._now() - begun)

    def _is_partly(self, name: str, there: bool) -> bool:
        """Whether there is something of a part that has a problem."""
        return there or (name == "backtraces" and any(one.frames for one in self.facts.processors))

    def _miss(self, why: str) -> None:
        for name, part in self.facts.parts.items():
            if part.state is PartState.PENDING:
                self.facts.parts[name] = Part(PartState.MISSING, why)

    async def _limited(self, work: Coroutine[Any, Any, _Result], seconds: float) -> _Result:
        waiting: Deferred[_Result] = Deferred.fromCoroutine(work)
        waiting.addTimeout(seconds, self._reactor)
        try:
            return await waiting
        except DeferredTimeout:
            raise GuestError(f"it was not there within {seconds:g} s") from None

    def _in_thread(self, work: Callable[[], _Result]) -> Deferred[_Result]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)

    def _now(self) -> float:
        return float(self._reactor.seconds())


async def carry_out(guest: Guest, noticed: Noticed, *, paused: bool, held: bool = False) -> str:
    """Do with a guest what is configured; returns in words what became of it."""
    machine, relay = guest.machine, guest.relay
    controlled = relay is not None and any(one.controls for one in relay.sessions)
    by_us = paused and machine is not None and machine.stopped_by_us
    inside = guest.config.dialect is StubDialect.KGDB
    standing = policy.Standing(by_us, controlled, machine is not None and machine.connected, inside, held)
    what, words = policy.after(noticed, guest.config.on_crash, standing)
    if machine is None or what is policy.After.NOTHING:
        return words
    try:
        match what:
            case policy.After.RESUME:
                await machine.resume()
            case policy.After.RESET:
                await machine.cycle()
            case policy.After.OFF:
                await machine.power_off(force=True)
    except KbridgeError as error:
        return f"as it was: {error}"
    return words


def lines_of(data: bytes) -> list[str]:
    """Return console bytes as lines."""
    return data.decode("latin-1").replace("\r", "").split("\n") if data else []


def _tail(paths: Sequence[Path], most: int) -> bytes:
    """Return the end of files as one, whole lines."""
    data = b""
    for path in paths:
        if path.is_file():
            data += path.read_bytes()
    tail = data[-most:]
    return tail if len(tail) == len(data) else tail.partition(b"\n")[2]
