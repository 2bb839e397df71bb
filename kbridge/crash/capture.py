"""One capture: a guest that crashed in, a bundle out.

    noticed ─▶ bundle ─▶ console ─▶ guest stands ─▶ registers, backtraces ─▶ the report is out
                                                     └▶ log, modules, tasks, image, gdb ─▶ policy ─▶ finished

in          what was noticed, the guest's console, machine and stub, files with symbols, time
out         a bundle; what becomes of the guest
invariant   every part has a deadline and fails by itself: the report says which and why.  There is a bundle unless the
            disk takes nothing at all; the policy is carried out even then.  A guest that somebody controls is left so
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from kbridge import gdbmi
from kbridge.console.timeline import TIMELINE_NAME, old_path
from kbridge.crash import policy, report
from kbridge.crash.detector import CrashEnds, Detector
from kbridge.crash.evidence import StubEvidence, open_evidence
from kbridge.crash.facts import (
    Facts,
    How,
    Instruction,
    KernelFacts,
    LoadedModule,
    Part,
    PartState,
    Place,
    Processor,
    TaskStack,
)
from kbridge.crash.image import take_image
from kbridge.crash.image_file import ImageLimits
from kbridge.crash.knowledge import Knowledge, Layouts, layouts
from kbridge.crash.naming import NamedModule, Names
from kbridge.crash.store import DOCUMENT, REPORT, encoded
from kbridge.crash.words import of_title
from kbridge.debuginfo.kernel import GuestKernel
from kbridge.errors import GuestError, KbridgeError
from kbridge.relay import debug_links
from symbols import backtrace, dmesg, tasks, vmcoreinfo
from symbols.backtrace import Code
from symbols.errors import SymbolError
from symbols.explanation import Explainer
from symbols.reads import Read, Search
from symbols.unwinding import Table, Trace, Trust, walk, walk_sleeping

if TYPE_CHECKING:
    from kbridge.crash.desk import Desk
    from kbridge.crash.evidence import Evidence
    from kbridge.crash.facts import Noticed
    from kbridge.crash.store import Bundle
    from kbridge.debuginfo.kernel import Kernel
    from kbridge.guest import Guest
    from symbols.model import Module

STAND_SECONDS: Final = 10.0
QUICK_SECONDS: Final = 10.0
"""For registers and backtraces."""
MEMORY_SECONDS: Final = 30.0
"""For what is read of memory after them."""
IMAGE_SECONDS: Final = 1800.0
IMAGE: Final = "vmcore"
GDB_SECONDS: Final = 60.0
GDB_COMMANDS: Final = ("info threads", "thread apply all bt", "thread apply all info registers")
MOST_CONSOLE: Final = 1 << 20
MOST_REPORT: Final = 1 << 16
"""Bytes of a report on the console that are explained."""
MOST_TIMELINE: Final = 1 << 18
LAST_LINES: Final = 60
AROUND_BYTES: Final = 96
"""Of code before the program counter and after it."""
SHOWN_BEFORE: Final = 8
SHOWN_AFTER: Final = 8
MOST_ROUNDS: Final = 4
"""In which modules on the stacks are found; a call out of one leads to the next."""
MOST_STRING: Final = 2048
_BANNER: Final = "linux_banner"
_COMMAND_LINE: Final = "saved_command_line"
_TYPES: Final = ("__start_BTF", "__stop_BTF")
MOST_TYPES: Final = 64 << 20
_PIECE: Final = 1 << 16
PANIC: Final = "panic"
_CPU: Final = re.compile(r"\bCPU: (\d{1,4}) (?:UID: \d+ )?PID: ")
_STAMP: Final = re.compile(r"\[ *(\d{1,9}\.\d{3,6})\]")
_VERSION: Final = re.compile(r"Linux version (\S+)")
_DYING: Final = frozenset(("panic", "__crash_kexec", "crash_kexec", "oops_end", "kgdb_panic", "nmi_panic"))
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
        self._known: GuestKernel | None = None
        self._kernel: Kernel | None = None
        self._knowledge = Knowledge()
        self._layouts = Layouts()
        self._names: Names | None = None
        self._tables: list[Table] = []
        self._listed: tuple[Module, ...] = ()
        self._paused = False
        self.facts = Facts("", guest.name, noticed, policy=guest.config.on_crash.value)

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
        # What is there if the relay is killed now.
        self._write_document()

    async def _stand(self) -> bool:
        """See to it that the guest stands; False where it cannot be looked at, which the parts then say."""
        try:
            await self._limited(self._stop(), STAND_SECONDS)
            self._evidence = await self._limited(open_evidence(self._guest, self._reactor), STAND_SECONDS)
        except (KbridgeError, OSError) as error:
            self._miss(str(error))
            return False
        return True

    async def _stop(self) -> None:
        machine, facts = self._guest.machine, self.facts
        facts.controlled_by = self._controller()
        if self._noticed.hands_off:
            raise GuestError("it was not touched", why=self._noticed.hands_off)
        if machine is None or not machine.connected:
            problem = "" if machine is None else machine.problem
            raise GuestError(
                f"{self._guest.name} is out of reach", why=problem or "it has no machine monitor"
            )
        state = await machine.query()
        facts.machine = state.run.value
        if state.run.executes and (self._noticed.fatal or facts.controlled_by is None):
            self._paused = True
            await machine.pause()

    def _controller(self) -> str | None:
        relay = self._guest.relay
        return None if relay is None else next((one.name for one in relay.sessions if one.controls), None)

    async def _take_quick(self) -> None:
        await self._part("registers", self._registers(), QUICK_SECONDS, "registers.json")
        await self._part("backtraces", self._backtraces(), QUICK_SECONDS)

    async def _take_rest(self) -> None:
        await self._part("modules", self._modules(), MEMORY_SECONDS)
        await self._part("dmesg", self._dmesg(), MEMORY_SECONDS, "dmesg.txt")
        self._write_report()
        await self._part("tasks", self._tasks(), MEMORY_SECONDS, "threads.txt")
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
        text = await self._vmcoreinfo()
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

    async def _vmcoreinfo(self) -> bytes | None:
        """Return what makes an image one that every tool opens; None where the kernel does not tell it."""
        at = {} if self._names is None else self._names.find(vmcoreinfo.DATA_SYMBOL, vmcoreinfo.SIZE_SYMBOL)
        if len(at) < 2:
            return None
        try:
            return await self._run(
                vmcoreinfo.text_by_symbol(at[vmcoreinfo.DATA_SYMBOL], at[vmcoreinfo.SIZE_SYMBOL])
            )
        except SymbolError:
            # The image is searched for it then.
            return None

    async def _gdb(self) -> None:
        """Ask a real gdb, which observes as we do."""
        guest = self._guest
        program = shutil.which("gdb")
        if program is None:
            raise GuestError("there is no gdb", todo="apt-get install gdb")
        if guest.relay is None or not isinstance(self._evidence, StubEvidence):
            raise GuestError("gdb was not asked", why="the guest has no debug stub that it could work on")
        folders = [*guest.config.debug_dirs, *self._desk.debug_dirs(), debug_links(guest.state_dir)]
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

    async def _leave(self) -> None:
        """Let go of the guest, then do with it what is configured."""
        self.close()
        if self._evidence is not None:
            try:
                await self._limited(self._evidence.close(), STAND_SECONDS)
            except KbridgeError as error:
                self._log.warn("{guest}: {error}", guest=self._guest.name, error=str(error))
        self.facts.outcome = await carry_out(self._guest, self._noticed, paused=self._paused)

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
        assert self._evidence is not None
        found = await self._evidence.processors()
        self.facts.processors = tuple(Processor(number, values) for number, values in found)
        self._write("registers.json", encoded(report.registers_json(self.facts.processors)))

    async def _backtraces(self) -> None:
        await self._look()
        assert self._names is not None
        facts = self.facts
        traces = await self._walk_all([one.registers for one in facts.processors])
        code = await self._run(_around([one.registers.get("rip", 0) for one in facts.processors]))
        function = self._noticed.function
        facts.processors, facts.explained, facts.where = await self._in_thread(
            partial(_explained, self._names, facts.processors, traces, code, facts.explained, function)
        )
        facts.guilty = _guilty(facts.processors, facts.explained)
        if self._knowledge.problem:
            raise GuestError("there are names but no source lines", why=self._knowledge.problem)

    async def _look(self) -> None:
        """Find the kernel in memory, and what its file tells."""
        assert self._evidence is not None
        finder = self._guest.finder
        self._known = GuestKernel(self._evidence, finder, self._in_thread)
        kernel = self._kernel = await self._known.look()
        if kernel.path is not None:
            self._knowledge = await self._in_thread(
                partial(self._desk.library.of, kernel.where.build_id, kernel.path, finder)
            )
            self._layouts = self._knowledge.layouts
        index, modules = self._knowledge.index, self._knowledge.modules
        self._names = Names(
            kernel, index, (), Explainer(index, (lambda *_: None) if modules is None else modules.find)
        )
        unwinding = kernel.unwinding
        tables, own = self._knowledge.unwinding, kernel.own
        if unwinding is not None and tables is not None:
            self._tables = [Table(unwinding, tables.entries, tables.places, tables.at + (kernel.slide or 0))]
        elif unwinding is not None and own is not None and own.unwind is not None:
            self._tables = [Table(unwinding, own.unwind.entries, own.unwind.places, own.unwind.at)]
        await self._describe(kernel)
        try:
            self._listed = (await self._known.modules(kernel)).modules
        except SymbolError as error:
            self._log.info("{guest}: no list of modules: {error}", guest=self._guest.name, error=str(error))
        self._names.modules = tuple(NamedModule(one) for one in self._listed)

    async def _describe(self, kernel: Kernel) -> None:
        assert self._names is not None
        at = self._names.find(_BANNER, _COMMAND_LINE)
        banner = await self._string(at.get(_BANNER, 0))
        (pointer,) = await self._run(_read((Read(at[_COMMAND_LINE], 8),))) if _COMMAND_LINE in at else (b"",)
        line = await self._string(int.from_bytes(pointer, "little")) if len(pointer) == 8 else ""
        release = _VERSION.match(banner)
        stamps = _STAMP.findall("\n".join(self.facts.explained or self.facts.last_lines))
        self.facts.kernel = KernelFacts(
            build_id=kernel.where.build_id,
            slide=kernel.slide,
            file=None if kernel.path is None else str(kernel.path),
            way=kernel.way,
            banner=banner.strip(),
            release="" if release is None else release[1],
            command_line=line.strip(),
            seconds=float(stamps[-1]) if stamps else None,
        )

    async def _walk_all(self, processors: Sequence[Mapping[str, int]]) -> list[Trace]:
        """Walk the stacks of all processors, with the tables of the modules that are on them."""
        assert self._names is not None
        known: set[int] = set()
        traces: list[Trace] = []
        for _ in range(MOST_ROUNDS):
            traces = [await self._run(walk(one, self._tables, self._names.is_code)) for one in processors]
            addresses = [frame.address for trace in traces for frame in trace.frames]
            met = {
                index
                for index, one in enumerate(self._listed)
                if any(one.base <= address <= one.base + one.size for address in addresses)
            }
            if met <= known:
                break
            await self._learn(sorted(met - known))
            known |= met
        return traces

    async def _learn(self, indexes: Sequence[int]) -> None:
        """Read the symbols and unwind tables that modules have of themselves."""
        assert self._known is not None
        assert self._kernel is not None
        assert self._names is not None
        wanted = tuple(self._listed[one] for one in indexes)
        symbols = await self._known.module_symbols(wanted)
        unwinds = await self._known.module_unwinds(wanted)
        modules = list(self._names.modules)
        layout = self._kernel.unwinding
        for index, one, its, unwind in zip(indexes, wanted, symbols, unwinds, strict=True):
            modules[index] = NamedModule(one, its)
            if unwind is not None and layout is not None:
                self._tables.append(Table(layout, unwind.entries, unwind.places, unwind.at))
        self._names.modules = tuple(modules)

    # -- what is read of memory after them ------------------------------------------------------------------

    async def _modules(self) -> None:
        self._need_kernel()
        self.facts.modules = tuple(
            LoadedModule(one.name, one.base, one.size, one.build_id, one.taints) for one in self._listed
        )

    async def _dmesg(self) -> None:
        names = self._need_kernel()
        layout = (await self._types()).log
        at = names.find(dmesg.POINTER_SYMBOL)
        if layout is None or not at:
            raise GuestError(
                "the kernel's log is not of a form that is known", why="it is of a kernel before 5.10"
            )
        log = await self._run(dmesg.read(layout, at[dmesg.POINTER_SYMBOL]))
        text = "\n".join(log.lines()) + "\n"
        data = text.encode("utf-8", "replace")
        self._write("dmesg.txt", data)
        if self._noticed.how is How.MACHINE and self._noticed.kind == PANIC:
            self._call(await self._in_thread(partial(_last_crash, data)))
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
        names = self._need_kernel()
        layout = (await self._types()).tasks
        at = names.find(tasks.INIT_SYMBOL)
        if layout is None or not at:
            raise GuestError("the layout of tasks is not known", why="the kernel has no BTF that tells it")
        # The first is a processor's idle task.
        found = (await self._run(tasks.read(layout, at[tasks.INIT_SYMBOL])))[1:]
        traces = []
        for one in found:
            trace = Trace((), "its stack cannot be read" if not one.on_cpu else "")
            if one.registers:
                trace = await self._run(walk_sleeping(one.registers, self._tables, names.is_code))
            traces.append(trace)
        stacks = await self._in_thread(partial(_stacks, names, found, traces))
        self.facts.tasks = len(stacks)
        self._write("threads.txt", report.threads_text(stacks).encode("utf-8", "replace"))

    async def _types(self) -> Layouts:
        """Return the layouts, out of memory where there is no file."""
        if self._layouts == Layouts() and self._kernel is not None and self._kernel.own is not None:
            at = self._kernel.own.symbols.find(*_TYPES)
            if len(at) == len(_TYPES) and 0 < at[_TYPES[1]] - at[_TYPES[0]] <= MOST_TYPES:
                start, end = (at[one] for one in _TYPES)
                data = await self._run(
                    _read(tuple(Read(one, min(_PIECE, end - one)) for one in range(start, end, _PIECE)))
                )
                self._layouts = await self._in_thread(partial(layouts, b"".join(data)))
        return self._layouts

    def _need_kernel(self) -> Names:
        if self._names is None:
            raise GuestError("the kernel was not found in memory")
        return self._names

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

    async def _run(self, search: Search[_Result]) -> _Result:
        assert self._evidence is not None
        return await self._evidence.run(search)

    async def _string(self, address: int) -> str:
        if not address:
            return ""
        (data,) = await self._run(_read((Read(address, MOST_STRING),)))
        return data.partition(b"\0")[0].decode("utf-8", "replace")

    def _in_thread(self, work: Callable[[], _Result]) -> Deferred[_Result]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)

    def _now(self) -> float:
        return float(self._reactor.seconds())


async def carry_out(guest: Guest, noticed: Noticed, *, paused: bool) -> str:
    """Do with a guest what is configured; returns in words what became of it."""
    machine, relay = guest.machine, guest.relay
    controlled = relay is not None and any(one.controls for one in relay.sessions)
    by_us = paused and machine is not None and machine.stopped_by_us
    standing = policy.Standing(by_us, controlled, machine is not None and machine.connected)
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


def _around(counters: Sequence[int]) -> Search[list[tuple[bytes, bytes]]]:
    """Read what is before and after each program counter."""
    found = yield tuple(
        one
        for counter in counters
        for one in (
            Read(max(0, counter - AROUND_BYTES), min(AROUND_BYTES, counter)),
            Read(counter, AROUND_BYTES),
        )
    )
    # Before it only what reaches up to it is of use.
    return [
        (before if len(before) == min(AROUND_BYTES, counter) else b"", after)
        for counter, before, after in zip(counters, found[::2], found[1::2], strict=True)
    ]


def _read(reads: tuple[Read, ...]) -> Search[tuple[bytes, ...]]:
    return (yield reads)


def _explained(
    names: Names,
    processors: Sequence[Processor],
    traces: Sequence[Trace],
    code: Sequence[tuple[bytes, bytes]],
    said: Sequence[str],
    function: str | None,
) -> tuple[tuple[Processor, ...], tuple[str, ...], Place | None]:
    """Name frames, disassemble, explain the console's text; in a thread."""
    from symbols.disassembly import Disassembler  # noqa: PLC0415 (large, and for crashes only)

    disassembler = Disassembler()
    found = []
    for one, trace, (before, after) in zip(processors, traces, code, strict=True):
        frames = tuple(names.frame(frame) for frame in trace.frames)
        shown: tuple[Instruction, ...] = ()
        if not trace.is_user or len(trace.frames) > 1:
            shown = _disassembled(disassembler, names, one.registers.get("rip", 0), before, after)
        found.append(Processor(one.number, one.registers, frames, trace.problem, trace.is_user, shown))
    return tuple(found), tuple(names.explainer.explain(said)), _crashed_at(names, said, function)


