"""Names for addresses in a kernel and its modules: symbols, source lines, inlined calls; and what their code is.

in          a kernel in memory, indexes of its file and its modules', or the tables that it has of itself
out         ``Place``; whether an address is code; unwind tables
invariant   an address that is in nothing known has no name

Everything here may read files, and is for a thread; where an index is mapped already it takes microseconds.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kbridge.crash.facts import Call, Place
from symbols import backtrace
from symbols.errors import SymbolError
from symbols.explanation import Explainer
from symbols.unwinding import Trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbridge.debuginfo.kernel import Kernel
    from symbols.index import Index
    from symbols.kallsyms import Kallsyms
    from symbols.lines import Frame
    from symbols.model import Module
    from symbols.module_symbols import ModuleSymbol
    from symbols.unwinding import Frame as StackFrame

TEXTS: Final = (("_stext", "_etext"), ("_sinittext", "_einittext"))
"""Where code begins and ends: the kernel's, and what it runs while it boots, which start_kernel() never leaves."""
_FUNCTION: Final = 2


@dataclass(slots=True)
class NamedModule:
    """A loaded module, its own symbols, and its file's index where there is one."""

    module: Module
    symbols: tuple[ModuleSymbol, ...] = ()
    _sorted: tuple[list[int], list[ModuleSymbol]] | None = field(default=None)

    def holds(self, address: int) -> bool:
        """Whether an address is in its code."""
        return self.module.base <= address < self.module.base + self.module.size

    def at(self, address: int) -> tuple[str, int, int] | None:
        """Return the function at an address: its name, how far into it, its size."""
        if self._sorted is None:
            functions = sorted(
                (one for one in self.symbols if one.info & 15 == _FUNCTION), key=lambda one: one.address
            )
            self._sorted = [one.address for one in functions], functions
        addresses, functions = self._sorted
        index = bisect_right(addresses, address) - 1
        if index < 0:
            return None
        one = functions[index]
        return one.name, address - one.address, one.size


class Names:
    """The names of one kernel as it is in memory.

    ``index`` is of its file; None where nobody has that.  ``source`` gives a module's index by name and build-id.
    """

    def __init__(
        self,
        kernel: Kernel,
        index: Index | None,
        modules: Sequence[NamedModule] = (),
        explainer: Explainer | None = None,
    ) -> None:
        self.kernel = kernel
        self._index = index
        self._slide = kernel.slide or 0
        self._own = kernel.own.symbols if kernel.own is not None else None
        self.modules = tuple(modules)
        self.explainer = explainer or Explainer(index)
        self._texts = self._ranges()

    def _ranges(self) -> tuple[tuple[int, int], ...]:
        found = self.find(*(name for ends in TEXTS for name in ends))
        return tuple((found.get(start, 0), found.get(end, 0)) for start, end in TEXTS)

    def find(self, *names: str) -> dict[str, int]:
        """Return where symbols of the kernel are in memory; those that it has not are left out."""
        if self._index is None:
            return {} if self._own is None else self._own.find(*names)
        found = {}
        for name in names:
            listed = self._index.named(name)
            if listed:
                one = listed[0]
                found[name] = one.address if one.absolute else one.address + self._slide
        return found

    def is_code(self, address: int) -> bool:
        """Tell whether an address is in code."""
        return self._is_kernels(address) or any(one.holds(address) for one in self.modules)

    def _is_kernels(self, address: int) -> bool:
        return any(start <= address < end for start, end in self._texts)

    def place(self, address: int, trust: Trust = Trust.EXACT) -> Place:
        """Name an address."""
        # A call may be the last instruction of its function: what is returned to is looked up before.
        looked_up = address - (trust is not Trust.EXACT)
        if self._is_kernels(looked_up):
            return self._in_kernel(address, looked_up, trust)
        for one in self.modules:
            if one.holds(looked_up):
                return self._in_module(one, address, looked_up, trust)
        return Place(address, trust.value)

    def frame(self, frame: StackFrame) -> Place:
        """Name a frame of a stack."""
        return self.place(frame.address, frame.trust)

    def told(self, place: backtrace.Place) -> Place:
        """Name a place that a kernel's log tells; its address is not known."""
        trust = Trust.RETURN if place.is_return else Trust.EXACT
        calls = self.explainer.find(place).calls
        return Place(0, trust.value, place.name, place.offset, place.size, place.module, _calls(calls))

    def _in_kernel(self, address: int, looked_up: int, trust: Trust) -> Place:
        if self._index is None:
            return self._in_own(address, looked_up, trust)
        try:
            found = self._index.symbol(looked_up - self._slide)
            calls = self._index.frames(looked_up - self._slide)
        except SymbolError:
            # The index is damaged and cannot be made anew: the name is not worth the report.
            found, calls = None, ()
        if found is None:
            return Place(address, trust.value, calls=_calls(calls))
        symbol, reach = found
        offset = address - self._slide - symbol.address
        return Place(address, trust.value, symbol.name, offset, reach, None, _calls(calls))

    def _in_own(self, address: int, looked_up: int, trust: Trust) -> Place:
        own = self._own
        if own is None:
            return Place(address, trust.value)
        name, start, end = _own_symbol(own, looked_up)
        return Place(address, trust.value, name, address - start, end - start)

    def _in_module(self, one: NamedModule, address: int, looked_up: int, trust: Trust) -> Place:
        found = one.at(looked_up)
        if found is None:
            return Place(address, trust.value, module=one.module.name)
        name, offset, size = found
        is_return = trust is not Trust.EXACT
        offset += is_return
        place = backtrace.Place(
            name, offset, size, one.module.name, one.module.build_id, 0, is_return and offset > 0
        )
        calls = self.explainer.find(place).calls
        return Place(address, trust.value, name, offset, size, one.module.name, _calls(calls))


def _own_symbol(own: Kallsyms, address: int) -> tuple[str, int, int]:
    index = bisect_right(own.addresses, address) - 1
    # Of several at one address the first is shown, as the kernel does.
    while index > 0 and own.addresses[index - 1] == own.addresses[index]:
        index -= 1
    after = bisect_right(own.addresses, own.addresses[index])
    end = own.addresses[after] if after < len(own.addresses) else own.addresses[index]
    return own.names[index], own.addresses[index], end


def _calls(frames: tuple[Frame, ...]) -> tuple[Call, ...]:
    return tuple(Call(one.function, _shortened(one.file), one.line) for one in frames if one.file is not None)


def _shortened(path: str | None) -> str | None:
    # Distributions' assembler code is named with the folder that it was built in.
    if path is None or not path.startswith("/"):
        return path
    parts = Path(path).parts
    for at, part in enumerate(parts):
        if part.startswith("linux-") and at + 1 < len(parts):
            return "/".join(parts[at + 1 :])
    return path
