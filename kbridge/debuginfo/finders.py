"""Where files with a kernel's symbols may be: the configured file, then the folders for debug files.

In a folder they are looked for by the names that distributions give them, and, once the guest has told its build-id, by
that: the link of its name, else the notes of all files.

Everything here reads files and blocks: it is called in a thread.  What was read of a file is remembered by path, size
and time of change.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from kbridge.debuginfo.layouts import Types
from kbridge.debuginfo.mapping import mapped
from kbridge.debuginfo.notes import Notes, build_id_of
from kbridge.debuginfo.separate import name_of
from symbols import elf, modules, orc
from symbols.btf import BtfError
from symbols.errors import SymbolError
from symbols.kaslr import BREAKPOINT_SYMBOL, DIVIDE_ERROR_SYMBOL, Linked
from symbols.model import BuildId
from symbols.modules import LIST_SYMBOL, ModuleLayout
from symbols.orc import OrcLayout

if TYPE_CHECKING:
    from symbols.btf import Btf

_Layout = TypeVar("_Layout", ModuleLayout, OrcLayout)

KERNELS: Final = (
    "vmlinux",
    "vmlinux-*",
    "boot/vmlinux-*",
    "lib/modules/*/vmlinux",
    "usr/lib/debug/boot/vmlinux-*",
)
"""What a kernel's file with symbols is called in a folder for debug files, as distributions do."""
SYSTEM_MAPS: Final = ("System.map", "System.map-*", "boot/System.map-*", "usr/lib/debug/boot/System.map-*")
"""What the list of a kernel's symbols is called, its release behind the dash."""
MOST_KERNELS: Final = 64
MOST_SYSTEM_MAPS: Final = 16
MOST_MODULE_FILES: Final = 16384
_NOTES: Final = ".notes"


@dataclass(frozen=True, slots=True)
class KernelFile:
    """A file with a kernel's symbols and what finding it in memory needs; addresses as linked."""

    path: Path
    linked: Linked
    modules: int | None
    """Of the head of the list of modules; None in a kernel without modules."""
    layout: ModuleLayout | None
    """Of ``struct module``; None where the file has no BTF that tells it."""
    unwinding: OrcLayout | None
    """Of ``struct orc_entry``; likewise."""


def read_kernel(path: Path, layouts: Path | None = None) -> KernelFile:
    """Read what a kernel's file says of itself; layouts are kept in a folder.

    Raises ``SymbolError``, ``OSError``, ``ValueError``.
    """
    with mapped(path) as image:
        build_id = elf.build_id(image)
        by_name = {section.name: section for section in elf.sections(image)}
        notes = by_name.get(_NOTES)
        if build_id is None or notes is None:
            raise SymbolError("it has no build-id: nobody can tell which kernel it is of")
        values = elf.symbol_values(image, [DIVIDE_ERROR_SYMBOL, LIST_SYMBOL, BREAKPOINT_SYMBOL])
        types = by_name.get(".BTF")
        where, unwinding = None, None
        if types is not None and types.kind != elf.SHT_NOBITS:
            elf.check_inside(image, types)
            where, unwinding = read_layouts(image[types.offset : types.offset + types.size], layouts)
    linked = Linked(
        build_id,
        notes.address,
        notes.size,
        values.get(DIVIDE_ERROR_SYMBOL),
        values.get(BREAKPOINT_SYMBOL),
    )
    return KernelFile(path, linked, values.get(LIST_SYMBOL), where, unwinding)


@lru_cache(maxsize=MOST_KERNELS)
def _read_once(path: Path, layouts: Path | None, real: str, size: int, time_ns: int) -> KernelFile:
    """Read a kernel's file, once for all guests that have it: the other parameters tell one from another."""
    return read_kernel(path, layouts)


def read_layouts(types: bytes, kept: Path | None = None) -> tuple[ModuleLayout | None, OrcLayout | None]:
    """Return the layouts that a kernel's types tell, None for what they do not; they are kept in a folder.

    Names are worth having without modules and unwinding, which say so where they are asked for.
    """
    known = Types(types, kept)
    return _layout(known, ModuleLayout, modules.layout), _layout(known, OrcLayout, orc.layout)


def _layout(known: Types, kind: type[_Layout], read: Callable[[Btf], _Layout]) -> _Layout | None:
    try:
        return known.layout(kind, read)
    except BtfError:
        return None


