"""What became of a guest's last boot: how far it came, how long that took, what failed, what proves it.

Pure: a ``Triage`` is fed a record's entries in order and makes a ``Report`` of what followed the last begin of a
boot.  That is a reset that the monitor told, or firmware, boot loader or kernel showing where a kernel ran before.
Bounded: it keeps the states entered, and for each symptom its first lines.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from kbridge.boot.states import MAX_EVIDENCE, STAMP, Change, Recogniser, State
from kbridge.boot.symptoms import SYMPTOMS, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbridge.boot.symptoms import Symptom

MAX_LINES: Final = 5
"""Lines kept of each symptom."""
MAX_LAST_LINES: Final = 5
MAX_STAGES: Final = 200
MAX_TIMES: Final = 1 << 17
MAX_GAPS: Final = 20
STANDS_SECONDS: Final = 30.0
"""A boot from which nothing came for so long does not try something else."""

_KERNEL_RAN: Final = frozenset(
    {
        State.KERNEL,
        State.INITRAMFS,
        State.SYSTEMD,
        State.LOGIN,
        State.SHELL,
        State.KDB,
        State.PANIC,
        State.OFF,
    }
)
_FROM_THE_START: Final = frozenset({State.FIRMWARE, State.LOADER, State.KERNEL})
_NO_SYSTEM: Final = frozenset({"initramfs-tools", "dracut", "sulogin"})
"""Whose prompts are not the system's."""


class Verdict(StrEnum):
    """What can be said of a boot."""

    UP = "up"
    FAILED = "failed"
    HUNG = "hung"
    STOPPED = "stopped"
    """It waits for somebody, at a menu or prompt that is not the system's own."""
    OFF = "off"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the console."""

    offset: int
    wall_ns: int
    """When it came, since the epoch, to 50 ms; 0 where that is not known."""
    text: str


@dataclass(frozen=True, slots=True)
class Stage:
    """A state that the boot was in."""

    state: State
    program: str
    line: Line
    """What showed it."""
    kernel_seconds: float | None
    """The kernel's own clock then; None before it runs."""
    seconds: float | None
    """How long it lasted, by the record's times, else by the kernel's; None where neither tells."""
    by_kernel: bool
    """Whether ``seconds`` is by the kernel's clock."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A symptom that the boot shows."""

    symptom: Symptom
    lines: tuple[Line, ...]
    count: int
    """How many lines there are."""
    refuted: bool
    """Whether the boot got over it."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that is known of a boot."""

    verdict: Verdict
    words: str
    reached: State
    program: str
    begun_by: str
    """What began it: ``machine.reset``, ``text``, or ``record`` where the record's own begin is all there is."""
    begin_ns: int
    """When, since the epoch; 0 where that is not known."""
    begin_offset: int
    end_ns: int
    """When the last byte came; 0 where that is not known."""
    end_offset: int
    stages: tuple[Stage, ...]
    findings: tuple[Finding, ...]
    release: str
    command_line: str
    last_lines: tuple[Line, ...]
    gaps: tuple[tuple[int, str], ...]
    """Where text may be missing: offset and reason."""
    boots: int
    """How many boots the record has."""


