"""What is known of one crash: values only, gathered by ``capture``, told by ``report``.

Addresses are as they were in memory; times are nanoseconds since 1970, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class How(Enum):
    """By what a crash was noticed."""

    CONSOLE = "console"
    MACHINE = "machine"
    """By the machine monitor."""
    SILENCE = "silence"
    HAND = "hand"
    """Somebody asked for it."""


@dataclass(frozen=True, slots=True)
class Noticed:
    """A crash at the moment when it was noticed."""

    how: How
    kind: str
    title: str
    words: str
    """What happened, a sentence without its full stop."""
    wall_ns: int
    fatal: bool = True
    """The guest does not go on by itself."""
    alternatives: tuple[str, ...] = ()
    function: str | None = None
    corrupted: str = ""
    """Why the text cannot be trusted; empty where it can."""
    begin: int = 0
    """Where the report begins on the console, and where it ends; equal where there is none."""
    end: int = 0
    in_debugger: bool = False
    """Its kernel waits in its own debugger."""
    hands_off: str = ""
    """Why the guest is not to be touched; empty where it may be."""


class PartState(Enum):
    """How far a part of a bundle is."""

    PENDING = "pending"
    DONE = "done"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a bundle; ``why`` it is missing, or is not whole."""

    state: PartState = PartState.PENDING
    why: str = ""
    file: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A function at a source line; one that was inlined comes before the one that it was inlined in."""

    function: str | None
    file: str | None
    line: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """An address in code and what is there."""

    address: int
    trust: str = "exact"
    """``exact``, ``return`` or ``guess``, as ``symbols.unwinding.Trust`` says."""
    name: str | None = None
    offset: int = 0
    size: int = 0
    """The distance to the next symbol."""
    module: str | None = None
    calls: tuple[Call, ...] = ()

    @property
    def text(self) -> str:
        """As the kernel prints it."""
        if self.name is None:
            return f"{self.address:#018x}"
        module = f" [{self.module}]" if self.module else ""
        return f"{self.name}+{self.offset:#x}/{self.size:#x}{module}"


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction in memory; ``offset`` in bytes from the program counter."""

    offset: int
    data: bytes
    text: str


@dataclass(frozen=True, slots=True)
class Processor:
    """A virtual processor."""

    number: int
    registers: Mapping[str, int]
    frames: tuple[Place, ...] = ()
    problem: str = ""
    """Why its backtrace ends too early."""
    is_user: bool = False
    code: tuple[Instruction, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module that was loaded."""

    name: str
    base: int
    size: int
    build_id: str | None
    taints: int


@dataclass(frozen=True, slots=True)
class TaskStack:
    """A task, and its calls where it slept."""

    pid: int
    process: int
    name: str
    state: str
    """In a word, as ``sleeping``."""
    cpu: int | None
    runs: bool
    kernel: bool
    frames: tuple[Place, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """The kernel that ran."""

    build_id: str | None = None
    slide: int | None = None
    file: str | None = None
    way: str = ""
    """How it was found in memory."""
    banner: str = ""
    release: str = ""
    command_line: str = ""
    seconds: float | None = None
    """Since it began, by its own clock."""


@dataclass(slots=True)
class Facts:
    """All that is known of one crash; ``capture`` fills it in."""

    id: str
    guest: str
    noticed: Noticed
    machine: str = ""
    """The machine's state when the crash was noticed."""
    controlled_by: str | None = None
    paused: bool = False
    """It stands because it was paused for this, and has not been let go yet."""
    read_bytes: int | None = None
    """How much memory was read by the kernel's own stub; None where it was not."""
    kernel: KernelFacts = field(default_factory=KernelFacts)
    debug_dirs: tuple[str, ...] = ()
    """Where files with symbols of this guest were looked for."""
    processors: tuple[Processor, ...] = ()
    guilty: int | None = None
    """The number of the processor that crashed."""
    where: Place | None = None
    """Where it crashed, as the console told; its address is 0."""
    explained: tuple[str, ...] = ()
    """The report's lines on the console, with source lines and instructions put in."""
    last_lines: tuple[str, ...] = ()
    modules: tuple[LoadedModule, ...] = ()
    tasks: int | None = None
    """How many tasks there were."""
    also: tuple[str, ...] = ()
    """Titles of crashes that followed before the evidence was taken."""
    parts: dict[str, Part] = field(default_factory=dict)
    image: Mapping[str, object] | None = None
    """What is to be known of the memory image."""
    policy: str = ""
    """What was configured to become of the guest."""
    outcome: str = ""
    """What became of it, in words."""
    count: int = 1
    """How often a crash of this title was noticed on this guest, this one included."""
    first_ns: int = 0
    interrupted: str = ""
    """Why the capture did not end by itself."""

    @property
    def state(self) -> str:
        """``pending``, ``complete`` or ``incomplete``."""
        if self.interrupted:
            return "incomplete"
        states = {one.state for one in self.parts.values()}
        if PartState.PENDING in states:
            return "pending"
        return "incomplete" if PartState.MISSING in states else "complete"
