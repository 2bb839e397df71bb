"""The values that readers of symbols speak in.

An address is as linked unless its name says otherwise; whoever shows it adds the slide.  Per-CPU and absolute
symbols never slide.  Named tuples, which a command that answers once has ready in a fifth of the time of dataclasses.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, NewType

BuildId = NewType("BuildId", str)
"""A build-id, lower-case hexadecimal: the bytes of the note with owner ``GNU`` and type 3, as linkers write it."""


class Section(NamedTuple):
    """A section of an ELF file (System V ABI, chapter 4); ``offset`` and ``size`` in bytes of the file."""

    name: str
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class ModuleSection(NamedTuple):
    """Where a section of a loaded module is."""

    name: str
    address: int


class ModuleState(Enum):
    """``enum module_state`` of include/linux/module.h."""

    LIVE = 0
    COMING = 1
    """Its initialisation has not ended."""
    GOING = 2
    UNFORMED = 3
    """It is being read in."""


class Module(NamedTuple):
    """A module in guest memory."""

    name: str
    address: int
    """Of its ``struct module``."""
    base: int
    """Where its code begins."""
    size: int
    """Of what is in memory at ``base``."""
    sections: tuple[ModuleSection, ...]
    build_id: BuildId | None
    """Where the kernel keeps it (CONFIG_STACKTRACE_BUILD_ID)."""
    unwind: tuple[int, int, int] | None
    """Of its unwind tables: how many entries, where they are, where their places are; None where there are none."""
    state: ModuleState
    taints: int
    """Why the kernel is tainted by it, bits as in kernel/panic.c (``taint_flags``): 12 out of tree, 13 not signed."""
    symbols: int
    """Of its ``struct mod_kallsyms``, 0 where there is none."""
