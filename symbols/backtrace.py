"""What lines of a kernel's log name: places in code, bytes of code, registers; and whether a place was returned to.

Source: Linux, lib/vsprintf.c (``%pS``: ``symbol+offset/size [module build-id]``), arch/x86/kernel/dumpstack.c
(``RIP:``, ``Code:`` with the byte at the fault in ``<>``, ``?`` before what only stands on the stack),
arch/x86/kernel/process_64.c (registers).

A backtrace has return addresses: the call is before them, and may be another line's.  Not so ``RIP:``, and what comes
after an interrupt's entry, which is the interrupted instruction itself.  With the registers of the interruption shown
in between, what follows was called again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from symbols.model import BuildId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MOST_LINE: Final = 4096
"""Characters; a longer line is passed on and not looked at."""
MOST_CODE: Final = 512
"""Bytes."""
_PLACE: Final = re.compile(
    r"(?<![\w.$+/-])(?P<name>[A-Za-z_.$][\w.$]{0,511})\+0x(?P<offset>[0-9a-f]{1,8})/0x(?P<size>[0-9a-f]{1,8})"
    r"(?: \[(?P<module>[A-Za-z0-9_-]{1,64})(?: (?P<id>[0-9a-f]{8,64}))?\])?(?![\w/])"
)
_PREFIX: Final = re.compile(r"(?:[^\n]*?\[ *\d{1,10}\.\d{1,9}\](?:\[ *[TC]\d{1,10}\])?)?\s*")
_DOUBTFUL: Final = re.compile(r"\? +")
_ADDRESS: Final = re.compile(r"\[<[0-9a-f]{8,16}>\] +")
"""Before each place in kernels before 4.10."""
_COUNTER: Final = re.compile(
    r"\b(?:RIP|EIP): (?P<segment>[0-9a-f]{4}):(?:0x(?P<counter>[0-9a-f]{1,16})\b)?|\b(?:pc|PC) ?: "
)
_CODE: Final = re.compile(r"\bCode: (?P<bytes>(?:(?:<[0-9a-f]{2}>|[0-9a-f]{2})(?!\S) ?)+)")
_REGISTER: Final = re.compile(
    r"(?<![A-Za-z])(?P<name>R(?!IP)[A-Z0-9]{2}|ORIG_RAX|EFLAGS|CR[0234]|[CDEFGS]S|knlGS): *"
    r"(?:[0-9a-f]{4}:)?(?P<value>[0-9a-f]{4,16})(?![0-9a-f:])"
)
_OFFSET: Final = re.compile(r"\bKernel Offset: 0x(?P<slide>[0-9a-f]{1,16}) from 0x")
_RELEASE: Final = re.compile(
    r"\bCPU: \d+ .*\b(?:Not tainted|Tainted: [A-Z ]+?) +(?P<release>\d[\w.+~-]{0,64}) #"
)
_VERSION: Final = re.compile(r"\bLinux version (?P<release>\d[\w.+~-]{0,64}) \(")
"""The first line of every kernel's log."""
_ENTRY: Final = re.compile(r"asm_\w+|ret_from_intr|apic_timer_interrupt|error_entry|page_fault")
_USER: Final = 3
"""The lowest bits of a code segment's selector are the ring."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in code as the kernel names it."""

    name: str
    offset: int
    size: int
    """The distance to the next symbol that the kernel knows."""
    module: str | None
    build_id: BuildId | None
    """Of the module, where the kernel was built to tell it."""
    end: int
    """Where its text ends in the line."""
    is_return: bool
    """It was to be returned to: the call is before it."""


@dataclass(frozen=True, slots=True)
class Code:
    """Bytes of code around an instruction; ``at`` is where that begins in them."""

    data: bytes
    at: int


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log, and what it names."""

    text: str
    prefix: str
    """Time stamps and the like, and blanks, before what the kernel said."""
    places: tuple[Place, ...] = ()
    is_frame: bool = False
    """It has nothing but one place, as each line of a backtrace."""
    is_doubtful: bool = False
    """What it names only stands on the stack."""
    segment: int | None = None
    """Of the code, where the line tells a program counter."""
    counter: int | None = None
    """The program counter, where it is told as a number: no code is known there."""
    code: Code | None = None
    registers: Mapping[str, int] = field(default_factory=dict)
    slide: int | None = None
    """By how much the kernel was moved, where the line tells."""
    release: str | None = None
    """Which kernel it is, likewise."""

    @property
    def is_user(self) -> bool:
        """Whether it tells a program counter of user space."""
        return self.segment is not None and self.segment & _USER == _USER


def read(texts: Iterable[str]) -> Iterator[Line]:
    """Read lines; whatever they say, each is returned."""
    is_interrupted = False
    for text in texts:
        if len(text) > MOST_LINE:
            yield Line(text, "")
            continue
        line = _line(text, is_interrupted=is_interrupted)
        if line.segment is not None:
            is_interrupted = False
        elif line.is_frame and not line.is_doubtful:
            is_interrupted = _ENTRY.fullmatch(line.places[0].name) is not None
        yield line


def _line(text: str, *, is_interrupted: bool) -> Line:
    start = _PREFIX.match(text)
    prefix = start.group() if start is not None else ""
    at = len(prefix)
    old = _ADDRESS.match(text, at)
    after = at if old is None else old.end()
    doubtful = _DOUBTFUL.match(text, after)
    begin = after if doubtful is None else doubtful.end()
    found = list(_PLACE.finditer(text)) if "+0x" in text else []
    is_frame = len(found) == 1 and found[0].start() == begin and not text[found[0].end() :].strip()
    # Searching with a pattern takes longer than seeing that there is nothing to find.
    counter = _COUNTER.search(text) if "P: " in text or "pc" in text or "PC" in text else None
    segment = number = None
    if counter is not None:
        segment = int(counter["segment"] or "10", 16)
        number = None if counter["counter"] is None else int(counter["counter"], 16)
    release = _RELEASE.search(text) if "CPU: " in text else None
    if "Linux version " in text:
        release = _VERSION.search(text)
    moved = _OFFSET.search(text) if "Kernel Offset: " in text else None
    return Line(
        text,
        prefix,
        tuple(_place(one, is_return=is_frame and not is_interrupted) for one in found),
        is_frame,
        doubtful is not None,
        segment,
        number,
        _code(text),
        {one["name"]: int(one["value"], 16) for one in _REGISTER.finditer(text)} if ":" in text else {},
        None if moved is None else int(moved["slide"], 16),
        None if release is None else release["release"],
    )


def _place(found: re.Match[str], *, is_return: bool) -> Place:
    offset = int(found["offset"], 16)
    return Place(
        found["name"],
        offset,
        int(found["size"], 16),
        found["module"],
        None if found["id"] is None else BuildId(found["id"]),
        found.end(),
        # The kernel looks up what is before a return address: one at a beginning is none.
        is_return and offset > 0,
    )


def _code(text: str) -> Code | None:
    found = _CODE.search(text) if "Code: " in text else None
    if found is None:
        return None
    words = found["bytes"].split()[:MOST_CODE]
    marked = [index for index, word in enumerate(words) if word.startswith("<")]
    if len(marked) != 1:
        return None
    return Code(bytes(int(word.strip("<>"), 16) for word in words), marked[0])
