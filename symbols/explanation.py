"""A kernel's log with source lines, inlined calls and disassembly put in: text in, text out.

in          lines of a log, indexes of the kernel's file and its modules'
out         the same lines, each with where its places are; after ``Code:`` the instructions and what the fault was
invariant   no line is lost or changed but by what is put after it; a place whose size is not the file's is not
            explained, because it is of another build

A place is looked up by name and size.  The kernel's size is the distance to the next symbol that it knows, a file's may
be the function's own: either is taken.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from symbols.backtrace import Code, Line, Place, read

if TYPE_CHECKING:
    from symbols.disassembly import Disassembler
    from symbols.lines import Frame
    from symbols.model import BuildId
    from symbols.table import Symbol

MOST_REMEMBERED: Final = 4096
"""Places; a log repeats them."""
MOST_AROUND: Final = 6
"""Instructions that are shown before the fault, and after it."""
MOST_SHOWN: Final = 64
"""Bytes of code that are not shown again."""


_BUILT_IN: Final = re.compile(r"/(?:[^/]+/){0,16}linux-\d[^/]*/(?=.)")
"""Where distributions build: assembler code is named with it, all other relative to it."""


class Source(Protocol):
    """The symbols and lines of a file; ``symbols.index.Index`` is one."""

    def named(self, name: str) -> list[Symbol]:
        """Return all symbols of a name."""

    def reach(self, symbol: Symbol) -> int:
        """Return the distance from one of them to the next symbol that is elsewhere."""

    def symbol(self, address: int) -> tuple[Symbol, int] | None:
        """Return the symbol at an address as linked, and its reach."""

    def frames(self, address: int) -> tuple[Frame, ...]:
        """Return the calls at an address as linked, the innermost first."""


@dataclass(slots=True)
class _Fault:
    """Code whose registers are being shown."""

    code: Code
    place: Place | None
    prefix: str
    registers: dict[str, int] = field(default_factory=dict)


FindModule = Callable[[str, "BuildId | None"], "Source | None"]
"""Gives a module's file by its name, and its build-id where the log has it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a place is in its file."""

    calls: tuple[Frame, ...]
    """The innermost first."""
    problem: str = ""
    """Why it is not explained."""


