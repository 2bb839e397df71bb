"""Which state a booting guest is in, recognised from its console: bytes in, changes with their evidence out.

Pure: no I/O, no clock.  A ``Recogniser`` writes what comes to a ``Screen`` and looks, by a table of ``Rule``, at
each line when the cursor leaves it and at each prompt when it is whole.  It says ``UNKNOWN`` where it does not
know; what it says depends on the bytes alone, not on how they were cut into pieces.

The places where text does not mean what it says:

- A command that somebody types may print anything (``dmesg`` prints a whole boot).  From the moment that something
  other than a kernel's or systemd's own line follows a prompt until the next prompt only the rules that name the state
  in ``over`` are believed; a shell that shows another state's text meanwhile is ``UNKNOWN``.
- Boot loaders draw the same words again and again; a rule is asked only in the states of its ``within``.
- A menu's words are a menu's only on the screen that has its loader's title: ``needs``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from kbridge.boot.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_EVIDENCE: Final = 400
"""Characters of a line that are kept as evidence."""


class State(StrEnum):
    """Where a boot is."""

    UNKNOWN = "unknown"
    OFF = "off"
    FIRMWARE = "firmware"
    LOADER = "loader"
    """A boot loader works, or hands over to a kernel."""
    COUNTDOWN = "countdown"
    """It will go on by itself unless a key comes."""
    MENU = "menu"
    EDITOR = "editor"
    """A menu's entry is open to be changed."""
    COMMAND = "command"
    """A boot loader's or the firmware's own command line."""
    KERNEL = "kernel"
    INITRAMFS = "initramfs"
    SYSTEMD = "systemd"
    """The system's own init, systemd or another."""
    LOGIN = "login"
    """Somebody is asked for a name or password."""
    SHELL = "shell"
    KDB = "kdb"
    """The kernel's debugger has stopped the guest."""
    PANIC = "panic"
    FAILED = "failed"
    """The firmware or a boot loader gave up."""


@dataclass(frozen=True, slots=True)
class Change:
    """A state was entered."""

    state: State
    program: str
    """Who showed it, such as ``GRUB`` or ``SeaBIOS``; empty where that is not known."""
    offset: int
    """Where the evidence begins."""
    end: int
    """How many bytes had to come until it was sure."""
    evidence: str
    """The line or prompt that shows it."""


_ANY: Final = frozenset(State)
_GRUB_SCREEN: Final = frozenset({State.MENU, State.COUNTDOWN, State.EDITOR})
_BEFORE_KERNEL: Final = frozenset(
    {
        State.UNKNOWN,
        State.OFF,
        State.FIRMWARE,
        State.LOADER,
        State.COUNTDOWN,
        State.MENU,
        State.EDITOR,
        State.COMMAND,
        State.FAILED,
    }
)
_UP: Final = frozenset({State.SHELL, State.LOGIN})
_COMMANDS: Final = frozenset({State.COMMAND})
_TYPED_AT: Final = frozenset({State.SHELL, State.LOGIN, State.COMMAND})


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table."""

    state: State
    program: str
    """What becomes ``Change.program``; empty: the group ``program`` of the pattern."""
    pattern: re.Pattern[str]
    """Matches at a line's beginning, behind a kernel's time stamp and blanks; a prompt must match as a whole."""
    within: frozenset[State] = _ANY
    """In which states it is asked."""
    over: frozenset[State] = frozenset()
    """In which states it is believed though a command may have printed it."""
    blanks: bool = False
    """Whether the blanks at a line's end are looked at."""
    needs: str = ""
    """What must stand on the screen, or the program that must have been seen, where it ends in no blank."""


def _rule(
    state: State,
    program: str,
    pattern: str,
    *,
    within: frozenset[State] = _ANY,
    over: frozenset[State] = frozenset(),
    blanks: bool = False,
    needs: str = "",
) -> Rule:
    return Rule(state, program, re.compile(pattern), within, over, blanks, needs)


