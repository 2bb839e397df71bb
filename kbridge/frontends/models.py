"""What the API takes and gives, as pydantic models; ``openapi`` makes the document's schemas of them.

Times are ISO 8601 in UTC; offsets count console bytes since the guest's record began; addresses are text in
hexadecimal (JSON's numbers hold 53 bits only).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from kbridge.boot.wishes import StopAt, Way
from kbridge.expect.script import MAX_TEXT

MAX_LINES = 1_000_000
MAX_HISTORY_BYTES = 65536

Capability = Literal["console", "debug", "power", "break"]
PowerAction = Literal["on", "off", "cycle", "reset", "pause", "resume", "nmi"]
ExpectKind = Literal[
    "start", "waits", "saw", "timeout", "lost", "gap", "quiet", "sent", "notice", "skipped", "end"
]
BootKind = Literal["start", "reset", "state", "sent", "note", "asks", "gap", "skipped", "end"]
Secret = Literal["loader", "root"]
SysRqKey = Annotated[str, Field(pattern="^[0-9A-Za-z]$", description="A SysRq key, such as h for help")]


class _Given(BaseModel):
    """A model of what kbridge sends."""

    model_config = ConfigDict(frozen=True)


class _Taken(BaseModel):
    """A model of what kbridge is sent: nothing unknown, nothing converted but what HTTP has as text."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Version(_Given):
    """Which kbridge this is."""

    version: str
    api: Literal[1] = 1
    pid: int
    started: datetime
    runtime_dir: str
    state_dir: str


class Line(_Given):
    """The serial line of a guest."""

    endpoint: str
    state: str = Field(description="connecting, open, lost or closed")
    reason: str = Field(description="Why it is not open; empty while it is")
    can_break: bool
    pen: str | None = Field(description="Who may type; null while nobody does")


class Record(_Given):
    """The record of a guest's console."""

    status: str = Field(description="`recording`, or what is wrong")
    recording: bool
    oldest: int = Field(description="Offset of the oldest byte held")
    head: int = Field(description="Offset of the next byte to come")


class Session(_Given):
    """A debugger that is connected."""

    name: str
    role: Literal["controller", "observer"]
    attached: bool = Field(description="Whether it works on the guest now")
    waits: bool = Field(description="Whether it waits for a stop")
    stop: int | None = Field(description="The number of the stop that it was told last")
    asks: bool = Field(description="Whether it has asked for control")


class Breakpoint(_Given):
    """What stands in the stub, or is to at the next resume."""

    kind: str
    address: str = Field(pattern="^0x[0-9a-f]+$")
    size: int
    owners: list[str] = Field(
        description="The sessions that want it; none for one that goes at the next resume"
    )


class BreakIn(_Given):
    """How a kernel that runs is made to enter its own debugger."""

    ways: list[str] = Field(description="In the order in which they are tried next (`break_in`)")
    worked: str | None = Field(description="What led in last, also under an earlier relay")


class Debug(_Given):
    """The debug stub of a guest and those who use it."""

    attached: bool = Field(description="Whether a debugger holds the guest")
    stop: int = Field(description="How many stops there were")
    sessions: list[Session]
    breakpoints: list[Breakpoint]
    break_in: BreakIn | None = Field(description="Null where the stub stops the guest itself")


class Monitor(_Given):
    """The machine monitor."""

    connected: bool
    detail: str = Field(description="The hypervisor's own word for the state")
    problem: str = Field(description="Why it does not answer; empty while it does")


class Sockets(_Given):
    """Where the guest's own sockets are; null for those it does not have."""

    gdb: str | None
    gdb_observe: str | None
    console: str | None


class BootQuestion(_Given):
    """A password that a boot waits for."""

    run: str
    asks: Secret


class GuestStatus(_Given):
    """One guest."""

    name: str
    state: str = Field(description="running, paused, debug, panicked, io-error, off, suspended, … or unknown")
    capabilities: list[Capability]
    console: Line | None
    debug: Debug | None
    monitor: Monitor | None
    record: Record
    sockets: Sockets
    boot: BootQuestion | None = Field(description="What a boot asks for and waits for; null for nothing")
    vmlinux: str | None
    debug_dirs: list[str] = Field(description="Where debug files are, the guest's own folders first")


class Guests(_Given):
    """All guests, by name."""

    guests: list[GuestStatus]


class Kernel(_Given):
    """What a guest's memory shows of its kernel, read while it runs."""

    divide_error: str = Field(
        pattern="^0x[0-9a-f]+$",
        description="Address of exception 0's handler in the guest's interrupt table; minus the address of "
        "`asm_exc_divide_error` in vmlinux it is the distance by which KASLR moved the kernel",
    )


