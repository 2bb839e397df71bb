"""The report of a crash: facts in, ``report.md`` and ``report.json`` out.

Whatever the guest said or holds in memory is shown harmless: indented, so that it is no markup, and without what acts
on a terminal.  ``docs/crash-capture.md`` describes the document; ``VERSION`` counts its incompatible changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final

from kbridge.crash.facts import (
    Call,
    Facts,
    Instruction,
    KernelFacts,
    Part,
    PartState,
    Place,
    Processor,
    TaskStack,
)

VERSION: Final = 1
MOST_LINE: Final = 500
MOST_EXPLAINED: Final = 400
MOST_LAST_LINES: Final = 40
MOST_MODULES: Final = 200
_ORDER: Final = (
    "rip", "rsp", "rbp", "eflags", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "cs", "ss", "cr0", "cr2", "cr3", "cr4", "gs_base", "k_gs_base", "fs_base",
)  # fmt: skip
_PER_LINE: Final = 3
MOST_ALIKE: Final = 3
"""Frames in a row that are the same, as of a function that calls itself; of more one is shown, and their number."""
_STAMP: Final = re.compile(r"\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? *")
_FRAME: Final = re.compile(r"(?:\? )?[\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+")
_PARTS: Final = {
    "console": "the console's last text",
    "timeline": "the time line",
    "registers": "the registers of all processors",
    "backtraces": "the backtraces of all processors",
    "dmesg": "the kernel's log, out of its memory",
    "modules": "the list of modules",
    "tasks": "the stacks of all tasks",
    "vmcore": "the memory image",
    "gdb": "gdb's view",
    "drgn": "drgn's view",
}
_POLICIES: Final = {
    "leave": "stays as it died, for a debugger",
    "resume": "is resumed",
    "reset": "is reset",
    "off": "is switched off",
}


# ── for programs ────────────────────────────────────────────────────────────────────────────────────────────────


def as_json(facts: Facts) -> dict[str, Any]:
    """Return ``report.json``."""
    noticed = facts.noticed
    kernel = facts.kernel
    return {
        "version": VERSION,
        "id": facts.id,
        "guest": facts.guest,
        "title": noticed.title,
        "alternative_titles": list(noticed.alternatives),
        "kind": noticed.kind,
        "function": noticed.function,
        "corrupted": noticed.corrupted or None,
        "fatal": noticed.fatal,
        "time": time_text(noticed.wall_ns),
        "noticed_by": noticed.how.value,
        "words": noticed.words,
        "state": facts.state,
        "interrupted": facts.interrupted or None,
        "count": facts.count,
        "first": time_text(facts.first_ns or noticed.wall_ns),
        "followed_by": list(facts.also),
        "where": None if facts.where is None else _place(facts.where),
        "console": {"begin": noticed.begin, "end": noticed.end},
        "machine": {
            "state": facts.machine or None,
            "controlled_by": facts.controlled_by,
            "paused": facts.paused,
            "read_bytes": facts.read_bytes,
        },
        "kernel": {
            "release": kernel.release or None,
            "banner": kernel.banner or None,
            "build_id": kernel.build_id,
            "slide": _hex(kernel.slide),
            "file": kernel.file,
            "found_by": kernel.way or None,
            "command_line": kernel.command_line or None,
            "uptime_seconds": kernel.seconds,
        },
        "debug_dirs": list(facts.debug_dirs),
        "crashed_processor": facts.guilty,
        "processors": [_processor(one) for one in facts.processors],
        "explained": list(facts.explained),
        "last_lines": list(facts.last_lines),
        "modules": [
            {
                "name": one.name,
                "base": hex(one.base),
                "size": one.size,
                "build_id": one.build_id,
                "taints": one.taints,
            }
            for one in facts.modules
        ],
        "tasks": facts.tasks,
        "image": None if facts.image is None else dict(facts.image),
        "parts": {name: _part(one) for name, one in facts.parts.items()},
        "on_crash": facts.policy or None,
        "outcome": facts.outcome or None,
    }


def registers_json(processors: Iterable[Processor]) -> dict[str, Any]:
    """Return ``registers.json``: for each processor its registers, by name."""
    return {
        str(one.number): {name: hex(value) for name, value in one.registers.items()} for one in processors
    }


def _processor(one: Processor) -> dict[str, Any]:
    return {
        "number": one.number,
        "in_user_space": one.is_user,
        "registers": {name: hex(one.registers[name]) for name in _ORDER if name in one.registers},
        "backtrace": [_place(frame) for frame in one.frames],
        "problem": one.problem or None,
        "code": [{"offset": each.offset, "bytes": each.data.hex(), "text": each.text} for each in one.code],
    }


def _place(one: Place) -> dict[str, Any]:
    return {
        "address": hex(one.address) if one.address else None,
        "trust": one.trust,
        "symbol": one.name,
        "offset": one.offset,
        "size": one.size,
        "module": one.module,
        "calls": [{"function": each.function, "file": each.file, "line": each.line} for each in one.calls],
    }


def _part(one: Part) -> dict[str, Any]:
    return {
        "state": one.state.value,
        "why": one.why or None,
        "file": one.file,
        "seconds": None if one.seconds is None else round(one.seconds, 3),
    }


def _hex(value: int | None) -> str | None:
    return None if value is None else hex(value)


# ── for people ──────────────────────────────────────────────────────────────────────────────────────────────────


def as_markdown(facts: Facts) -> str:
    """Return ``report.md``."""
    return "\n".join(_lines(facts)).rstrip("\n") + "\n"


def _lines(facts: Facts) -> Iterator[str]:
    noticed = facts.noticed
    yield f"# {_inline(noticed.title)}"
    yield ""
    yield f"{facts.guest}, {_clock(noticed.wall_ns)}: {_inline(noticed.words)}."
    if noticed.corrupted:
        yield f"The text is corrupted ({_inline(noticed.corrupted)}): what it says may belong to several crashes."
    yield ""
    yield from _table(facts)
    if facts.state == "pending":
        waits = [name for name, one in facts.parts.items() if one.state is PartState.PENDING]
        yield ""
        yield f"**Not finished**: {', '.join(_PARTS.get(one, one) for one in waits)} will be added."
    if facts.interrupted:
        yield ""
        yield f"**Incomplete**: {facts.interrupted}."
    guilty = next((one for one in facts.processors if one.number == facts.guilty), None)
    yield from _said(facts)
    yield from _stood(facts, guilty)
    if guilty is not None and noticed.fatal:
        yield from _registers(guilty)
        yield from _code(guilty)
    yield from _others(facts)
    yield from _modules(facts)
    yield from _missing(facts)
    yield from _next(facts)


def _table(facts: Facts) -> Iterator[str]:
    noticed = facts.noticed
    rows: list[tuple[str, str]] = [("id", facts.id)]
    if facts.where is not None:
        outer = facts.where.calls[-1:] or (None,)
        at = "" if outer[0] is None else f"  {_source(outer[0])}"
        rows.append(("where", f"{_clean(facts.where.text)}{at}"))
    if noticed.alternatives:
        rows.append(("also called", "; ".join(map(_inline, noticed.alternatives))))
    rows.append(("noticed by", {"console": "its text on the console", "machine": "the machine monitor",
                                "silence": "the console's silence", "hand": "hand"}[noticed.how.value]))  # fmt: skip
    if facts.count > 1:
        rows.append(("seen", f"{_ordinal(facts.count)} time here, first {_clock(facts.first_ns)}"))
    if facts.also:
        rows.append(("followed by", "; ".join(map(_inline, facts.also))))
    rows += _kernel_rows(facts.kernel)
    if facts.controlled_by:
        rows.append(("debugged by", facts.controlled_by))
    if facts.tasks is not None:
        rows.append(("tasks", str(facts.tasks)))
    if facts.read_bytes is not None:
        rows.append(
            ("looked into by", f"its kernel's own debugger: {facts.read_bytes:,} bytes of memory were read")
        )
    if facts.outcome or facts.policy:
        rows.append(("the guest", facts.outcome or _POLICIES.get(facts.policy, facts.policy)))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        yield f"    {name:{width}}  {value}"


def _kernel_rows(kernel: KernelFacts) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if kernel.release or kernel.banner:
        rows.append(("kernel", _inline(kernel.banner or kernel.release)))
    if kernel.build_id:
        slide = "" if kernel.slide is None else f", moved by {kernel.slide:#x}"
        rows.append(("build-id", f"{kernel.build_id}{slide}"))
        rows.append(("symbols", kernel.file or "the kernel's own, out of its memory: no lines"))
    if kernel.command_line:
        rows.append(("command line", _inline(kernel.command_line)))
    if kernel.seconds is not None:
        rows.append(("up for", _duration(kernel.seconds)))
    return rows


def _stood(facts: Facts, guilty: Processor | None) -> Iterator[str]:
    if guilty is None:
        return
    yield ""
    yield f"## Processor {guilty.number}, which crashed" + (
        "" if facts.noticed.fatal else ", when the evidence was taken"
    )
    yield ""
    yield from _frames(guilty.frames)
    if guilty.problem:
        yield f"    -- {guilty.problem}"


def _said(facts: Facts) -> Iterator[str]:
    if facts.explained:
        yield ""
        yield "## What the kernel said, explained"
        yield ""
        yield from _indented(list(_without_recursion(facts.explained)), MOST_EXPLAINED)
    if facts.last_lines:
        yield ""
        yield "## The console before that" if facts.explained else "## The console's last lines"
        yield ""
        yield from _indented(facts.last_lines[-MOST_LAST_LINES:], MOST_LAST_LINES)


def _registers(one: Processor) -> Iterator[str]:
    yield ""
    yield "## Registers"
    yield ""
    shown = [f"{name:9} {one.registers[name]:016x}" for name in _ORDER if name in one.registers]
    for start in range(0, len(shown), _PER_LINE):
        yield "    " + "  ".join(shown[start : start + _PER_LINE])


def _code(one: Processor) -> Iterator[str]:
    if not one.code:
        return
    yield ""
    yield "## Code, as it was in memory"
    yield ""
    place = one.frames[0] if one.frames else None
    yield from code_lines(one.code, place)


def code_lines(code: Iterable[Instruction], place: Place | None) -> Iterator[str]:
    """Return lines of instructions, the one at the program counter marked."""
    for each in code:
        at = f"{each.offset:+#x}"
        if place is not None and place.name is not None and place.offset + each.offset >= 0:
            at = f"<+{place.offset + each.offset:#x}>"
        mark = "=>" if each.offset == 0 else "  "
        yield f"    {mark} {at:>9}  {each.data.hex(' '):30} {_clean(each.text)}"


def _others(facts: Facts) -> Iterator[str]:
    others = [one for one in facts.processors if one.number != facts.guilty]
    if not others:
        return
    yield ""
    yield "## The other processors" if facts.guilty is not None else "## The processors"
    for one in others:
        yield ""
        where = "in user space" if one.is_user and len(one.frames) == 1 else ""
        yield f"Processor {one.number}{': ' + where if where else ''}"
        yield ""
        yield from _frames(one.frames)
        if one.problem:
            yield f"    -- {one.problem}"


def _modules(facts: Facts) -> Iterator[str]:
    if not facts.modules:
        return
    yield ""
    yield f"## Modules: {len(facts.modules)}"
    yield ""
    names = [
        one.name + (" (taints the kernel)" if one.taints else "") for one in facts.modules[:MOST_MODULES]
    ]
    line = "   "
    for name in map(_clean, names):
        if len(line) + len(name) > 100:
            yield line
            line = "   "
        line += f" {name}"
    yield line


def _missing(facts: Facts) -> Iterator[str]:
    missing = [(name, one) for name, one in facts.parts.items() if one.why]
    if not missing:
        return
    yield ""
    yield "## What is missing"
    yield ""
    for name, one in missing:
        how = "is missing" if one.state is PartState.MISSING else "is not whole"
        what = _PARTS.get(name, name)
        yield f"- {what[0].upper()}{what[1:]} {how}: {_inline(one.why)}."


def _next(facts: Facts) -> Iterator[str]:
    yield ""
    yield "## What to do next"
    yield ""
    image = facts.parts.get("vmcore")
    if image is not None and image.state is PartState.DONE:
        yield f"- `kbridge crash open {facts.id}`: gdb on the memory image, with all tasks and symbols"
    if facts.machine and facts.policy == "leave" and facts.noticed.fatal:
        yield f"- `kbridge gdb {facts.guest}`: take the guest over where it died"
    yield f"- `kbridge log {facts.guest} --since '{_iso(facts.noticed.wall_ns)}'`: its record from then on"
    yield f"- `kbridge crash export {facts.id}`: all files in one, to give away"


# ── the stacks of tasks ─────────────────────────────────────────────────────────────────────────────────────────


def threads_text(tasks: Sequence[TaskStack]) -> str:
    """Return ``threads.txt``: every task with its calls."""
    lines = []
    for one in tasks:
        thread = "" if one.pid == one.process else f", a thread of {one.process}"
        kind = "kernel thread" if one.kernel else "task"
        cpu = "" if one.cpu is None else f", processor {one.cpu}"
        see = ": see registers.json" if one.runs else ""
        lines.append(f"{kind} {one.pid} {_clean(one.name)} ({one.state}{thread}{cpu}{see})")
        lines += _frames(one.frames)
        if one.problem:
            lines.append(f"    -- {one.problem}")
        lines.append("")
    return "\n".join(lines)


def _frames(frames: Iterable[Place]) -> Iterator[str]:
    for _, alike in groupby(frames):
        one, *more = alike
        shown = list(_frame(one))
        if len(more) < MOST_ALIKE:
            yield from shown * (1 + len(more))
        else:
            yield from shown
            yield f"    … {len(more)} times more"


def _frame(one: Place) -> Iterator[str]:
    mark = "? " if one.trust == "guess" else ""
    *inlined, outer = one.calls or (None,)
    for call in inlined:
        assert call is not None
        yield f"    {mark}{_clean(call.function or '??')}  {_source(call)} (inlined)"
    yield f"    {mark}{_clean(one.text)}" + ("" if outer is None else f"  {_source(outer)}")


def _without_recursion(lines: Iterable[str]) -> Iterator[str]:
    """Return the kernel's lines, of frames that are the same again and again only one."""
    for said, alike in groupby(lines, lambda line: _STAMP.sub("", line, count=1).strip()):
        one, *more = alike
        if len(more) < MOST_ALIKE or not _FRAME.match(said):
            yield from (one, *more)
        else:
            yield one
            yield f"{one[: one.find(said)]}… {len(more)} times more"