class Explainer:
    """Explains the logs of one kernel.  ``kernel`` is None where its file is not known."""

    def __init__(self, kernel: Source | None, module: FindModule = lambda *_: None) -> None:
        self._kernel = kernel
        self._module = module
        self._known: OrderedDict[tuple[str, int, int, str | None, BuildId | None, bool], Found] = (
            OrderedDict()
        )
        self._opened: Disassembler | None = None
        self._shown: OrderedDict[Code, None] = OrderedDict()
        self.explained = 0
        """How many places were found."""
        self.other_builds = 0
        """How many were not, because their size is another in the file."""

    def explain(self, texts: Iterable[str]) -> Iterator[str]:
        """Return the lines and what is put between them; ends of lines are neither expected nor made."""
        place: Place | None = None
        is_user = False
        fault: _Fault | None = None
        for line in read(texts):
            if fault is not None:
                if line.registers:
                    fault.registers.update(line.registers)
                    fault.prefix = line.prefix
                else:
                    yield from self._words(fault)
                    fault = None
            yield from self._with_places(line)
            if line.segment is not None:
                is_user = line.is_user
                place = line.places[0] if line.places and not is_user else None
                if line.counter is not None and not is_user:
                    yield (
                        f"{line.prefix}  -- it went to {line.counter:#x}, where no code is known: "
                        "a pointer to a function was bad; who called it is first in the backtrace"
                    )
            if line.code is not None and not is_user and self._is_new(line.code):
                yield from self._instructions(line, line.code, place)
                fault = _Fault(line.code, place, line.prefix)
        if fault is not None:
            yield from self._words(fault)

    def _is_new(self, code: Code) -> bool:
        # What was the first oops is said again at the end of each.
        is_new = code not in self._shown
        self._shown[code] = None
        while len(self._shown) > MOST_SHOWN:
            self._shown.popitem(last=False)
        return is_new

    # -- places ---------------------------------------------------------------------------------------------

    def _with_places(self, line: Line) -> Iterator[str]:
        if not line.places:
            yield line.text
        elif line.is_frame:
            found = self.find(line.places[0])
            blank = line.prefix
            for call in found.calls[:-1]:
                yield f"{blank}{'? ' if line.is_doubtful else ''}{call.function or '??'}  {_where(call)} (inlined)"
            yield line.text.rstrip() + (f"  {_where(found.calls[-1])}" if found.calls else found.problem)
        else:
            parts, at = [], 0
            for place in line.places:
                parts.append(line.text[at : place.end])
                found = self.find(place)
                parts.append(f" ({_chain(found.calls)})" if found.calls else found.problem)
                at = place.end
            yield "".join((*parts, line.text[at:]))

    def find(self, place: Place) -> Found:
        """Return what a place is in its file."""
        key = place.name, place.offset, place.size, place.module, place.build_id, place.is_return
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._look(place)
            if len(self._known) > MOST_REMEMBERED:
                self._known.popitem(last=False)
        self.explained += bool(known.calls)
        self.other_builds += bool(known.problem)
        return known

    def _look(self, place: Place) -> Found:
        source = self._kernel if place.module is None else self._module(place.module, place.build_id)
        if source is None:
            return Found(())
        address, size = address_of(source, place)
        if address is None:
            return Found(
                (), "" if size is None else f"  (of another build: in the file its size is {size:#x})"
            )
        calls = source.frames(address - place.is_return)
        return Found(tuple(one for one in calls if one.file is not None))

    # -- code -----------------------------------------------------------------------------------------------

    def _disassembler(self) -> Disassembler:
        if self._opened is None:
            # The library takes as long to load as all else; many logs have no code.
            from symbols.disassembly import Disassembler  # noqa: PLC0415

            self._opened = Disassembler()
        return self._opened

    def _instructions(self, line: Line, code: Code, place: Place | None) -> Iterator[str]:
        name = partial(self._near, place)
        listed = self._disassembler().disassemble(code, None if place is None else place.offset, name)
        at = next((index for index, one in enumerate(listed) if one.offset == 0), len(listed))
        for index, one in enumerate(listed[: at + MOST_AROUND + 1]):
            if index >= at - MOST_AROUND and (place is None or place.offset + one.offset < place.size):
                mark = "=>" if one.offset == 0 else "  "
                yield f"{line.prefix}  {mark} {_offset(place, one.offset):>7}  {one.data.hex(' '):24} {one.text}"

    def _near(self, place: Place | None, distance: int) -> str | None:
        """Name what is at a distance from a place, None where nobody knows."""
        if place is None:
            return None
        if 0 <= place.offset + distance < place.size:
            return _offset(place, distance)
        source = self._kernel if place.module is None else None
        address = None if source is None else address_of(source, place)[0]
        found = None if source is None or address is None else source.symbol(address + distance)
        if address is None or found is None:
            return None
        beyond = address + distance - found[0].address
        return found[0].name + (f"+{beyond:#x}" if beyond else "")

    def _words(self, fault: _Fault) -> Iterator[str]:
        for text in self._disassembler().words(fault.code, fault.registers, partial(self._near, fault.place)):
            yield f"{fault.prefix}  -- {text}"


def _offset(place: Place | None, distance: int) -> str:
    if place is None or place.offset + distance < 0:
        return f"{distance:+#x}"
    return f"<+{place.offset + distance:#x}>"


def address_of(source: Source, place: Place) -> tuple[int | None, int | None]:
    """Return a place's address as linked, None where no symbol of its name has its size; then that size, else None."""
    other: int | None = None
    for symbol in source.named(place.name):
        if symbol.absolute:
            continue
        sizes = symbol.size, source.reach(symbol)
        if place.size in sizes:
            return symbol.address + place.offset, None
        other = max(sizes)
    return None, other


def _where(call: Frame) -> str:
    return f"{_BUILT_IN.sub('', call.file or '??')}:{call.line or '?'}"


def _chain(calls: tuple[Frame, ...]) -> str:
    first, *others = calls
    return ", ".join(
        [
            (f"{first.function} at " if others else "") + _where(first),
            *(f"inlined at {_where(one)}" for one in others),
        ]
    )
