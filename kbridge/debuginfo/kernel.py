"""The kernel that a guest runs now: which, where, with which modules; looked at again whenever somebody asks.

in          searches of guest memory, files
out         ``Kernel``, its modules
invariant   what is returned was verified in memory at this very moment: a guest that rebooted, or went over to another
            kernel by kexec, is never taken for what it was
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from symbols import kaslr, modules
from symbols.errors import SlideUnknown

if TYPE_CHECKING:
    from kbridge.debuginfo.finders import Finder, KernelFile
    from symbols.modules import ModuleList
    from symbols.reads import Search

_Result = TypeVar("_Result")

InThread = Callable[[Callable[[], _Result]], Awaitable[_Result]]
"""Calls what blocks, in a thread."""


class Memory(Protocol):
    """The guest's virtual memory."""

    async def run(self, search: Search[_Result]) -> _Result:
        """Drive a search; raises what it raises, and ``KbridgeError`` where memory cannot be read now."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in memory: its file, by how much it was moved, and how that was found."""

    file: KernelFile
    slide: int
    way: str


class GuestKernel:
    """What is known of one guest's kernel; the module's text says how."""

    def __init__(self, memory: Memory, finder: Finder, in_thread: InThread[list[KernelFile]]) -> None:
        self._memory = memory
        self._finder = finder
        self._in_thread = in_thread
        self._known: Kernel | None = None
        self._modules: ModuleList | None = None

    async def look(self) -> Kernel:
        """Return the kernel in memory.  Raises ``SlideUnknown`` where it is none whose file is known."""
        known = self._known
        if known is not None and await self._memory.run(kaslr.is_at(known.file.linked, known.slide)):
            return known
        self._known = self._modules = None
        files = await self._in_thread(self._finder.kernels)
        if not files:
            raise SlideUnknown("no file with a kernel's symbols is configured or found")
        found = await self._memory.run(kaslr.find([one.linked for one in files]))
        self._known = Kernel(files[found.index], found.slide, found.way)
        return self._known

    async def modules(self, kernel: Kernel) -> ModuleList:
        """Return the modules of the kernel that ``look`` returned.  Raises ``ModulesError``."""
        if kernel.file.modules is None:
            return modules.ModuleList((), ())
        if kernel.file.layout is None:
            raise modules.ModulesError(
                f"{kernel.file.path} does not tell the layout of modules: it has no BTF"
            )
        known = self._modules
        if known is not None and not await self._memory.run(modules.has_changed(known)):
            return known
        head = kernel.file.modules + kernel.slide
        self._modules = await self._memory.run(modules.read(kernel.file.layout, head))
        return self._modules
