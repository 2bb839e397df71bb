"""What a core file's kernel says of itself: its tasks, and which processor panicked.

in          a core file, the kernel in it (``GuestKernel``), its file or its own tables
out         ``Known``: always, with what is missing and why
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gdbstubs.target import ThreadId
from kbridge.crash.core_target import processor_stacks, task_stacks
from kbridge.debuginfo.kernel import MOST_TYPES_BYTES
from kbridge.debuginfo.mapping import mapped
from kbridge.errors import KbridgeError
from symbols import elf, tasks
from symbols.btf import Btf
from symbols.errors import SymbolError
from symbols.reads import Read
from symbols.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kbridge.crash.core_file import CoreFile
    from kbridge.crash.core_memory import CoreMemory
    from kbridge.crash.core_target import Stack
    from kbridge.debuginfo.kernel import GuestKernel, InThread, Kernel
    from symbols.reads import Search

PANIC_SYMBOL: Final = "panic_cpu"
_TYPES: Final = ("__start_BTF", "__stop_BTF")
_SYMBOLS: Final = (tasks.INIT_SYMBOL, PANIC_SYMBOL, *_TYPES)
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of what ran."""

    kernel: Kernel | None
    tasks: tuple[Task, ...]
    stacks: Mapping[ThreadId, Stack]
    """All threads: processors, then tasks."""
    stopped: ThreadId
    """The thread to show first: of the processor that panicked, else the first."""
    problem: str
    """What is missing, and why."""


async def look(core: CoreFile, memory: CoreMemory, guest: GuestKernel, in_thread: InThread) -> Known:
    """Look at all of it."""
    kernel: Kernel | None = None
    found: tuple[Task, ...] = ()
    panicked: int | None = None
    problem = ""
    try:
        kernel = await guest.look()
        places, types = await in_thread(lambda: _places(kernel, memory))
        panicked = memory.search(_panicked(places))
        if types is None:
            problem = "tasks are not shown: the kernel has no types (CONFIG_DEBUG_INFO_BTF)"
        else:
            where = await in_thread(lambda: tasks.layout(Btf(types)))
            found = memory.search(tasks.read(where, places[tasks.INIT_SYMBOL]))
    except (SymbolError, KbridgeError, OSError, ValueError, KeyError) as error:
        problem = f"{'no kernel is found' if kernel is None else 'tasks are not shown'}: {error}"
    stacks = processor_stacks(core, found)
    if memory.tables is not None:
        stacks |= task_stacks(core, found, memory.tables)
    first = ThreadId(1 if panicked is None or panicked >= len(core.processors) else panicked + 1)
    return Known(kernel, found, stacks, first, problem)


def _places(kernel: Kernel, memory: CoreMemory) -> tuple[dict[str, int], bytes | None]:
    """Return where in memory the symbols are, and the kernel's types."""
    if kernel.path is None:
        assert kernel.own is not None, "a kernel has a file, or its own tables"
        places = kernel.own.symbols.find(*_SYMBOLS)
        start, stop = (places.get(one, 0) for one in _TYPES)
        if not 0 < stop - start <= MOST_TYPES_BYTES:
            return places, None
        return places, b"".join(memory.read(at, min(_PIECE, stop - at)) for at in range(start, stop, _PIECE))
    return _in_file(kernel.path, kernel.slide or 0)


def _in_file(path: Path, slide: int) -> tuple[dict[str, int], bytes | None]:
    with mapped(path) as image:
        values = elf.symbol_values(image, _SYMBOLS)
        section = next((one for one in elf.sections(image) if one.name == ".BTF"), None)
        types: bytes | None = None
        if section is not None and section.kind != elf.SHT_NOBITS:
            elf.check_inside(image, section)
            types = image[section.offset : section.offset + section.size]
    return {name: value + slide for name, value in values.items()}, types


def _panicked(places: Mapping[str, int]) -> Search[int | None]:
    """Return the number of the processor that panicked; None if none did."""
    at = places.get(PANIC_SYMBOL)
    if at is None:
        return None
    (data,) = yield (Read(at, 4),)
    number = int.from_bytes(data, "little", signed=True)
    return number if len(data) == 4 and number >= 0 else None