class Crash(_Given):
    """A crash of a guest, as the list shows it."""

    id: str
    guest: str
    title: str
    time: datetime
    count: int = Field(description="How often a crash of this title was noticed on this guest by now")
    first: datetime | None = Field(default=None, description="When the first of them was")
    last: datetime | None = Field(default=None, description="When the last of them was")
    kind: str = Field(description="panic, oops, warning, … (docs/crash.md)")
    fatal: bool = Field(description="Whether the guest could not go on by itself")
    state: str = Field(description="complete, pending (parts are still taken) or incomplete")
    path: str = Field(description="Its folder on the relay's machine")


class Crashes(_Given):
    """The crashes that are kept, the newest first."""

    crashes: list[Crash]


class CrashReport(_Given):
    """A crash: where it is, and its report."""

    id: str
    path: str
    markdown: str = Field(description="report.md")
    report: dict[str, Any] = Field(description="report.json (docs/crash-capture.md)")


class CrashesQuery(_Taken):
    """Which crashes."""

    guest: str | None = Field(default=None, min_length=1, max_length=64, description="Of this guest only")


class CrashEventsQuery(CrashesQuery):
    """Which crashes, and whether to go on."""

    follow: bool = Field(
        default=False, description="What happens from now on, instead of the crashes that are kept"
    )


class CaptureWish(_Taken):
    """Take the evidence of a guest that nobody says has crashed."""

    title: str = Field(default="", max_length=200, description="What to call it")


class CrashTold(_Given):
    """Something that happened to a crash."""

    time: datetime
    what: Literal["noticed", "published", "finished"] = Field(
        description="noticed; published: its report can be read; finished: with all of its parts"
    )
    guest: str
    title: str
    count: int
    id: str | None = Field(default=None, description="With published and finished")
    state: str | None = Field(default=None, description="With published and finished")
    path: str | None = Field(default=None, description="With published and finished")


class Power(_Taken):
    """What to do with a guest's machine."""

    action: PowerAction
    force: bool = Field(default=False, description="With `off`: end the machine at once")


class Break(_Taken):
    """How to break in."""

    sysrq: SysRqKey | None = None
    kdb: bool = Field(
        default=False,
        description="Bring the kernel to kdb's prompt instead, where kgdb shares the console's line; not with sysrq",
    )
    force: bool = Field(default=False, description="Take the pen from whoever has it")


class Done(_Given):
    """It was done; `offset` is where the console's record stood before."""

    offset: int


class Broken(Done):
    """BREAK was sent, or the kernel is at kdb's prompt."""

    way: str | None = Field(
        description="How: serial-break, telnet-break, rfc2217-break, monitor-break; with kdb also nmi, and null "
        "where the kernel stood already"
    )


class Reloaded(_Given):
    """What a changed configuration changed: names of guests."""

    appeared: list[str]
    gone: list[str]
    changed: list[str]


class LogQuery(_Taken):
    """Which part of a guest's record, and how."""

    since: AwareDatetime | None = Field(default=None, description="Nothing older than this")
    lines: int | None = Field(
        default=None, ge=0, le=MAX_LINES, description="At most so many of the last lines"
    )
    format: Literal["json", "raw", "text", "cast"] = Field(
        default="json",
        description="json: an object a line; raw: the console's bytes; text: for people; cast: asciicast v2",
    )
    follow: bool = Field(default=False, description="Go on with what comes; not with cast")


class FollowQuery(_Taken):
    """From where on to follow a guest's record; without both, from now on."""

    since: AwareDatetime | None = Field(default=None, description="Nothing older than this")
    lines: int | None = Field(default=None, ge=0, le=MAX_LINES, description="Begin with so many lines")


class ConsoleQuery(_Taken):
    """How to join a console."""

    read_only: bool = Field(default=False, description="Never type")
    history: int = Field(
        default=0, ge=0, le=MAX_HISTORY_BYTES, description="Begin with at most so many bytes, whole lines"
    )


class BreakMessage(_Taken):
    """Sent by a client: break in."""

    type: Literal["break"]
    sysrq: SysRqKey | None = None


class PenMessage(_Taken):
    """Sent by a client: take the pen, from whoever has it with `force`, or lay it down."""

    type: Literal["pen"]
    action: Literal["take", "release"]
    force: bool = False


ConsoleRequest = Annotated[BreakMessage | PenMessage, Field(discriminator="type")]


