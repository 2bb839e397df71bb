"""What a boot is to end in, and the kernel command line that makes it so.

Pure.  ``Wishes.change`` turns the command line that a loader, a file or a guest's memory has into the wanted one, and
says which words came and went.  Words that are kept keep their order and their quotes; new ones go to the end, where
the kernel and its inits take the last of each kind, but before a ``--``, behind which all belongs to init.

Which words, and why these:

--single-user   ``single``: systemd, sysvinit, OpenRC and BusyBox know it; ``systemd.unit=`` is systemd's alone.
--emergency     ``emergency``: systemd and sysvinit.
both            and ``systemd.setenv=SYSTEMD_SULOGIN_FORCE=1``: a root without a password gets a shell.  sulogin still
                asks for a password that there is.
--init          ``init=``; an initramfs obeys it too.
--break         ``break=`` is initramfs-tools', ``rd.break=`` dracut's; each ignores the other's.

A shell that nobody sees is none: the last ``console=`` is where it speaks, so a serial one is made the last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from kbridge.errors import KbridgeError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_COMMAND_LINE: Final = 2047
"""What x86 and arm64 kernels take; what is longer they cut off."""

SULOGIN_FORCE: Final = "systemd.setenv=SYSTEMD_SULOGIN_FORCE=1"
_QUIETING: Final = frozenset({"quiet", "splash", "rhgb"})
"""They hide what a boot shows; a splash takes the prompt off the serial line too."""
_TARGETS: Final = frozenset({"single", "emergency", "rescue", "s", "S", "1", "2", "3", "4", "5", "-b", "-s"})
"""Words that systemd and sysvinit take for a runlevel."""

STAGES: Final = {
    "top": ("top", "cmdline"),
    "modules": ("modules", "pre-udev"),
    "premount": ("premount", "pre-mount"),
    "mount": ("mount", "pre-mount"),
    "mountroot": ("mountroot", "pre-mount"),
    "bottom": ("bottom", "mount"),
    "init": ("init", "pre-pivot"),
    "cmdline": ("top", "cmdline"),
    "pre-udev": ("modules", "pre-udev"),
    "pre-trigger": ("modules", "pre-trigger"),
    "initqueue": ("premount", "initqueue"),
    "pre-mount": ("premount", "pre-mount"),
    "pre-pivot": ("init", "pre-pivot"),
    "cleanup": ("init", "cleanup"),
}
"""Where an initramfs can stop: initramfs-tools' names and dracut's, each with what the other calls the nearest."""

_WORD: Final = re.compile(r'(?:[^\s"]|"[^"]*(?:"|\Z))+')
_TYPED: Final = re.compile(r"[\x20-\x7e]*")
_SCREEN_CONSOLE: Final = re.compile(r"console=(?:tty\d*|null|)(?:,.*)?$")


class StopAt(StrEnum):
    """Where a boot is to stop."""

    FIRMWARE = "firmware"
    LOADER = "loader"
    KERNEL = "kernel"
    INITRAMFS = "initramfs"


class Way(StrEnum):
    """How the command line is changed."""

    AUTO = "auto"
    """By the loader; where that cannot be stopped, by the debug stub."""
    LOADER = "loader"
    STUB = "stub"


class Goal(StrEnum):
    """What counts as done."""

    FIRMWARE = "firmware"
    """The firmware waits: its set-up or its command line."""
    LOADER = "loader"
    """The loader waits: its menu or its command line."""
    KERNEL = "kernel"
    """The kernel has begun."""
    INITRAMFS = "initramfs"
    """A shell of the initramfs answers."""
    SHELL = "shell"
    """A shell of root's answers."""
    UP = "up"
    """Somebody may log in, or a shell is there."""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A changed command line."""

    text: str
    added: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What somebody wants of a boot; raises ``KbridgeError`` for what cannot be."""

    single_user: bool = False
    emergency: bool = False
    init: str = ""
    """A program to run as init."""
    append: str = ""
    """Words for the command line, as they are."""
    break_at: str = ""
    """A stage of ``STAGES`` in the initramfs."""
    entry: str = ""
    """Which entry of the loader's menu: its number, from 1, or a piece of its title; empty: the loader's own choice."""
    stop_at: StopAt | None = None
    console: str = ""
    """The kernel's name of this serial line, ``ttyS0``: for a command line that names none; empty: not known."""

    def __post_init__(self) -> None:
        given = {
            "--single-user": self.single_user,
            "--emergency": self.emergency,
            "--init": bool(self.init),
            "--break": bool(self.break_at),
        }
        several = [name for name, one in given.items() if one]
        if len(several) > 1:
            raise KbridgeError(
                f"{' and '.join(several)} exclude each other",
                why="a boot ends in one place",
                todo="give one of them",
            )
        if self.break_at and self.break_at not in STAGES:
            raise KbridgeError(
                f"an initramfs has no stage {self.break_at!r}", todo=f"stages are {', '.join(STAGES)}"
            )
        if self.init and (not self.init.startswith("/") or re.search(r'[\s"]', self.init)):
            raise KbridgeError(
                f"init cannot be {self.init!r}",
                why="the kernel takes one path and no arguments",
                todo="what follows ` -- ` in --append is given to it",
            )
        for text in (self.init, self.append, self.entry, self.console):
            if _TYPED.fullmatch(text) is None:
                raise KbridgeError(
                    f"{text!r} cannot be typed at a boot loader", why="it has characters that are not ASCII"
                )
        if self.stop_at in (StopAt.FIRMWARE, StopAt.LOADER) and (several or self.append):
            raise KbridgeError(
                f"--stop-at {self.stop_at} excludes {(*several, '--append')[0]}",
                why="no kernel is started there whose command line could be changed",
            )
        if self.stop_at is StopAt.INITRAMFS and several and not self.break_at:
            raise KbridgeError(
                f"--stop-at initramfs excludes {several[0]}", why="it stops before init is started"
            )

    @property
    def edits(self) -> bool:
        """Whether the command line is to be changed."""
        return bool(self._words() or self.append.strip())

    @property
    def goal(self) -> Goal:
        """What counts as done."""
        match self.stop_at:
            case StopAt.FIRMWARE:
                return Goal.FIRMWARE
            case StopAt.LOADER:
                return Goal.LOADER
            case StopAt.KERNEL:
                return Goal.KERNEL
            case StopAt.INITRAMFS:
                return Goal.INITRAMFS
            case None if self.break_at:
                return Goal.INITRAMFS
            case None if self.single_user or self.emergency or self.init:
                return Goal.SHELL
            case None:
                return Goal.UP

    @property
    def wants_shell(self) -> bool:
        """Whether it is to end in a shell that nobody logs in to."""
        return self.goal in (Goal.SHELL, Goal.INITRAMFS)

    def change(self, old: str, *, quote: Callable[[str], str] = str) -> CommandLine:
        """Return ``old`` changed as is wished; raises ``KbridgeError`` where it becomes too long for a kernel.

        What is there already is not added again; so a line that was changed once stays as it is.  ``quote`` writes a
        new word in the language in which ``old`` is written, a boot loader's.
        """
        if not self.edits:
            return CommandLine(old, (), ())
        own, for_init = _split(old)
        wanted = [quote(word) for word in self._words()]
        kept = [word for word in own if word in wanted or not self._drops(word)]
        new = [word for word in wanted if word not in kept]
        if self.wants_shell:
            new += self._console([word for word in kept if word.startswith("console=")])
        appended, appended_for_init = ([quote(word) for word in part] for part in _split(self.append))
        if [*kept, *new][-len(appended) :] != appended:
            new += appended
        more = [] if for_init[-len(appended_for_init) :] == appended_for_init else appended_for_init
        ends = ["--", *for_init, *more] if for_init or more else []
        text = " ".join([*kept, *new, *ends])
        if len(text) > MAX_COMMAND_LINE:
            raise KbridgeError(
                f"the command line would have {len(text)} characters",
                why=f"a kernel takes {MAX_COMMAND_LINE} and drops the rest",
                todo="append less",
            )
        return CommandLine(text, (*new, *more), tuple(word for word in own if word not in kept))

    def new_command_line(self, old: str) -> str:
        """Return ``old`` changed as is wished."""
        return self.change(old).text

    def _words(self) -> tuple[str, ...]:
        """Return the words that must be on the command line, but for those of ``append``."""
        if self.single_user:
            return ("single", SULOGIN_FORCE)
        if self.emergency:
            return ("emergency", SULOGIN_FORCE)
        if self.init:
            return (f"init={self.init}",)
        if self.goal is Goal.INITRAMFS:
            tools, dracut = STAGES[self.break_at or "premount"]
            return (f"break={tools}", f"rd.break={dracut}", SULOGIN_FORCE)
        return ()

    def _console(self, there: list[str]) -> list[str]:
        """Return what makes the last ``console=`` a serial one; the kernel takes one that is named again."""
        serial = [word for word in there if _SCREEN_CONSOLE.match(word) is None]
        if not serial:
            return [f"console={self.console}"] if self.console else []
        return [] if there[-1] == serial[-1] else [serial[-1]]

    def _drops(self, word: str) -> bool:
        """Whether a word of the old line is in the way."""
        if self.wants_shell and word in _QUIETING:
            return True
        if self.single_user or self.emergency:
            return word in _TARGETS or word.startswith("systemd.unit=")
        if self.init:
            return word.startswith("init=")
        if self.goal is Goal.INITRAMFS:
            return word.startswith(("break=", "rd.break=")) or word in ("break", "rd.break")
        return False


def _split(text: str) -> tuple[list[str], list[str]]:
    """Return the kernel's words and, without the ``--`` before them, init's."""
    # A quote that is left open would take in what is added.
    words = [word + '"' * (word.count('"') % 2) for word in _WORD.findall(text)]
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def words_of(change: CommandLine) -> str:
    """Return what is changed, in words."""
    parts = []
    if change.added:
        parts.append(f"adds {' '.join(change.added)}")
    if change.removed:
        parts.append(f"removes {' '.join(change.removed)}")
    return ", ".join(parts) or "the command line is as wished already"
