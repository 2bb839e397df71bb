"""What a core file's kernel says of itself: which processor panicked, then its tasks.

in          a core file, the kernel in it (``GuestKernel``), its file or its own tables
out         ``Beginning``, ``Tasks``: always, with what is missing and why

In two steps, because a debugger can begin with the first: tasks are listed while it reads symbols.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kbridge.debuginfo.kernel import MOST_TYPES_BYTES
from kbridge.debuginfo.layouts import Types
from kbridge.debuginfo.mapping import mapped
from kbridge.errors import KbridgeError
from symbols import elf, tasks
from symbols.errors import SymbolError
from symbols.reads import Read
from symbols.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kbridge.crash.core_memory import CoreMemory
    from kbridge.debuginfo.kernel import GuestKernel, InThread, Kernel
    from symbols.reads import Search

PANIC_SYMBOL: Final = "panic_cpu"
_TYPES: Final = ("__start_BTF", "__stop_BTF")
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Beginning:
    """Which kernel it is, and what it did last."""

    kernel: Kernel | None
    panicked: int | None
    """The number of the processor that panicked; None where none did."""
    problem: str
    """Why no kernel is known."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """The kernel's tasks."""

    tasks: tuple[Task, ...]
    problem: str
    """Why there are none."""


async def begin(memory: CoreMemory, guest: GuestKernel, in_thread: InThread) -> Beginning:
    """Find the kernel.  Never raises what a file or a memory can be the cause of."""
    try:
        kernel = await guest.look()
        # One name alone: to look for another takes a large file's table of names once more.
        places = await in_thread(lambda: _places(kernel, PANIC_SYMBOL))
        return Beginning(kernel, memory.search(_panicked(places)), "")
    except (SymbolError, KbridgeError, OSError, ValueError) as error:
        return Beginning(None, None, f"no kernel is found: {error}")


async def read_tasks(
    memory: CoreMemory, begun: Beginning, in_thread: InThread, layouts: Path | None = None
) -> Tasks:
    """List the tasks; their layout is kept in a folder.  Never raises what a file or a memory can be the cause of."""
    kernel = begun.kernel
    if kernel is None:
        return Tasks((), begun.problem)
    try:
        places = await in_thread(lambda: _places(kernel, tasks.INIT_SYMBOL, *_TYPES))
        if tasks.INIT_SYMBOL not in places:
            raise tasks.TasksError(f"the kernel's symbols do not tell where {tasks.INIT_SYMBOL} is")
        types = _types_in_memory(memory, places) if kernel.path is None else None
        where = await in_thread(lambda: _layout(kernel.path, types, layouts))
        return Tasks(memory.search(tasks.read(where, places[tasks.INIT_SYMBOL])), "")
    except (SymbolError, KbridgeError, OSError, ValueError) as error:
        return Tasks((), f"tasks are not shown: {error}")


def _places(kernel: Kernel, *names: str) -> dict[str, int]:
    """Return where in memory symbols are."""
    if kernel.path is None:
        assert kernel.own is not None, "a kernel has a file, or its own tables"
        return kernel.own.symbols.find(*names)
    with mapped(kernel.path) as image:
        values = elf.symbol_values(image, names)
    return {name: value + (kernel.slide or 0) for name, value in values.items()}


def _types_in_memory(memory: CoreMemory, places: Mapping[str, int]) -> bytes:
    start, stop = (places.get(one, 0) for one in _TYPES)
    if not 0 < stop - start <= MOST_TYPES_BYTES:
        raise _no_types()
    return b"".join(memory.read(at, min(_PIECE, stop - at)) for at in range(start, stop, _PIECE))


def _layout(path: Path | None, types: bytes | None, layouts: Path | None) -> tasks.TaskLayout:
    if types is None:
        assert path is not None, "types are in memory, or in a file"
        with mapped(path) as image:
            section = next((one for one in elf.sections(image) if one.name == ".BTF"), None)
            if section is None or section.kind == elf.SHT_NOBITS:
                raise _no_types()
            elf.check_inside(image, section)
            types = image[section.offset : section.offset + section.size]
    return Types(types, layouts).layout(tasks.TaskLayout, tasks.layout)


def _no_types() -> tasks.TasksError:
    return tasks.TasksError("the kernel has no types (CONFIG_DEBUG_INFO_BTF)")


def _panicked(places: Mapping[str, int]) -> Search[int | None]:
    at = places.get(PANIC_SYMBOL)
    if at is None:
        return None
    (data,) = yield (Read(at, 4),)
    number = int.from_bytes(data, "little", signed=True)
    return number if len(data) == 4 and number >= 0 else None
