"""The kernel that a guest runs now: which, where, with which modules; looked at again whenever somebody asks.

in          searches of guest memory, files
out         ``Kernel``, its modules
invariant   what is returned was verified in memory at this very moment: a guest that rebooted, or went over to another
            kernel by kexec, is never taken for what it was

Where no file is of this kernel, its own table of symbols, its types and its unwind tables are read out of memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from kbridge.debuginfo.finders import read_layouts
from symbols import elf, kallsyms, kaslr, module_symbols, modules, orc, system_map
from symbols.errors import SlideUnknown, SymbolError
from symbols.kallsyms import FARTHEST, STEP, Kallsyms
from symbols.kaslr import Linked
from symbols.reads import Read

if TYPE_CHECKING:
    from pathlib import Path

    from kbridge.debuginfo.claims import Claims
    from kbridge.debuginfo.finders import Finder
    from symbols.model import Module
    from symbols.module_symbols import ModuleSymbol
    from symbols.modules import ModuleLayout, ModuleList
    from symbols.orc import OrcLayout
    from symbols.reads import Search

BANNER_SYMBOL: Final = "linux_banner"
_BANNER: Final = b"Linux version "
MOST_TYPES_BYTES: Final = 64 << 20
_PIECE: Final = 1 << 16
_Result = TypeVar("_Result")

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls what blocks, in a thread."""


class Memory(Protocol):
    """The guest's virtual memory."""

    async def run(self, search: Search[_Result]) -> _Result:
        """Drive a search; raises what it raises, and ``KbridgeError`` where memory cannot be read now."""


@dataclass(frozen=True, slots=True)
class Unwind:
    """Unwind tables: the entries, where the places are that they are for, and those."""

    entries: bytes
    at: int
    places: bytes


@dataclass(frozen=True, slots=True)
class OwnTables:
    """What a kernel says of itself in memory; addresses as they are there."""

    symbols: Kallsyms
    notes: bytes
    unwind: Unwind | None
    """Its unwind tables; None where it has none."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in memory."""

    where: Linked
    """Where its build-id is, as in memory."""
    slide: int | None
    """By how much it was moved; None where no file says where it was linked."""
    way: str
    """How it was found."""
    path: Path | None
    """Its file."""
    own: OwnTables | None
    """Where there is no file."""
    module_list: int | None
    """Of the head of the list of modules; None in a kernel without modules."""
    layout: ModuleLayout | None
    """Of ``struct module``; None where it is not known."""
    unwinding: OrcLayout | None
    """Of the entries of unwind tables; likewise."""