_GRUB_TITLE: Final = "GNU GRUB  version "

LINES: Final = (
    _rule(State.FIRMWARE, "SeaBIOS", r"SeaBIOS \(version ", over=_UP),
    _rule(
        State.FIRMWARE,
        "SeaBIOS",
        r"Booting from (?:Hard Disk|DVD/CD|Floppy|ROM)\.\.\.",
        within=_BEFORE_KERNEL,
    ),
    _rule(State.FIRMWARE, "iPXE", r"iPXE (?:\(http|\d+\.\d+\.\d+|initialising devices)", over=_UP),
    _rule(State.FAILED, "UEFI", r"BdsDxe: No bootable option or device was found"),
    _rule(
        State.FIRMWARE,
        "UEFI",
        r"BdsDxe: (?:loading|starting|failed to (?:load|start)) Boot[0-9A-F]{4} ",
        over=_UP,
    ),
    _rule(State.FIRMWARE, "UEFI", r"UEFI firmware \(version ", over=_UP),
    _rule(State.FIRMWARE, "UEFI", r">>Start (?:PXE|HTTP Boot) over IPv[46]", within=_BEFORE_KERNEL),
    _rule(State.FAILED, "SeaBIOS", r"No bootable device\.", within=_BEFORE_KERNEL),
    _rule(State.LOADER, "GRUB", r"GRUB loading\.?|Welcome to GRUB!", over=_UP),
    _rule(State.LOADER, "GRUB", re.escape(_GRUB_TITLE) + r"\d", within=_ANY - _GRUB_SCREEN, over=_TYPED_AT),
    _rule(State.LOADER, "GRUB", r"Booting a command list|Booting `.*'", over=_COMMANDS),
    _rule(
        State.LOADER,
        "GRUB",
        r"Loading (?:Linux|initial ramdisk) .*\.\.\.",
        within=_BEFORE_KERNEL,
        over=_COMMANDS,
    ),
    _rule(State.FAILED, "GRUB", r"Failed to boot both default and fallback entries", over=_COMMANDS),
    _rule(State.LOADER, "Linux's EFI stub", r"EFI stub: \S", over=_TYPED_AT),
    _rule(
        State.LOADER,
        "U-Boot",
        r"U-Boot (?:SPL )?\d{4}\.\d\d\S* \(",
        within=_ANY - {State.COUNTDOWN, State.COMMAND},
        over=_UP,
    ),
    _rule(State.LOADER, "U-Boot", r"Starting kernel \.\.\.", within=_BEFORE_KERNEL, over=_COMMANDS),
    _rule(State.LOADER, "", r"(?P<program>ISOLINUX|SYSLINUX|PXELINUX|EXTLINUX) \d+\.\d+"),
    _rule(
        State.COUNTDOWN,
        "GRUB",
        r"The highlighted entry will be executed automatically in \d+s\.",
        needs=_GRUB_TITLE,
    ),
    # With timeout_style=countdown this is all there is; the blanks remove the digits before.
    _rule(
        State.COUNTDOWN, "GRUB", r"\d{1,4} {4}$", within=frozenset({State.LOADER}), blanks=True, needs="GRUB"
    ),
    _rule(State.COUNTDOWN, "systemd-boot", r"Boot in \d+ s(?:ec)?\.$", within=_BEFORE_KERNEL),
    _rule(
        State.COUNTDOWN,
        "EFI shell",
        r"Press ESC in \d+ seconds? to skip startup\.nsh or any other key to continue",
    ),
    _rule(State.COUNTDOWN, "ISOLINUX", r"Automatic boot in \d+ seconds?", within=_BEFORE_KERNEL),
    _rule(
        State.MENU,
        "GRUB",
        r"Press enter to boot the selected OS",
        within=_ANY - {State.COUNTDOWN},
        needs=_GRUB_TITLE,
    ),
    _rule(
        State.MENU,
        "systemd-boot",
        r"(?:=> )?Reboot Into Firmware Interface$",
        within=_BEFORE_KERNEL - {State.COUNTDOWN},
    ),
    _rule(State.EDITOR, "GRUB", r"Minimum Emacs-like screen editing is supported", needs=_GRUB_TITLE),
    _rule(
        State.FIRMWARE,
        "EFI shell",
        r"UEFI Interactive Shell v\d",
        within=_ANY - {State.COUNTDOWN, State.COMMAND},
    ),
    _rule(State.FIRMWARE, "U-Boot", r"resetting \.\.\.$", within=_COMMANDS, over=_COMMANDS, needs="U-Boot"),
    _rule(State.KERNEL, "Linux", r"Linux version \d+\.\d+\S* \(", over=_COMMANDS),
    _rule(State.KERNEL, "Linux", r"Booting Linux on physical CPU 0x[0-9a-f]+", over=_COMMANDS),
    _rule(
        State.KERNEL,
        "Linux",
        r"(?:early console in|Decompressing Linux\.\.\.)",
        within=_BEFORE_KERNEL,
        over=_COMMANDS,
    ),
    _rule(State.INITRAMFS, "", r"Run (?P<program>/init) as init process"),
    _rule(State.INITRAMFS, "initramfs-tools", r"Loading, please wait\.\.\.$"),
    _rule(State.INITRAMFS, "initramfs-tools", r"Begin: (?:Loading|Running|Mounting) "),
    _rule(State.INITRAMFS, "dracut", r"dracut(?:-[\w-]+)?(?:\[\d+\])?: \S", within=_ANY - {State.SYSTEMD}),
    _rule(
        State.INITRAMFS,
        "systemd",
        r"(?:systemd\[1\]: )?Running in init(?:rd|ial RAM disk|ramfs)(?: with .*)?\.$",
    ),
    _rule(State.INITRAMFS, "systemd", r"Welcome to .*(?:dracut|[Ii]nitramfs|[Ii]nitrd).*!$"),
    _rule(State.SYSTEMD, "systemd", r"Welcome to (?!GRUB)\S.*!$"),
    _rule(
        State.SYSTEMD,
        "systemd",
        r"systemd\[1\]: Queued start job for default target (?!initrd)\S",
        within=_ANY - _UP,
    ),
    _rule(
        State.SYSTEMD,
        "systemd",
        r"\[  OK  \] Reached target (?:multi-user\.target|graphical\.target|getty\.target|Multi-User System|Graphical"
        r" Interface|Login Prompts)",
        within=_ANY - _UP,
    ),
    _rule(State.SYSTEMD, "sysvinit", r"INIT: version \d\S* booting"),
    _rule(State.SYSTEMD, "OpenRC", r"OpenRC \d\S* is starting up"),
    _rule(
        State.SYSTEMD,
        "",
        r"Run (?P<program>/sbin/init|/etc/init|/bin/init|(?:/usr)?/lib/systemd/systemd) as init process",
    ),
    _rule(State.KDB, "kdb", r"Entering kdb \(current=", over=_UP),
    _rule(State.KDB, "kgdb", r"(?:KGDB: Waiting for connection from remote gdb|Entering KGDB)", over=_UP),
    _rule(State.PANIC, "Linux", r"---\[ end Kernel panic - not syncing", over=_UP),
    _rule(State.PANIC, "Linux", r"Kernel panic - not syncing: "),
    _rule(
        State.FIRMWARE, "", r"reboot: Restarting system|sysrq: Resetting|reboot: machine restart", over=_UP
    ),
    _rule(State.OFF, "", r"reboot: (?:Power down|System halted)", over=_UP),
)
"""What whole lines show; the first that matches counts."""

