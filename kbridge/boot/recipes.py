"""Boot loaders as data: how each is stopped, chosen from, edited and told to boot, on a serial line.

To add one: the words by which it is recognised are rules of ``states``; what it takes is a row here.  The three
ways of talking that the rows fill in are ``editing``'s (an editor on the screen, one of a single row) and ``prompts``'.

Keys are control characters where a loader takes them, for they are one byte and cannot be cut apart, rather than escape
sequences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from kbridge.boot.states import State

ESCAPE: Final = b"\x1b"
ENTER: Final = b"\r"
KILL_LINE: Final = b"\x15"


@dataclass(frozen=True, slots=True)
class Menu:
    """A list of entries, one of them chosen."""

    first: bytes
    down: bytes
    open: bytes
    """Boots the chosen entry, or opens it where it is a menu of its own."""
    edit: bytes
    mark: str = ""
    """What stands before the chosen entry, besides that it is shown in reverse."""


@dataclass(frozen=True, slots=True)
class Editor:
    """The text of an entry on the screen, in which the kernel's row is changed.

    A line that is longer than a row goes on in the next; ``wraps`` is what its row ends with then.
    """

    row: re.Pattern[str]
    """Matches the kernel's line up to the first word of its command line."""
    other_menu: re.Pattern[str]
    """Matches a line that shows that the entry is a menu."""
    typed_into: re.Pattern[str]
    """Matches the first line where the key that opened the editor came twice."""
    wraps: str
    joins: str
    """What a line ends with that goes on in the next one, in the loader's own language."""
    specials: re.Pattern[str]
    """Characters of a word that its language would take for its own."""
    down: bytes
    home: bytes
    end: bytes
    erase: bytes
    """Erases the character before the cursor, or joins the line to the one above."""
    delete: bytes
    boot: bytes
    leave: bytes


@dataclass(frozen=True, slots=True)
class Terminals:
    """How a loader that draws on several terminals is had to draw on the serial line alone.

    A BIOS draws a character on its screen in 0.3 ms and more, and each key in an editor is a line that is drawn again;
    UEFI's console goes to the serial line too, so that all comes twice, of two sizes.
    """

    open: bytes
    """Opens the command line, from the menu."""
    sign: str
    ask: str
    serial: re.Pattern[str]
    """Matches a terminal that is the serial line, among those that ``ask`` says to be active."""
    usual: str
    others: frozenset[str]
    alone: str
    leave: bytes


@dataclass(frozen=True, slots=True)
class LineEditor:
    """The command line of an entry, in one row that shows a part of it."""

    margin: int
    """Columns beside it, on both sides."""
    end: bytes
    boot: bytes
    leave: bytes


@dataclass(frozen=True, slots=True)
class Prompt:
    """A command line."""

    sign: str
    show: str
    """Prints the kernel's command line that is set."""
    shown: re.Pattern[str]
    unset: re.Pattern[str]
    put: str
    """Sets it; ``{}`` is the text."""
    more: str
    """Adds to it."""
    specials: str
    """Characters that cannot be in the text."""
    boot: str
    most: int
    """Characters of a command."""


@dataclass(frozen=True, slots=True)
class Disks:
    """A command line by which a loader's disks can be looked at, where it has lost its configuration."""

    sign: str
    devices: str
    """Lists the devices."""
    names: str
    """Lists a folder, ``{}``."""
    root: str
    """Sets the device, ``{}``, of paths that name none."""
    prefix: str
    """Sets the folder, ``{}``, of the loader's own files."""
    erase: bytes = b""
    """Erases a character, where no key erases the line."""
    normal: tuple[str, ...] = ()
    """Where it is a rescue shell: what makes it the loader, once the prefix is right."""


@dataclass(frozen=True, slots=True)
class ByHand:
    """How a command line of GRUB's opens a configuration, or starts a kernel without one."""

    before: tuple[str, ...]
    """What is to be set first: no answer may wait for a key in its midst."""
    clear: str
    rows: int
    """Behind so many rows of answers the screen is cleared: a serial terminal of GRUB's has 24."""
    variables: str
    """Prints all variables, a ``name=value`` a line."""
    describe: str
    """Prints a device's file system, with its UUID."""
    uuid: re.Pattern[str]
    open: str
    """Reads a configuration and shows its menu."""
    put: str
    """Sets the first variable to the second text."""
    kernel: str
    initrd: str
    boot: str
    specials: re.Pattern[str]
    """Characters that a word cannot have, because ``put`` or a variable's use would change them."""
    previous: bytes
    """Shows the command that was entered last, out of the loader's memory."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One boot loader, by the name that ``states`` has for it."""

    program: str
    wake: bytes
    """Stops a countdown that shows no menu."""
    menu: Menu | None = None
    editor: Editor | LineEditor | None = None
    terminals: Terminals | None = None
    prompt: Prompt | None = None
    disks: Disks | None = None
    by_hand: ByHand | None = None