class GuestKernel:
    """What is known of one guest's kernel; the module's text says how."""

    def __init__(
        self,
        memory: Memory,
        finder: Finder,
        in_thread: InThread,
        claims: Claims | None = None,
        *,
        quick: bool = True,
    ) -> None:
        self._memory = memory
        self._claims = claims
        self._quick = quick
        self._finder = finder
        self._in_thread = in_thread
        self._known: Kernel | None = None
        self._modules: ModuleList | None = None

    async def look(self) -> Kernel:
        """Return the kernel in memory.  Raises ``SymbolError`` where there is none, or none that can be understood."""
        known = self._known
        if known is not None and await self._memory.run(kaslr.is_at(known.where, 0)):
            return known
        self._known = self._modules = None
        self._known = await self._by_file()
        if self._known is None:
            if not self._quick:
                raise SlideUnknown("no file of its kernel is known, and its memory is behind a slow line")
            self._known = await self._by_name_of_memory()
        return self._known

    async def has_booted(self) -> None:
        """Raise ``SlideUnknown`` while there is no interrupt table: cheap, unlike the search of ``look``."""
        await self._memory.run(kaslr.divide_error_handler())

    def forget(self) -> None:
        """Look anew the next time: a file came that may be its."""
        self._known = self._modules = None

    async def _by_name_of_memory(self) -> Kernel:
        """Return the kernel by a file that only its build-id leads to, else by what it says of itself."""
        own = await self._by_memory()
        path = await self._in_thread(partial(self._finder.by_build_id, own.where.build_id))
        if path is None:
            return own
        self._finder.offer(path)
        return await self._by_file() or own

    async def _by_file(self) -> Kernel | None:
        files = await self._in_thread(self._finder.kernels)
        if not files:
            return None
        candidates = [one.linked for one in files]
        claims = () if self._claims is None else await self._claims.of(candidates)
        try:
            found = await self._memory.run(kaslr.find(candidates, claims))
        except SlideUnknown:
            # None of them is this kernel's: it may tell of itself.
            return None
        file, slide = files[found.index], found.slide
        linked = file.linked
        return Kernel(
            Linked(linked.build_id, linked.notes + slide, linked.notes_size, None),
            slide,
            found.way,
            file.path,
            None,
            None if file.modules is None else file.modules + slide,
            file.layout,
            file.unwinding,
        )

    async def _by_memory(self) -> Kernel:
        handler = await self._memory.run(kaslr.divide_error_handler())
        way = "interrupt table and its own symbols"
        try:
            symbols = await self._own_symbols(handler)
        except kallsyms.KallsymsError:
            # Built without them, or damaged.
            path, symbols = await self._by_system_map(handler)
            way = f"interrupt table and {path}"
        names = symbols.find(
            "__start_notes", "__stop_notes", "__start_BTF", "__stop_BTF", modules.LIST_SYMBOL,
            orc.START, orc.STOP, orc.START_PLACES, orc.STOP_PLACES,
        )  # fmt: skip
        notes = await self._range(names, "__start_notes", "__stop_notes")
        build_id = elf.build_id_of_notes(notes)
        if build_id is None:
            raise SymbolError("the kernel in memory has no build-id where its symbols say that it is")
        types = await self._range(names, "__start_BTF", "__stop_BTF")
        layout, unwinding = await self._in_thread(partial(read_layouts, types, self._finder.layouts))
        unwind = None
        if unwinding is not None:
            entries = await self._range(names, orc.START, orc.STOP)
            places = await self._range(names, orc.START_PLACES, orc.STOP_PLACES)
            if entries and places:
                unwind = Unwind(entries, names[orc.START_PLACES], places)
        return Kernel(
            Linked(build_id, names["__start_notes"], len(notes), None),
            None,
            way,
            None,
            OwnTables(symbols, notes, unwind),
            names.get(modules.LIST_SYMBOL),
            layout,
            unwinding,
        )

    async def _own_symbols(self, handler: int) -> Kallsyms:
        start = kallsyms.first_place(handler)
        data = bytearray()
        tries = 0
        while len(data) < FARTHEST:
            piece = await self._memory.run(kallsyms.more(start + len(data)))
            data += piece
            ended = len(piece) < STEP
            if ended or kallsyms.has_tokens(data):
                try:
                    found: Kallsyms = await self._in_thread(partial(kallsyms.decode, bytes(data)))
                except kallsyms.KallsymsError:
                    tries += 1
                    if ended or tries == kallsyms.MOST_TRIES:
                        raise
                else:
                    return found
        raise kallsyms.KallsymsError(f"the kernel has no table of symbols within {FARTHEST >> 20} MB")

    async def _by_system_map(self, handler: int) -> tuple[Path, Kallsyms]:
        """Return the symbols of the System.map that fits, moved to where the kernel is, and its path.

        It has no build-id to compare: the kernel's banner is read back where it says, and tells the release.
        """
        for path in await self._in_thread(self._finder.system_maps):
            try:
                listed: Kallsyms = await self._in_thread(partial(_read_system_map, path))
                known = listed.find(kaslr.DIVIDE_ERROR_SYMBOL, BANNER_SYMBOL)
                slide = kaslr.slide(handler, known.get(kaslr.DIVIDE_ERROR_SYMBOL, 0))
            except (SymbolError, OSError):
                continue
            release = path.name.removeprefix("System.map").removeprefix("-").encode()
            begins = _BANNER + release + (b" " if release else b"")
            (banner,) = await self._memory.run(
                _read((Read(known.get(BANNER_SYMBOL, 0) + slide, len(begins)),))
            )
            if banner == begins:
                return path, listed.moved(slide)
        raise SlideUnknown("the kernel has no table of symbols in memory, and no System.map fits it")

    async def _range(self, names: dict[str, int], start: str, stop: str) -> bytes:
        """Return the memory between two symbols; nothing where either is not there."""
        if start not in names or stop not in names or not names[start] <= names[stop]:
            return b""
        size = names[stop] - names[start]
        if size > MOST_TYPES_BYTES:
            raise SymbolError(f"{size} bytes between {start} and {stop}")
        pieces = [Read(at, min(_PIECE, names[stop] - at)) for at in range(names[start], names[stop], _PIECE)]
        return b"".join(await self._memory.run(_read(tuple(pieces))))

    async def modules(self, kernel: Kernel) -> ModuleList:
        """Return the modules of the kernel that ``look`` returned.  Raises ``ModulesError``."""
        if kernel.module_list is None:
            return modules.ModuleList((), ())
        if kernel.layout is None:
            raise modules.ModulesError("the layout of modules is not known: the kernel has no BTF")
        known = self._modules
        if known is not None and not await self._memory.run(modules.has_changed(known)):
            return known
        self._modules = await self._memory.run(modules.read(kernel.layout, kernel.module_list))
        return self._modules

    async def module_unwinds(self, wanted: tuple[Module, ...]) -> list[Unwind | None]:
        """Return the unwind tables of modules."""
        places = [one.unwind for one in wanted if one.unwind is not None]
        reads = [
            one
            for count, entries, at in places
            for one in (Read(entries, count * orc.ENTRY_BYTES), Read(at, count * orc.PLACE_BYTES))
        ]
        data = iter(await self._memory.run(_read(tuple(reads))))
        return [
            None if one.unwind is None else Unwind(next(data), one.unwind[2], next(data)) for one in wanted
        ]

    async def module_symbols(self, wanted: tuple[Module, ...]) -> list[tuple[ModuleSymbol, ...]]:
        """Return the modules' own tables of symbols."""
        return await self._memory.run(module_symbols.read([one.symbols for one in wanted]))


def _read_system_map(path: Path) -> Kallsyms:
    if path.stat().st_size > system_map.MOST_BYTES:
        raise SymbolError(f"{path} is larger than any kernel's")
    return system_map.parse(path.read_bytes())


def _read(reads: tuple[Read, ...]) -> Search[tuple[bytes, ...]]:
    return (yield reads)