class Finder:
    """The files of one guest: ``vmlinux`` if one is configured, then what ``folders`` have, in their order."""

    def __init__(
        self,
        vmlinux: Path | None,
        folders: Sequence[Path],
        remembered: Path | None = None,
        layouts: Path | None = None,
    ) -> None:
        """Look nowhere yet; ``remembered`` is a folder for what is learnt of the build-ids in ``folders``.

        ``layouts``: one for those of kernels, None where they are read out of the types each time.
        """
        self.layouts = layouts
        self._vmlinux = vmlinux
        self._folders = tuple(folders)
        self._notes = [
            Notes(one, None if remembered is None else _memory(remembered, one)) for one in folders
        ]
        self._offered: Path | None = None
        self._kernels: dict[tuple[str, int, int], KernelFile] = {}
        self._modules: dict[str, list[Path]] | None = None
        self.problems: dict[str, str] = {}
        """Why files that look like a kernel's cannot be used, by path."""

    def kernels(self) -> list[KernelFile]:
        """Return the kernels whose files can be read, each build-id once."""
        found: dict[BuildId, KernelFile] = {}
        for path in islice(self._kernel_paths(), MOST_KERNELS):
            try:
                kernel = self._read(path)
            except (SymbolError, OSError, ValueError) as error:
                self.problems[str(path)] = str(error)
            else:
                self.problems.pop(str(path), None)
                found.setdefault(kernel.linked.build_id, kernel)
        return list(found.values())

    def system_maps(self) -> list[Path]:
        """Return the lists of symbols in the folders."""
        found = (path for folder in self._folders for one in SYSTEM_MAPS for path in sorted(folder.glob(one)))
        return list(islice(found, MOST_SYSTEM_MAPS))

    def offer(self, path: Path) -> None:
        """Look at this file too, in place of the one that was offered before: it was found by a build-id."""
        self._offered = path

    def by_build_id(self, build_id: BuildId) -> Path | None:
        """Return a file of this build-id out of the folders; None where none has it."""
        for folder in self._folders:
            path = name_of(folder, build_id)
            if path.exists():
                own = build_id_of(path)
                if own == build_id:
                    return path
                self.problems[str(path)] = (
                    f"it is of build-id {own or 'none'}, not of {build_id} as it is called"
                )
        for notes in self._notes:
            for path in notes.find(build_id):
                return path
        return None

    def _read(self, path: Path) -> KernelFile:
        status = path.stat()
        key = str(path.resolve()), status.st_size, status.st_mtime_ns
        known = self._kernels.get(key)
        if known is None:
            known = self._kernels[key] = _read_once(path, self.layouts, *key)
        return known

    def _kernel_paths(self) -> Iterator[Path]:
        if self._vmlinux is not None:
            yield self._vmlinux
        if self._offered is not None:
            yield self._offered
        for folder in self._folders:
            for pattern in KERNELS:
                yield from sorted(folder.glob(pattern))

    def module(self, name: str, build_id: BuildId | None) -> Path | None:
        """Return a module's file: by its build-id where that is known, else by its name, dashes being underscores."""
        return next(self._module_files(name, build_id), None)

    def module_with_lines(self, name: str, build_id: BuildId | None) -> Path | None:
        """Return a module's file as ``module`` does, one with DWARF if there is one."""
        files = self._module_files(name, build_id)
        first = next(files, None)
        return next((one for one in chain((first,), files) if one is not None and _is_with_dwarf(one)), first)

    def _module_files(self, name: str, build_id: BuildId | None) -> Iterator[Path]:
        if build_id is not None:
            for folder in self._folders:
                path = name_of(folder, build_id)
                if path.exists():
                    yield path
        if self._modules is None:
            self._modules = self._index_modules()
        for path in self._modules.get(name, []):
            if build_id is None or build_id_of(path) == build_id:
                yield path

    def _index_modules(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        beside = [] if self._vmlinux is None else [self._vmlinux.parent]
        for folder in (*beside, *self._folders):
            for path in islice(folder.rglob("*.ko*"), MOST_MODULE_FILES):
                name, _, kind = path.name.partition(".")
                if kind in ("ko", "ko.debug"):
                    found.setdefault(name.replace("-", "_"), []).append(path)
        return found


def _is_with_dwarf(path: Path) -> bool:
    try:
        with mapped(path) as image:
            return elf.has_lines(image)
    except (SymbolError, OSError, ValueError):
        # Whoever reads the file says what is wrong with it.
        return False


def _memory(remembered: Path, folder: Path) -> Path:
    return remembered / f"notes-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json"
