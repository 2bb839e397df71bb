"""A guest that stands, looked into: its processors, their stacks, its kernel, log, modules and tasks.

in          evidence (registers and memory), files with symbols
out         processors with backtraces, facts of the kernel, its log, its tasks with their stacks
states      nothing known; the kernel found (``backtraces``), after which the rest can be asked for
invariant   each question reads memory anew or fails by itself with ``KbridgeError`` or ``SymbolError``
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from twisted.logger import Logger

from kbridge.crash.explaining import explained, guilty, stacks
from kbridge.crash.facts import Facts, KernelFacts, LoadedModule, Processor, TaskStack
from kbridge.crash.knowledge import Knowledge, Layouts, Library, layouts
from kbridge.crash.naming import NamedModule, Names
from kbridge.debuginfo.kernel import GuestKernel
from kbridge.errors import GuestError
from symbols import dmesg, tasks, vmcoreinfo
from symbols.errors import SymbolError
from symbols.explanation import Explainer
from symbols.reads import Read, Search
from symbols.unwinding import Table, Trace, walk, walk_sleeping

if TYPE_CHECKING:
    from kbridge.crash.evidence import Evidence
    from kbridge.debuginfo.claims import Claims
    from kbridge.debuginfo.finders import Finder
    from kbridge.debuginfo.kernel import Kernel
    from symbols.dmesg import KernelLog
    from symbols.model import Module

AROUND_BYTES: Final = 96
"""Of code before the program counter and after it."""
MOST_ROUNDS: Final = 4
"""In which modules on the stacks are found; a call out of one leads to the next."""
MOST_STRING: Final = 2048
MOST_TYPES: Final = 64 << 20
_PIECE: Final = 1 << 16
_BANNER: Final = "linux_banner"
_COMMAND_LINE: Final = "saved_command_line"
_TYPES: Final = ("__start_BTF", "__stop_BTF")
_STAMP: Final = re.compile(r"\[ *(\d{1,9}\.\d{3,6})\]")
_VERSION: Final = re.compile(r"Linux version (\S+)")
_Result = TypeVar("_Result")

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls what blocks, in a thread."""


class Inspection:
    """One guest at one moment; the module's text says how.  ``facts`` is filled in.

    ``claims``: what is said of where the kernel is, where memory is behind a slow line.
    """

    _log = Logger()

    def __init__(
        self,
        evidence: Evidence,
        finder: Finder,
        library: Library,
        in_thread: InThread,
        facts: Facts,
        *,
        claims: Claims | None = None,
    ) -> None:
        self._evidence = evidence
        self._finder = finder
        self._library = library
        self._in_thread = in_thread
        self._facts = facts
        # What claims are needed for is behind a slow line.
        self._known = GuestKernel(evidence, finder, in_thread, claims, quick=claims is None)
        self._kernel: Kernel | None = None
        self._knowledge = Knowledge()
        self._layouts = Layouts()
        self._names: Names | None = None
        self._tables: list[Table] = []
        self._listed: tuple[Module, ...] = ()

    async def registers(self) -> None:
        """Read the registers of all processors."""
        found = await self._evidence.processors()
        self._facts.processors = tuple(Processor(number, values) for number, values in found)

    async def backtraces(self) -> None:
        """Find the kernel, unwind the stacks of all processors, and explain what the console said.

        Raises ``GuestError`` after that where there are no source lines.
        """
        await self._look()
        assert self._names is not None
        facts = self._facts
        traces = await self._walk_all([one.registers for one in facts.processors])
        code = await self._run(_around([one.registers.get("rip", 0) for one in facts.processors]))
        function = facts.noticed.function
        facts.processors, facts.explained, facts.where = await self._in_thread(
            partial(explained, self._names, facts.processors, traces, code, facts.explained, function)
        )
        facts.guilty = guilty(facts.processors, facts.explained)
        if self._knowledge.problem:
            raise GuestError("there are names but no source lines", why=self._knowledge.problem)

    async def _look(self) -> None:
        """Find the kernel in memory, and what its file tells."""
        finder = self._finder
        kernel = self._kernel = await self._known.look()
        if kernel.path is not None:
            self._knowledge = await self._in_thread(
                partial(self._library.of, kernel.where.build_id, kernel.path, finder)
            )
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
            self._log.info("{guest}: no list of modules: {error}", guest=self._facts.guest, error=str(error))
        self._names.modules = tuple(NamedModule(one) for one in self._listed)

    async def _describe(self, kernel: Kernel) -> None:
        assert self._names is not None
        at = self._names.find(_BANNER, _COMMAND_LINE)
        banner = await self._string(at.get(_BANNER, 0))
        (pointer,) = await self._run(_read((Read(at[_COMMAND_LINE], 8),))) if _COMMAND_LINE in at else (b"",)
        line = await self._string(int.from_bytes(pointer, "little")) if len(pointer) == 8 else ""
        release = _VERSION.match(banner)
        stamps = _STAMP.findall("\n".join(self._facts.explained or self._facts.last_lines))
        self._facts.kernel = KernelFacts(
            build_id=kernel.where.build_id,
            slide=kernel.slide,
            file=None if kernel.path is None else str(kernel.path),
            way=kernel.way,
            banner=banner.strip(),
            release="" if release is None else release[1],
            command_line=line.strip(),
            # The clock of a processor that hangs stands still, and what it says comes last.
            seconds=max(map(float, stamps), default=None),
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

    # -- what can be asked for then --------------------------------------------------------------------------

    def modules(self) -> tuple[LoadedModule, ...]:
        """Return the modules that were loaded."""
        self._need_kernel()
        return tuple(
            LoadedModule(one.name, one.base, one.size, one.build_id, one.taints) for one in self._listed
        )

    async def log(self) -> KernelLog:
        """Read the kernel's log."""
        names = self._need_kernel()
        layout = (await self._types()).log
        at = names.find(dmesg.POINTER_SYMBOL)
        if layout is None or not at:
            raise GuestError(
                "the kernel's log is not of a form that is known", why="it is of a kernel before 5.10"
            )
        return await self._run(dmesg.read(layout, at[dmesg.POINTER_SYMBOL]))

    async def tasks(self) -> list[TaskStack]:
        """Read all tasks and unwind the stacks of those that sleep."""
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
        listed: list[TaskStack] = await self._in_thread(partial(stacks, names, found, traces))
        return listed

    async def vmcoreinfo(self) -> bytes | None:
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

    async def _types(self) -> Layouts:
        """Return the layouts, out of memory where there is no file."""
        types = self._knowledge.types
        if self._layouts == Layouts() and types is not None:
            self._layouts = await self._in_thread(lambda: layouts(bytes(types)))
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

    async def _run(self, search: Search[_Result]) -> _Result:
        return await self._evidence.run(search)

    async def _string(self, address: int) -> str:
        if not address:
            return ""
        (data,) = await self._run(_read((Read(address, MOST_STRING),)))
        return data.partition(b"\0")[0].decode("utf-8", "replace")


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
