"""What a kernel's file tells that explaining a crash needs: index, unwind tables, layouts of its structures.

in          files, by the build-id that memory told
out         ``Knowledge``, kept for the kernels that were asked for last
invariant   whatever a file lacks is None, and the rest is there

Everything here reads files and blocks: it is called in a thread.  What a report needs is loaded when the first line of
a crash is there, while the rest of its text still comes (``Library.warm``): most relays never need it, and it takes
15 MB.  An index that is not kept is made beforehand (``Library.prepare``): that takes seconds.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from kbridge.debuginfo import cache
from kbridge.debuginfo.separate import DEBUG_DIRS, with_lines
from kbridge.errors import KbridgeError
from symbols import dmesg, elf, orc, tasks
from symbols.btf import Btf, BtfError
from symbols.errors import SymbolError

if TYPE_CHECKING:
    from kbridge.debuginfo.finders import Finder
    from symbols.dmesg import LogLayout
    from symbols.index import Index
    from symbols.model import BuildId
    from symbols.orc import OrcLayout
    from symbols.tasks import TaskLayout

MOST_KERNELS: Final = 4
_ENTRIES: Final = ".orc_unwind"
_PLACES: Final = ".orc_unwind_ip"
_Layout = TypeVar("_Layout")


@dataclass(frozen=True, slots=True)
class UnwindTables:
    """A kernel's unwind tables; ``at`` is where the places are, as linked."""

    entries: memoryview
    places: memoryview
    at: int


@dataclass(frozen=True, slots=True)
class Layouts:
    """Layouts that a kernel's types tell; None for those that they do not."""

    log: LogLayout | None = None
    tasks: TaskLayout | None = None
    unwinding: OrcLayout | None = None


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the file of one kernel tells."""

    index: Index | None = None
    modules: ModuleIndexes | None = None
    types: memoryview | None = None
    """For ``layouts``; what they are read of takes longer than a report may."""
    unwinding: UnwindTables | None = None
    problem: str = ""
    """Why there is no index, where there is none."""


def layouts(types: bytes) -> Layouts:
    """Return what a kernel's types tell."""
    try:
        btf = Btf(types)
    except BtfError:
        return Layouts()
    return Layouts(_told(dmesg.layout, btf), _told(tasks.layout, btf), _told(orc.layout, btf))


def _told(read: Callable[[Btf], _Layout], btf: Btf) -> _Layout | None:
    try:
        return read(btf)
    except BtfError:
        return None


class Library:
    """The knowledge of all kernels of a relay.  ``folders`` may have the lines of a file that has none."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._folders = tuple(folders)
        self._known: OrderedDict[tuple[BuildId, Path], Knowledge] = OrderedDict()
        self._indexes: OrderedDict[Path, Index | None] = OrderedDict()
        self._turn = threading.Lock()
        """Of two that ask for a kernel, one reads it."""

    def of(self, build_id: BuildId, path: Path, finder: Finder) -> Knowledge:
        """Return what the file of a kernel tells."""
        with self._turn:
            key = build_id, path
            known = self._known.get(key)
            if known is None or known.index is None:
                known = self._known[key] = self._read(path, finder)
            self._known.move_to_end(key)
            while len(self._known) > MOST_KERNELS:
                self._known.popitem(last=False)
            return known

    def _read(self, path: Path, finder: Finder) -> Knowledge:
        problem = ""
        index = None
        try:
            index = self.open_index(path)
        except KbridgeError as error:
            problem = str(error)
        found: memoryview | None = None
        tables = None
        try:
            with path.open("rb") as file:
                # Mapped for as long as it is known: the tables are looked into, not read.
                image = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            sections = {one.name: one for one in elf.sections(image)}
            types = sections.get(".BTF")
            if types is not None and types.kind != elf.SHT_NOBITS:
                elf.check_inside(image, types)
                found = memoryview(image)[types.offset : types.offset + types.size]
            tables = _tables(image)
        except (OSError, ValueError, SymbolError) as error:
            problem = problem or str(error)
        return Knowledge(index, ModuleIndexes(self, finder), found, tables, problem)

    def open_index(self, path: Path) -> Index:
        """Return the index of a file, made now if it must be.  Raises ``KbridgeError``."""

        def build(source: Path, build_id: BuildId) -> Iterator[bytes]:
            from kbridge.debuginfo.building import build as make  # noqa: PLC0415 (large, and for the first time only)

            return make(source, build_id)

        def separate(source: Path, build_id: BuildId) -> Path | None:
            return with_lines(source, build_id, (*self._folders, *DEBUG_DIRS))

        return cache.index_of(path, build, cache.folder(), separate=separate)

    def prepare(self, finder: Finder) -> None:
        """Make the index of a guest's kernel, if there is none yet; nothing is kept in memory.

        Raises ``KbridgeError``.
        """
        for kernel in finder.kernels()[:1]:
            self.open_index(kernel.path)

    def warm(self, finder: Finder) -> None:
        """Learn the kernel of a guest that is crashing."""
        from symbols.disassembly import Disassembler  # noqa: PLC0415 (large)

        Disassembler()
        for kernel in finder.kernels()[:1]:
            self.of(kernel.linked.build_id, kernel.path, finder)


class ModuleIndexes:
    """Indexes of modules' files, each looked for once."""

    def __init__(self, library: Library, finder: Finder) -> None:
        self._library = library
        self._finder = finder
        self._known: dict[tuple[str, BuildId | None], Index | None] = {}

    def find(self, name: str, build_id: BuildId | None) -> Index | None:
        """Return the index of a module; None where there is no file of it."""
        key = name, build_id
        if key not in self._known:
            path = self._finder.module_with_lines(name, build_id)
            try:
                self._known[key] = None if path is None else self._library.open_index(path)
            except KbridgeError:
                # Its names are in memory; only its lines are missing, and the report shows none.
                self._known[key] = None
        return self._known[key]


def _tables(image: mmap.mmap) -> UnwindTables | None:
    found = {one.name: one for one in elf.sections(image) if one.name in (_ENTRIES, _PLACES)}
    if len(found) < 2 or any(one.kind == elf.SHT_NOBITS for one in found.values()):
        return None
    for one in found.values():
        elf.check_inside(image, one)
    entries, places = found[_ENTRIES], found[_PLACES]
    whole = memoryview(image)
    return UnwindTables(
        whole[entries.offset : entries.offset + entries.size],
        whole[places.offset : places.offset + places.size],
        places.address,
    )