class PenNotice(_Given):
    """Sent to a client: who may type now."""

    type: Literal["pen"] = "pen"
    holder: str | None
    mine: bool


class GapNotice(_Given):
    """Sent to a client: bytes that it was too slow for."""

    type: Literal["gap"] = "gap"
    offset: int
    lost: int


class LineNotice(_Given):
    """Sent to a client: what became of the line."""

    type: Literal["line"] = "line"
    state: str
    reason: str


class WordsNotice(_Given):
    """Sent to a client: words for its user, such as why what it typed was discarded."""

    type: Literal["notice"] = "notice"
    text: str


ConsoleNotice = Annotated[PenNotice | GapNotice | LineNotice | WordsNotice, Field(discriminator="type")]


class LogEntry(_Given):
    """An entry of a guest's record: console text, a gap, or an event with the fields of its kind."""

    model_config = ConfigDict(frozen=True, extra="allow")

    time: str | None
    offset: int
    kind: str = Field(
        description="console.text (field `text`: latin-1, a character a byte), console.gap (`reason`, "
        "`lost`: how many bytes, 0 where unknown), or an event's, such as machine.reset"
    )


class Expect(_Taken):
    """A script to run on a guest's console."""

    script: str = Field(max_length=MAX_TEXT, description="Its text (docs/expect.md)")
    name: str = Field(default="", max_length=100, description="What the time line is to call it")
    set: dict[str, str] = Field(default={}, max_length=100, description="Values of its variables")
    secrets: dict[str, str] = Field(
        default={}, max_length=100, description="Values of its secrets, which no transcript shows"
    )
    force: bool = Field(default=False, description="Take the pen from whoever has it")


class ExpectEntry(_Given):
    """A line of a run's transcript; text in it is in quotes, with what acts on a terminal written out."""

    time: datetime
    elapsed: float = Field(description="Seconds since the run began")
    kind: ExpectKind = Field(
        description="start; waits (begins to); saw a pattern; timeout; lost the line; gap: text came too fast; "
        "quiet: nothing came for long enough; sent keys; notice: words of the line; skipped: entries that the "
        "peer read too late; end"
    )
    line: int = Field(description="Of the script")
    step: str = Field(description="The script's name for where it is")
    run: str | None = Field(default=None, description="With start: by which the time line knows it")
    patterns: list[str] | None = Field(default=None, description="With waits: what for")
    seconds: float | None = Field(default=None, description="With waits: for how long at most")
    pattern: str | None = Field(default=None, description="With saw: what it was")
    text: str | None = Field(
        default=None, description="With saw: the end of what came since the last one; notice"
    )
    last: str | None = Field(default=None, description="With timeout: the end of what came")
    keys: str | None = Field(default=None, description="With sent; `***` for a secret")
    waited: float | None = Field(default=None, description="Seconds since this wait began")
    then: str | None = Field(default=None, description="Where the script goes, if not to the next statement")
    lost: int | None = Field(default=None, description="With gap: bytes; with skipped: entries")
    state: Literal["done", "failed", "cancelled"] | None = Field(default=None, description="With end")
    what: str | None = Field(default=None, description="With end: what happened, in words")
    why: str | None = Field(default=None, description="With end and lost")
    todo: str | None = Field(default=None, description="With end: what to do next")


class Boot(_Taken):
    """What a boot is to end in; at most one of single_user, emergency, init and break_at."""

    single_user: bool = Field(default=False, description="A root shell, by the word `single`")
    emergency: bool = Field(default=False, description="A root shell, by the word `emergency`")
    init: str = Field(default="", max_length=256, description="A program to run as init")
    append: str = Field(default="", max_length=2000, description="Words for the kernel's command line")
    break_at: str = Field(
        default="",
        max_length=20,
        description="A stage at which the initramfs is to stop (docs/boot-control.md)",
    )
    entry: str = Field(
        default="",
        max_length=200,
        description="Of the loader's menu: its number from 1, or a piece of its title; `N>M` for a menu in it",
    )
    stop_at: StopAt | None = Field(default=None, description="Where to stop")
    console: str = Field(
        default="",
        max_length=40,
        description="The kernel's name of this serial line, such as ttyS0, for a command line that names none",
    )
    way: Way = Field(
        default=Way.AUTO,
        description="How the command line is changed: by the boot loader, by the debug stub, or by the stub where the "
        "loader cannot be stopped",
    )
    reset: bool = Field(
        default=True, description="Whether the machine is reset; otherwise somebody else restarts it"
    )
    patience: float = Field(default=1.0, ge=0.01, le=100, description="Multiplies all deadlines")
    loader_user: str = Field(
        default="root", max_length=100, description="Whom a protected loader's password is of"
    )
    secrets: dict[str, str] = Field(
        default={},
        max_length=2,
        description="Passwords, which no transcript shows: `loader` its user's, `root` root's",
    )
    ask: bool = Field(
        default=False,
        description="Wait for a password that is wanting, which `boot/secret` gives, instead of ending",
    )
    force: bool = Field(
        default=False, description="Take the pen from whoever has it, and reset a guest that a debugger holds"
    )


