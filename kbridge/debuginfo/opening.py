"""What a program that reads a kernel's structures is opened with: VMCOREINFO, the map of physical memory, files.

in          memory that is read at once, files, the relay's own word on which file is the kernel's
out         ``OpenedKernel``; ``GuestError`` that says what is missing
invariant   the kernel was verified in memory, whatever was said of it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kbridge.debuginfo.kernel import GuestKernel
from kbridge.debuginfo.mapping import mapped
from kbridge.errors import GuestError
from symbols import direct_map, elf, vmcoreinfo
from symbols.errors import SymbolError

if TYPE_CHECKING:
    from kbridge.debuginfo.finders import Finder
    from kbridge.debuginfo.kernel import Kernel
    from kbridge.memory.session import SessionMemory
    from symbols.direct_map import DirectMap

SYMBOLS: Final = (
    vmcoreinfo.DATA_SYMBOL,
    vmcoreinfo.SIZE_SYMBOL,
    direct_map.OFFSET_SYMBOL,
    direct_map.PHYSICAL_SYMBOL,
    direct_map.END_SYMBOL,
)
_FILE: Final = re.compile(r"^file +(/.+)$", re.MULTILINE)
_OTHERWISE: Final = re.compile(r"^(kernel +build-id [0-9a-f]+|no symbols: .+|fetching .+)$", re.MULTILINE)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class OpenedKernel:
    """A kernel in memory and what tells of it."""

    vmcoreinfo: bytes
    """Its text."""
    map: DirectMap
    files: tuple[Path, ...]
    """Its own file, then those of its modules that are at hand."""


def open_kernel(guest: str, memory: SessionMemory, finder: Finder) -> OpenedKernel:
    """Find a guest's kernel in memory and its files.  Raises ``GuestError``."""
    said = memory.monitor("symbols")
    if (found := _FILE.search(said)) is not None:
        finder.offer(Path(found[1]))
    known = GuestKernel(memory, finder, at_once, quick=False)
    try:
        kernel = result_of(known.look())
    except SymbolError as error:
        more = " ".join(" ".join(one.split()) for one in _OTHERWISE.findall(said))
        raise GuestError(
            f"no file of {guest}'s kernel is known",
            why=more or str(error),
            todo="install its debug package (linux-image-…-dbg), or name its file by `vmlinux`, a folder by "
            "`debug_dirs`, a server by `debuginfod_urls`",
        ) from error
    assert kernel.path is not None, "without a file the kernel is not looked at"
    memory.kernel = kernel.where
    try:
        with mapped(kernel.path) as image:
            linked = elf.symbol_values(image, SYMBOLS)
        at = {name: address + (kernel.slide or 0) for name, address in linked.items()}
        if vmcoreinfo.DATA_SYMBOL not in at or vmcoreinfo.SIZE_SYMBOL not in at:
            raise vmcoreinfo.VmcoreinfoError("it was built without CONFIG_CRASH_CORE, and has no VMCOREINFO")
        text = memory.search(
            vmcoreinfo.text_by_symbol(at[vmcoreinfo.DATA_SYMBOL], at[vmcoreinfo.SIZE_SYMBOL])
        )
        vmcoreinfo.parse(text)
        where = memory.search(direct_map.find(at, kernel.where))
    except SymbolError as error:
        raise GuestError(f"the kernel of {guest} cannot be opened", why=str(error)) from error
    return OpenedKernel(text, where, _files(known, kernel, finder))


def _files(known: GuestKernel, kernel: Kernel, finder: Finder) -> tuple[Path, ...]:
    assert kernel.path is not None
    own = finder.by_build_id(kernel.where.build_id)
    files = [kernel.path] + ([own] if own is not None else [])
    try:
        modules = result_of(known.modules(kernel)).modules
    except SymbolError:
        # Whoever reads the list with types says what is wrong with it.
        return tuple(files)
    found = (finder.module_with_lines(one.name, one.build_id) for one in modules)
    return (*files, *(one for one in found if one is not None))


async def at_once(work: Callable[[], Any]) -> Any:
    """Call what blocks, here and now."""
    return work()


def result_of(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Carry out what waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        result: _Result = done.value
        return result
    raise AssertionError("it waits, and there is nobody to go on with it")