def _source(call: Call) -> str:
    return f"{_clean(call.file or '??')}:{call.line or '?'}"


# ── text ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _clean(text: str) -> str:
    """Return text of the guest's that acts on nothing."""
    return "".join(one if one.isprintable() else " " if one == "\t" else "�" for one in text[:MOST_LINE])


def _inline(text: str) -> str:
    """Return text of the guest's for a line of markup."""
    return _clean(text).replace("<", "&lt;").replace("`", "'")


def _indented(lines: Sequence[str], most: int) -> Iterator[str]:
    for line in lines[:most]:
        yield f"    {_clean(line)}".rstrip()
    if len(lines) > most:
        yield f"    … and {len(lines) - most} more lines: console.log"


def time_text(wall_ns: int) -> str:
    """Return a time as ISO 8601 in UTC with microseconds."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _clock(wall_ns: int) -> str:
    return f"{datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _iso(wall_ns: int) -> str:
    return f"{datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds) // 60, int(seconds) // 3600, int(seconds) // 86400
    if hours < 2:
        return f"{minutes} min {int(seconds) % 60} s"
    return f"{hours} h {minutes % 60} min" if days < 2 else f"{days} days {hours % 24} h"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a list of crashes shows of a ``report.json``.  Raises ``KeyError`` for what is none."""
    return {key: document[key] for key in ("id", "guest", "title", "time", "count", "kind", "state", "fatal")}
