"""What raw evidence of a crash means: names for stacks, instructions for bytes, source lines for text.

in          registers, stacks, bytes of code, the console's lines, a kernel's names
out         processors, explained lines, the place that the crash is about
invariant   what cannot be named is shown as it is

Pure but for what ``Names`` reads: called in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from kbridge.crash.detector import CrashEnds, Detector
from kbridge.crash.facts import Instruction, Place, Processor, TaskStack
from symbols import backtrace
from symbols.backtrace import Code
from symbols.unwinding import Trace, Trust

if TYPE_CHECKING:
    from kbridge.crash.naming import Names
    from symbols.disassembly import Disassembler
    from symbols.tasks import Task

SHOWN_BEFORE: Final = 8
SHOWN_AFTER: Final = 8
"""Instructions."""
_CPU: Final = re.compile(r"\bCPU: (\d{1,4}) (?:UID: \d+ )?PID: ")
_DYING: Final = frozenset(("panic", "__crash_kexec", "crash_kexec", "oops_end", "kgdb_panic", "nmi_panic"))


def explained(
    names: Names,
    processors: Sequence[Processor],
    traces: Sequence[Trace],
    code: Sequence[tuple[bytes, bytes]],
    said: Sequence[str],
    function: str | None,
) -> tuple[tuple[Processor, ...], tuple[str, ...], Place | None]:
    """Name frames, disassemble, explain the console's text; in a thread."""
    from symbols.disassembly import Disassembler  # noqa: PLC0415 (large, and for crashes only)

    disassembler = Disassembler()
    found = []
    for one, trace, (before, after) in zip(processors, traces, code, strict=True):
        frames = tuple(names.frame(frame) for frame in trace.frames)
        shown: tuple[Instruction, ...] = ()
        if not trace.is_user or len(trace.frames) > 1:
            shown = _disassembled(disassembler, names, one.registers.get("rip", 0), before, after)
        found.append(Processor(one.number, one.registers, frames, trace.problem, trace.is_user, shown))
    return tuple(found), tuple(names.explainer.explain(said)), _crashed_at(names, said, function)


def _crashed_at(names: Names, said: Sequence[str], function: str | None) -> Place | None:
    """Return the place in the text that the title is about, else where the program counter was."""
    places, doubtful = [], []
    for line in backtrace.read(said):
        if line.is_user:
            continue
        for one in line.places:
            # What compilers made of a function has its name and more.
            if one.name.partition(".")[0] == function:
                if not line.is_doubtful:
                    return names.told(one)
                doubtful.append(one)
            elif not line.is_doubtful and (line.segment is not None or line.is_frame):
                places.append(one)
    # Of a jump to where no function is, the kernel doubts all frames: who jumped is among them.
    found = doubtful or places
    return names.told(found[0]) if found else None


def _disassembled(
    disassembler: Disassembler, names: Names, counter: int, before: bytes, after: bytes
) -> tuple[Instruction, ...]:
    place = names.place(counter)

    def near(distance: int) -> str | None:
        other = names.place(counter + distance)
        if other.name is None:
            return None
        if other.name == place.name:
            return f"<+{other.offset:#x}>"
        return other.name + (f"+{other.offset:#x}" if other.offset else "")

    offset = place.offset if place.name is not None else None
    listed = disassembler.disassemble(Code(before + after, len(before)), offset, near)
    at = next((index for index, one in enumerate(listed) if one.offset == 0), None)
    if at is None:
        return ()
    return tuple(
        Instruction(one.offset, one.data, one.text)
        for one in listed[max(0, at - SHOWN_BEFORE) : at + SHOWN_AFTER + 1]
        if offset is None or 0 <= offset + one.offset < place.size
    )


def guilty(processors: Sequence[Processor], said: Sequence[str]) -> int | None:
    """Return which processor crashed: as the text says, else the one that is in the kernel's code for that."""
    told = next((int(found[1]) for line in said if (found := _CPU.search(line))), None)
    if told is not None and any(one.number == told for one in processors):
        return told
    for one in processors:
        if any(frame.name in _DYING and frame.trust != Trust.GUESS.value for frame in one.frames):
            return one.number
    return processors[0].number if len(processors) == 1 else None


def last_crash(log: bytes) -> CrashEnds | None:
    """Return the last crash that a kernel's log tells."""
    detector = Detector()
    events = [*detector.feed(log), *detector.settle()]
    ends = [one for one in events if isinstance(one, CrashEnds)]
    return ends[-1] if ends else None


def stacks(names: Names, found: Sequence[Task], traces: Sequence[Trace]) -> list[TaskStack]:
    """Name the calls of tasks; in a thread."""
    return [
        TaskStack(
            one.pid, one.tgid, one.name, one.says, one.cpu, one.on_cpu, one.tables is None,
            tuple(names.frame(frame) for frame in trace.frames), trace.problem,
        )
        for one, trace in zip(found, traces, strict=True)
    ]  # fmt: skip