GRUB: Final = Recipe(
    "GRUB",
    wake=ESCAPE,
    menu=Menu(first=b"\x01", down=b"\x0e", open=ENTER, edit=b"e", mark="*"),
    editor=Editor(
        row=re.compile(r"\s*linux(?:16|efi)?\s+\S+(?:\s+|$)"),
        other_menu=re.compile(r"\s*(?:menuentry|submenu)\s"),
        typed_into=re.compile(r"e+setparams "),
        wraps="\\",
        joins="\\",
        specials=re.compile(r"[\\$'\";&|<>{}#]"),
        down=b"\x0e",
        home=b"\x01",
        end=b"\x05",
        erase=b"\x08",
        delete=b"\x04",
        boot=b"\x18",
        leave=ESCAPE,
    ),
    terminals=Terminals(
        open=b"c",
        sign="grub>",
        ask="terminal_output",
        serial=re.compile(r"serial(?:_\S+)?"),
        usual="serial",
        others=frozenset({"console", "gfxterm", "vga_text"}),
        alone="terminal_output {}",
        leave=ESCAPE,
    ),
    disks=Disks("grub>", devices="ls", names="ls {}", root="set root={}", prefix="set prefix={}"),
    by_hand=ByHand(
        before=("set pager=0",),
        clear="clear",
        rows=18,
        variables="set",
        describe="ls -l ({})",
        uuid=re.compile(r"\bUUID\s+([0-9A-Fa-f]{4,16}(?:-[0-9A-Fa-f]{4,12}){0,4})(?![0-9A-Fa-f-])"),
        open="configfile {}",
        put="set {}='{}'",
        kernel="linux",
        initrd="initrd",
        boot="boot",
        specials=re.compile(r"[\\'\"*?]"),
        previous=b"\x10",
    ),
)

GRUB_RESCUE: Final = Recipe(
    "GRUB rescue",
    wake=ESCAPE,
    disks=Disks(
        "grub rescue>",
        devices="ls",
        names="ls {}",
        root="set root={}",
        prefix="set prefix={}",
        erase=b"\x08",
        normal=("insmod normal", "normal"),
    ),
)

SYSTEMD_BOOT: Final = Recipe(
    "systemd-boot",
    wake=b" ",
    # UEFI gives no control keys to it: letters do for the menu, and its terminal's own End for the editor.
    menu=Menu(first=b"k" * 20, down=b"j", open=ENTER, edit=b"e"),
    editor=LineEditor(margin=1, end=b"\x1b[F", boot=ENTER, leave=ESCAPE),
)

U_BOOT: Final = Recipe(
    "U-Boot",
    wake=b" ",
    prompt=Prompt(
        sign="=>",
        show="printenv bootargs",
        shown=re.compile(r"bootargs=(.*)"),
        unset=re.compile(r'## Error: "bootargs" not defined'),
        put="setenv bootargs '{}'",
        more="setenv bootargs \"${{bootargs}} \"'{}'",
        specials="'",
        boot="boot",
        most=200,
    ),
)

RECIPES: Final = {recipe.program: recipe for recipe in (GRUB, GRUB_RESCUE, SYSTEMD_BOOT, U_BOOT)}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a state may last: without a byte, and in all; in seconds."""

    silent: float
    all: float


PATIENCE: Final = {
    State.UNKNOWN: Patience(60, 300),
    State.OFF: Patience(60, 60),
    State.FIRMWARE: Patience(90, 600),
    State.LOADER: Patience(60, 300),
    State.COUNTDOWN: Patience(30, 120),
    State.MENU: Patience(30, 120),
    State.EDITOR: Patience(30, 120),
    State.COMMAND: Patience(30, 120),
    State.KERNEL: Patience(60, 300),
    State.INITRAMFS: Patience(180, 600),
    State.SYSTEMD: Patience(180, 900),
    State.LOGIN: Patience(60, 300),
    State.SHELL: Patience(30, 120),
    State.KDB: Patience(10, 10),
    State.PANIC: Patience(10, 10),
    State.FAILED: Patience(10, 10),
}
"""A kernel that decompresses on a slow machine, a server's memory test, an initramfs that waits for its root (90 s and
more), a unit's start job (90 s): each may be silent that long and be well."""