PROMPTS: Final = (
    _rule(State.COUNTDOWN, "U-Boot", r"Hit any key to stop autoboot: ", needs="U-Boot"),
    _rule(State.COMMAND, "U-Boot", r"(?:=>|U-Boot>) ", needs="U-Boot"),
    # Where GRUB draws on its own serial terminal and on UEFI's console, which is the same line, all comes twice.
    _rule(State.COMMAND, "GRUB", r"(?:grub>)?grub> "),
    _rule(State.COMMAND, "GRUB rescue", r"grub rescue> "),
    _rule(State.COMMAND, "EFI shell", r"(?:Shell|[Ff][Ss]\d+:\S*)> ", within=_BEFORE_KERNEL),
    _rule(State.COMMAND, "ISOLINUX", r"boot: ", needs="ISOLINUX"),
    _rule(State.LOGIN, "GRUB", r"Enter username: ", within=_BEFORE_KERNEL, needs="GRUB"),
    _rule(State.KDB, "kdb", r"(?:\[\d+\])?kdb> "),
    _rule(State.LOGIN, "getty", r"[\w.-]{1,64} login: "),
    _rule(State.LOGIN, "sulogin", r"\(or press Control-D to continue\): "),
    _rule(State.LOGIN, "sulogin", r"Give root password for (?:maintenance|login): "),
    _rule(State.SHELL, "initramfs-tools", r"\(initramfs\) "),
    _rule(
        State.SHELL,
        "dracut",
        r"(?:dracut|switch_root|cmdline|pre-\w+|initqueue|mount|emergency|shutdown-emergency):[^ ]{0,80}# ",
    ),
    _rule(State.SHELL, "", r"[\w.-]{0,32}@[\w.-]{1,64}:[^ ]{1,200}[#$] ", within=_ANY - _COMMANDS),
    _rule(State.SHELL, "", r"\[[\w.-]{1,32}@[\w.-]{1,64} [^ ]{1,200}\][#$] ", within=_ANY - _COMMANDS),
    _rule(State.SHELL, "", r"(?:ba|da|a|z|k|)sh-\d+\.\d+\S{0,4}[#$] "),
    _rule(State.SHELL, "", r"(?:~|/[\w./-]{0,200}) [#$] ", within=_ANY - _COMMANDS),
    _rule(State.SHELL, "", r"[#$] ", within=_ANY - _COMMANDS, needs="a shell as init"),
)
"""What rows up to the cursor show: whole, and only where they end in a sign and a blank."""