def _crashed_at(names: Names, said: Sequence[str], function: str | None) -> Place | None:
    """Return the place in the text that the title is about, else where the program counter was."""
    places = []
    for line in backtrace.read(said):
        if line.is_doubtful or line.is_user:
            continue
        for one in line.places:
            # What compilers made of a function has its name and more.
            if one.name.partition(".")[0] == function:
                return names.told(one)
            if line.segment is not None or line.is_frame:
                places.append(one)
    return names.told(places[0]) if places else None


def _disassembled(
    disassembler: Any, names: Names, counter: int, before: bytes, after: bytes
) -> tuple[Instruction, ...]:
    place = names.place(counter)

    def near(distance: int) -> str | None:
        other = names.place(counter + distance)
        if other.name is None:
            return None
        if other.name == place.name:
            return f"<+{other.offset:#x}>"
        return other.name + (f"+{other.offset:#x}" if other.offset else "")

    offset = place.offset if place.name is not None else None
    listed = disassembler.disassemble(Code(before + after, len(before)), offset, near)
    at = next((index for index, one in enumerate(listed) if one.offset == 0), None)
    if at is None:
        return ()
    return tuple(
        Instruction(one.offset, one.data, one.text)
        for one in listed[max(0, at - SHOWN_BEFORE) : at + SHOWN_AFTER + 1]
        if offset is None or 0 <= offset + one.offset < place.size
    )