@dataclass(slots=True)
class _Boot:
    """What is kept of the boot under way."""

    begun_by: str
    offset: int
    wall_ns: int
    changes: list[tuple[Change, float | None]] = field(default_factory=list)
    lines: dict[str, list[Line]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    disproved: set[str] = field(default_factory=set)
    refuted: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    """Symptoms for which the line came that silence must follow."""
    last: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=MAX_LAST_LINES))
    gaps: list[tuple[int, str]] = field(default_factory=list)
    release: str = ""
    command_line: str = ""
    kernel_seconds: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing of what its kernel said is missing, as far as is known."""
        lost = any(offset > self.offset for offset, _ in self.gaps)
        return not lost and any(change.state is State.KERNEL for change, _ in self.changes)


class Triage:
    """Reads a record's entries, in order."""

    def __init__(self) -> None:
        self._recogniser = Recogniser(self._line)
        self._offsets: list[int] = []
        self._times: list[int] = []
        self._boot = _Boot("record", 0, 0)
        self._pending: list[tuple[int, str, str, float | None]] = []
        self._found = False
        """Whether the machine may have been started anew since the last change."""
        self._end = 0
        self._end_ns = 0
        self._boots = 0

    def text(self, offset: int, wall_ns: int, data: bytes) -> None:
        """Take console bytes that came at ``wall_ns``; 0 if that is not known."""
        if offset != self._recogniser.offset:
            self._recogniser.reset(offset)
        if not self._end and not self._boot.changes:
            self._boot.offset, self._boot.wall_ns = offset, wall_ns
        if not self._times or self._times[-1] != wall_ns:
            if len(self._times) >= MAX_TIMES:
                del self._times[: MAX_TIMES // 2], self._offsets[: MAX_TIMES // 2]
            self._times.append(wall_ns)
            self._offsets.append(offset)
        self._end, self._end_ns = offset + len(data), wall_ns
        # By pieces, so that lines and changes stay in order without the whole text's being held.
        for begin in range(0, len(data), 4096):
            changes = self._recogniser.feed(data[begin : begin + 4096])
            self._settle(changes)

    def gap(self, offset: int, reason: str) -> None:
        """Take word that text may be missing before ``offset``."""
        self._recogniser.reset(offset)
        self._found = True
        if len(self._boot.gaps) < MAX_GAPS:
            self._boot.gaps.append((offset, reason))

    def event(self, kind: str, offset: int, wall_ns: int, fields: Mapping[str, Any]) -> None:
        """Take an event of the time line."""
        match kind:
            case "machine.reset":
                self._begin(kind, offset, wall_ns)
                self._recogniser.reset(offset)
            case "machine.found":
                # A machine that was started, or a relay that was: what comes next tells.
                self._recogniser.reset(offset)
                self._found = True
            case "machine.shutdown":
                self._told(State.OFF, kind, offset, fields)
            case "machine.panic":
                self._told(State.PANIC, kind, offset, fields)
            case _:
                pass

    def report(self, *, now_ns: int = 0) -> Report:
        """Return what is known; ``now_ns``: the time, where the guest's record still goes on, else 0."""
        boot = self._boot
        findings = self._findings(now_ns)
        reached, program = self._reached()
        verdict, words = _judge(reached, program, findings, self._stood(now_ns))
        return Report(
            verdict,
            words,
            reached,
            program,
            boot.begun_by,
            boot.wall_ns,
            boot.offset,
            self._end_ns,
            self._end,
            self._stages(),
            findings,
            boot.release,
            boot.command_line,
            tuple(Line(offset, self._when(offset), text) for offset, text in boot.last),
            tuple(gap for gap in boot.gaps if gap[0] > boot.offset),
            self._boots + 1,
        )

    # ── taking ──────────────────────────────────────────────────────────────────────────────────────────────

    def _line(self, text: str, body: str, offset: int, believed: bool) -> None:
        stamp = STAMP.search(text)
        seconds = float(stamp[1]) if stamp is not None and believed else None
        # What a command prints is no symptom, and its time stamps are old.
        self._pending.append((offset, text, body if believed else "", seconds))

    def _settle(self, changes: list[Change]) -> None:
        """Give lines and changes to the boots that they belong to, in order."""
        lines, self._pending = self._pending, []
        waiting = deque(changes)
        for offset, text, body, seconds in lines:
            while waiting and waiting[0].offset <= offset:
                self._change(waiting.popleft())
            self._take(offset, text, body, seconds)
        while waiting:
            self._change(waiting.popleft())

    def _change(self, change: Change) -> None:
        boot = self._boot
        # GRUB asks for a name and a password too.
        ran = any(each.state in _KERNEL_RAN and each.program != "GRUB" for each, _ in boot.changes)
        anew = ran and (self._found or boot.changes[-1][0].state is not change.state)
        if change.state in _FROM_THE_START and anew:
            self._begin("text", change.offset, self._when(change.offset))
            boot = self._boot
        self._found = False
        stamp = STAMP.search(change.evidence)
        if stamp is not None:
            boot.kernel_seconds = float(stamp[1])
        if len(boot.changes) < MAX_STAGES:
            boot.changes.append((change, boot.kernel_seconds))
        if change.program in _NO_SYSTEM and change.state is not State.INITRAMFS:
            return
        for symptom in SYMPTOMS:
            if symptom.name in boot.lines and change.state in symptom.refuted_by:
                boot.refuted.add(symptom.name)

    def _begin(self, by: str, offset: int, wall_ns: int) -> None:
        if self._boot.changes:
            self._boots += 1
        self._boot = _Boot(by, offset, wall_ns)
        kept = bisect_right(self._offsets, offset) - 1
        if kept > 0:
            del self._offsets[:kept], self._times[:kept]

    def _take(self, offset: int, text: str, body: str, seconds: float | None) -> None:
        boot = self._boot
        boot.last.append((offset, text[:MAX_EVIDENCE]))
        if seconds is not None:
            boot.kernel_seconds = seconds
        if body.startswith("Linux version ") and not boot.release:
            boot.release = body.split()[2]
        elif body.startswith(("Command line: ", "Kernel command line: ")) and not boot.command_line:
            boot.command_line = body.partition(": ")[2][:MAX_EVIDENCE]
        taken = False
        for symptom in SYMPTOMS:
            if symptom.absent is not None and symptom.absent.match(body):
                boot.disproved.add(symptom.name)
            if symptom.after is not None and symptom.after.match(body):
                boot.seen.add(symptom.name)
            if taken or symptom.lines is None or symptom.name in boot.disproved:
                continue
            if symptom.absent is not None and not boot.is_whole:
                continue
            if symptom.lines.match(body):
                taken = True
                boot.counts[symptom.name] += 1
                kept = boot.lines.setdefault(symptom.name, [])
                if len(kept) < MAX_LINES:
                    kept.append(Line(offset, self._when(offset), text[:MAX_EVIDENCE].strip()))

    def _told(self, state: State, kind: str, offset: int, fields: Mapping[str, Any]) -> None:
        words = kind + "".join(f" {name}={value}" for name, value in fields.items() if isinstance(value, str))
        last = self._boot.changes[-1][0].state if self._boot.changes else None
        if last is not state:
            self._change(Change(state, "the monitor", offset, offset, words[:MAX_EVIDENCE]))

    # ── telling ─────────────────────────────────────────────────────────────────────────────────────────────

    def _when(self, offset: int) -> int:
        place = bisect_right(self._offsets, offset) - 1
        return self._times[place] if place >= 0 else 0

    def _reached(self) -> tuple[State, str]:
        for change, _ in reversed(self._boot.changes):
            if change.state is not State.UNKNOWN:
                return change.state, change.program
        return State.UNKNOWN, ""

    def _stages(self) -> tuple[Stage, ...]:
        """Return the states, those that several programs showed in turn as one."""
        stages: list[Stage] = []
        changes = self._boot.changes
        for place, (change, kernel_seconds) in enumerate(changes):
            begin = self._when(change.offset)
            line = Line(change.offset, begin, change.evidence)
            program = change.program
            if stages and stages[-1].state is change.state:
                former = stages.pop()
                begin, line, kernel_seconds = former.line.wall_ns, former.line, former.kernel_seconds
                program = program or former.program
            later = changes[place + 1] if place + 1 < len(changes) else None
            end = self._end_ns if later is None else self._when(later[0].offset)
            end_kernel = self._boot.kernel_seconds if later is None else later[1]
            seconds: float | None = None
            by_kernel = False
            if begin and end:
                seconds = max(end - begin, 0) / 1e9
            elif kernel_seconds is not None and end_kernel is not None:
                seconds = max(end_kernel - kernel_seconds, 0.0)
                by_kernel = True
            stages.append(Stage(change.state, program, line, kernel_seconds, seconds, by_kernel))
        return tuple(stages)

    def _stood(self, now_ns: int) -> float | None:
        """Return for how many seconds nothing came, None where that is not known."""
        last = max(self._end_ns, self._boot.wall_ns)
        return max(now_ns - last, 0) / 1e9 if now_ns and last else None

    def _findings(self, now_ns: int) -> tuple[Finding, ...]:
        boot = self._boot
        silent = self._stood(now_ns)
        found: list[Finding] = []
        for symptom in SYMPTOMS:
            lines = boot.lines.get(symptom.name)
            if lines and symptom.name not in boot.disproved:
                refuted = symptom.name in boot.refuted
                found.append(Finding(symptom, tuple(lines), boot.counts[symptom.name], refuted))
            elif silent is not None and self._is_silent(symptom, silent, found):
                last = tuple(Line(offset, self._when(offset), text) for offset, text in list(boot.last)[-1:])
                found.append(Finding(symptom, last, len(last), refuted=False))
        return tuple(found)

    def _is_silent(self, symptom: Symptom, silent: float, found: list[Finding]) -> bool:
        """Whether silence for so many seconds proves a symptom; the first that it proves is enough."""
        boot = self._boot
        if any(each.symptom.silent_in for each in found):
            return False
        state, _ = self._reached()
        if state not in symptom.silent_in or silent < symptom.silent_seconds:
            return False
        if symptom.after is not None and symptom.name not in boot.seen:
            return False
        # Where no state is known, only the silence of a whole boot means something.
        return state is not State.UNKNOWN or (boot.begun_by == "machine.reset" and not boot.last)


_WHERE: Final[Mapping[State, str]] = {
    State.FIRMWARE: "in the firmware",
    State.LOADER: "in the boot loader",
    State.COUNTDOWN: "in the boot loader's countdown",
    State.MENU: "at the boot loader's menu",
    State.EDITOR: "in the boot loader's editor",
    State.COMMAND: "at a command line before the kernel",
    State.KERNEL: "in the kernel",
    State.INITRAMFS: "in the initramfs",
    State.SYSTEMD: "in the system's start",
    State.LOGIN: "at a login prompt",
    State.SHELL: "at a shell",
    State.KDB: "in the kernel's debugger",
    State.PANIC: "in a panic",
    State.FAILED: "where firmware or boot loader gave up",
    State.OFF: "switched off",
    State.UNKNOWN: "nowhere that is known",
}


_STANDS: Final = frozenset(State) - {
    State.UNKNOWN,
    State.FIRMWARE,
    State.LOADER,
    State.KERNEL,
    State.INITRAMFS,
    State.SYSTEMD,
}
"""Where a boot does not go on by itself, or not as it was meant to."""


def _judge(
    reached: State, program: str, findings: tuple[Finding, ...], silent: float | None
) -> tuple[Verdict, str]:
    by_weight = {
        weight: [each.symptom for each in findings if each.symptom.weight is weight and not each.refuted]
        for weight in Weight
    }
    stands = reached in _STANDS or (silent is not None and silent >= STANDS_SECONDS)
    so_far = ""
    for fatal in by_weight[Weight.FATAL]:
        if stands or fatal.final:
            return Verdict.FAILED, fatal.what
        so_far = so_far or fatal.what
    for weight, verdict in ((Weight.HUNG, Verdict.HUNG), (Weight.NOTE, Verdict.STOPPED)):
        if by_weight[weight]:
            return verdict, by_weight[weight][0].what
    if so_far:
        return Verdict.UNKNOWN, f"{so_far}; but the record ends there, and it may have gone on"
    by = f" ({program})" if program else ""
    match reached:
        case State.PANIC:
            return Verdict.FAILED, "the kernel panicked"
        case State.FAILED:
            return Verdict.FAILED, f"firmware or boot loader gave up{by}"
        case State.OFF:
            return Verdict.OFF, "the guest switched itself off"
        case State.LOGIN | State.SHELL if program not in _NO_SYSTEM:
            return Verdict.UP, f"it came up, and stands {_WHERE[reached]}{by}"
        case (
            State.LOGIN
            | State.SHELL
            | State.COUNTDOWN
            | State.MENU
            | State.EDITOR
            | State.COMMAND
            | State.KDB
        ):
            return Verdict.STOPPED, f"it waits {_WHERE[reached]}{by}"
        case State.UNKNOWN:
            return Verdict.UNKNOWN, "nothing in the record shows how far it came"
        case _:
            pass
    since = "" if silent is None else f", {silent:.0f} s ago"
    return Verdict.UNKNOWN, f"the record ends {_WHERE[reached]}{by}{since}, and nothing shows that it failed"