class BootSecret(_Taken):
    """The answer to what a boot asks for."""

    run: str = Field(max_length=64, description="Which boot: `run` of its first entry")
    asks: Secret
    secret: str | None = Field(max_length=1000, description="The password; null gives up")


class BootEntry(_Given):
    """A line of a boot's transcript; text of the console is in quotes, with what acts on a terminal written out."""

    time: datetime
    elapsed: float = Field(description="Seconds since the run began")
    kind: BootKind = Field(
        description="start; reset: the machine starts anew; state: another was seen; sent keys; note: words; asks: a "
        "password is wanted now; gap: text came too fast; skipped: entries that the peer read too late; end"
    )
    state: str = Field(description="Where the guest was last seen (docs/boot.md)")
    program: str = Field(description="Who showed that, such as GRUB; empty where that is not known")
    run: str | None = Field(default=None, description="With start: by which the time line knows it")
    by_stub: bool | None = Field(
        default=None, description="With reset: whether the debug stub changes the command line"
    )
    evidence: str | None = Field(default=None, description="With state: the line or prompt that shows it")
    lasted: float | None = Field(
        default=None, description="With state: seconds that the one before it lasted"
    )
    keys: str | None = Field(default=None, description="With sent; `***` for a secret")
    text: str | None = Field(default=None, description="With note")
    lost: int | None = Field(default=None, description="With gap: bytes; with skipped: entries")
    end: Literal["done", "failed", "cancelled"] | None = Field(default=None, description="With end")
    what: str | None = Field(default=None, description="With end: what happened, in words")
    why: str | None = Field(default=None, description="With end")
    todo: str | None = Field(default=None, description="With end: what to do next")
    reason: Literal["other", "loader", "asked"] | None = Field(
        default=None, description="With end: loader: it cannot be stopped; asked: a password is wanting"
    )
    asks: str | None = Field(
        default=None, description="With asks and end: the secret that is wanting; empty for none"
    )
    user: str | None = Field(default=None, description="With asks: whose password it is")
    seconds: float | None = Field(default=None, description="With asks: how long it is waited for")


class _TraceSelection(_Taken):
    """Which packets."""

    session: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Of this session only; `stub`: what the relay says to the stub",
    )
    since: AwareDatetime | None = Field(default=None, description="Nothing older than this")
    last: int | None = Field(
        default=None, ge=0, le=MAX_LINES, description="At most so many of the last that there are"
    )
    raw: bool = Field(
        default=False, description="The bytes as they passed, acknowledgements too; nothing is decoded"
    )


class TraceQuery(_TraceSelection):
    """Which part of the record of a guest's packets, and how."""

    format: Literal["json", "text"] = Field(
        default="json", description="json: an object a line; text: for people"
    )
    follow: bool = Field(default=False, description="Go on with what comes")


class FollowTraceQuery(_TraceSelection):
    """From where on to follow a guest's packets; without since and last, from now on."""


class TraceLine(_Given):
    """A packet that passed between a debugger, the relay and the stub, in words."""

    time: datetime
    offset: int = Field(description="Where it is in the record")
    session: str | None = Field(
        description="The debugger's session; `stub`: the relay's own connection; null for words about the record"
    )
    sender: Literal["debugger", "stub"] | None = Field(alias="from")
    kind: str = Field(
        description="packet, notification, interrupt, nack, damaged, overlong, noise, cut (only its beginning was "
        "recorded), bytes (not decoded), or record (words about the record itself)"
    )
    packet: str = Field(description="Without its frame; latin-1, a character a byte; at most 4096 of them")
    length: int = Field(description="How long the packet is")
    words: str = Field(description="What it means")


class ProblemDocument(_Given):
    """What went wrong (RFC 9457)."""

    type: str = Field(description="urn:kbridge:problem:NAME")
    title: str
    status: int
    detail: str
    hint: str | None = Field(default=None, description="What to do about it; left out where nothing is known")