def _guilty(processors: Sequence[Processor], said: Sequence[str]) -> int | None:
    """Return which processor crashed: as the text says, else the one that is in the kernel's code for that."""
    told = next((int(found[1]) for line in said if (found := _CPU.search(line))), None)
    if told is not None and any(one.number == told for one in processors):
        return told
    for one in processors:
        if any(frame.name in _DYING and frame.trust != Trust.GUESS.value for frame in one.frames):
            return one.number
    return processors[0].number if len(processors) == 1 else None


def _last_crash(log: bytes) -> CrashEnds | None:
    """Return the last crash that a kernel's log tells."""
    detector = Detector()
    events = [*detector.feed(log), *detector.settle()]
    ends = [one for one in events if isinstance(one, CrashEnds)]
    return ends[-1] if ends else None


def _stacks(names: Names, found: Sequence[tasks.Task], traces: Sequence[Trace]) -> list[TaskStack]:
    return [
        TaskStack(
            one.pid, one.tgid, one.name, one.says, one.cpu, one.on_cpu, one.tables is None,
            tuple(names.frame(frame) for frame in trace.frames), trace.problem,
        )
        for one, trace in zip(found, traces, strict=True)
    ]  # fmt: skip


def _tail(paths: Sequence[Path], most: int) -> bytes:
    """Return the end of files as one, whole lines."""
    data = b""
    for path in paths:
        if path.is_file():
            data += path.read_bytes()
    tail = data[-most:]
    return tail if len(tail) == len(data) else tail.partition(b"\n")[2]