@dataclass(frozen=True, slots=True)
class _Counts:
    """How a menu counts down."""

    words: str
    needs: str


_COUNTS: Final[Mapping[str, _Counts]] = {
    "GRUB": _Counts("will be executed automatically in", _GRUB_TITLE),
    "systemd-boot": _Counts("Boot in ", "systemd-boot"),
}

STAMP: Final = re.compile(r"\[ {0,4}(\d{1,7}\.\d{6})\](?:\[ *[TC]\d+\])? ")
"""A kernel's time stamp, in seconds since it started."""
_STATUS: Final = re.compile(
    r" *\[ *(?:OK|FAILED|DEPEND|TIME|WARN|INFO|\*{1,3}) *\] | {9}(?:Start|Stopp|Unmount|Mount)ing "
)
"""What systemd says of its units, at a login prompt or a shell too."""
_SHELL_AS_INIT: Final = re.compile(r"Run /(?:usr/)?(?:bin|sbin)/(?:ba|da|a|)sh as init process")


class Recogniser:
    """Follows one console.  ``state`` is where the guest was last seen; it begins ``UNKNOWN``."""

    def __init__(self, on_line: Callable[[str, str, int, bool], None] | None = None) -> None:
        """Begin at offset 0.

        ``on_line`` is called with each line, what follows its time stamp, its offset, and whether it is to be
        believed: whether no command may have printed it.
        """
        self._on_line = on_line
        self._changes: list[Change] = []
        self._begin()

    def _begin(self) -> None:
        self.state = State.UNKNOWN
        self.program = ""
        self.screen = Screen(self)
        self._typed_at: State | None = None
        """The state in which text was typed that may print anything, until the next prompt."""
        self._prompt = ""
        self._seen: set[str] = set()
        self._base = 0

    def feed(self, data: bytes) -> list[Change]:
        """Take console bytes; return the states that were entered, in order."""
        self.screen.feed(data)
        changes, self._changes = self._changes, []
        return changes

    def reset(self, offset: int | None = None) -> None:
        """Begin anew, as the machine did; what comes next is at ``offset`` if given."""
        at = self.offset if offset is None else offset
        self._begin()
        self._base = at

    @property
    def offset(self) -> int:
        """Where the next byte is."""
        return self._base + self.screen.offset

    # ── what the screen tells ───────────────────────────────────────────────────────────────────────────────

    def line(self, text: str, start: int, end: int) -> None:
        """Look at a line that the cursor left."""
        whole = text
        text = text.rstrip()
        if not text:
            self._blank(start, end)
            return
        stamp = STAMP.search(text)
        body = text[stamp.end() :] if stamp is not None else text.lstrip()
        typed_in = self.state if self.state in _TYPED_AT else None
        behind = whole[len(self._prompt) :].strip() if typed_in and whole.startswith(self._prompt) else ""
        if behind and STAMP.match(behind) is None:
            # What somebody typed; no rule is asked.
            self._typed_at = self._typed_at or typed_in
        elif not self._by_rule(text, whole if stamp is None else body, start, end) and (
            typed_in and stamp is None and text != self._prompt.rstrip() and _STATUS.match(text) is None
        ):
            # What a command printed; or, where the kernel wrote between it and the prompt, what was typed.
            self._typed_at = self._typed_at or typed_in
        if _SHELL_AS_INIT.match(body):
            self._seen.add("a shell as init")
        if self._on_line is not None:
            self._on_line(text, body, self._base + start, self._typed_at is None)

    def _by_rule(self, text: str, body: str, start: int, end: int) -> bool:
        """Look for the first rule that a line obeys, and return whether there is one."""
        stripped = body.strip()
        for rule in LINES:
            found = rule.pattern.match(body if rule.blanks else stripped)
            if found is not None and self.state in rule.within and self._has(rule.needs):
                self._enter(rule, found, text, start, end)
                return True
        return False

    def prompt(self, text: str, start: int, end: int) -> None:
        """Look at what may be a prompt."""
        for rule in PROMPTS:
            found = rule.pattern.fullmatch(text)
            if found is not None and self.state in rule.within and self._has(rule.needs):
                self._typed_at = None
                self._prompt = text
                self._change(rule.state, _program(rule, found), text, start, end)
                return

    def _blank(self, start: int, end: int) -> None:
        """A row was made blank: a menu's countdown that is nowhere any more was stopped."""
        counts = _COUNTS.get(self.program)
        if self.state is not State.COUNTDOWN or counts is None or not self._has(counts.needs):
            return
        if not any(counts.words in row for row in self.screen.display()):
            self._change(State.MENU, self.program, "(the countdown is gone)", start, end)

    def _has(self, needs: str) -> bool:
        if not needs or needs in self._seen:
            return True
        return needs.endswith(" ") and any(needs in row for row in self.screen.display())

    def _enter(self, rule: Rule, found: re.Match[str], text: str, start: int, end: int) -> None:
        if self._typed_at is not None and self._typed_at not in rule.over:
            # A panic's first line may be an old log's too; the last lines of it are not printed by hand.
            if self._typed_at in _UP and rule.state is not State.PANIC:
                self._change(State.UNKNOWN, "", text, start, end)
            return
        self._typed_at = None
        self._change(rule.state, _program(rule, found), text, start, end)

    def _change(self, state: State, program: str, text: str, start: int, end: int) -> None:
        self._seen.add(program)
        if state is self.state and program in ("", self.program):
            return
        self.state = state
        self.program = program
        base = self._base
        self._changes.append(Change(state, program, base + start, base + end, text[:MAX_EVIDENCE].strip()))


def _program(rule: Rule, found: re.Match[str]) -> str:
    return rule.program or found.groupdict().get("program", "")
