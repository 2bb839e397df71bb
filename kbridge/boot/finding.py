"""Dialogues at GRUB's command lines where it found no configuration: ``grub> `` and ``grub rescue> ``.

What somebody would type: the devices are listed, and folders on them; in the rescue shell the prefix is set right,
which makes it the loader; a configuration is opened, which brings its menu; where none is, the newest kernel is booted
by hand.

invariant   nothing is booted unless each command that makes it so was shown again by the loader, out of its own memory;
            what is taken from an answer was answered the same way twice
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from kbridge.boot.dialogue import DRAW, ECHO, MAX_REPAIRS, GaveUp, Note, Press, Step, Until
from kbridge.boot.kernels import (
    CONFIG,
    EFI_FOLDER,
    FOLDERS,
    KERNEL_FOLDERS,
    MAX_VENDORS,
    devices,
    error,
    has_modules,
    is_root,
    joined,
    kernels,
    names,
    natural,
)
from kbridge.boot.prompts import ask, at_prompt, drawn_twice, tell_twice_drawn, type_in
from kbridge.boot.recipes import ENTER, ESCAPE, GRUB, KILL_LINE
from kbridge.boot.states import State

if TYPE_CHECKING:
    from kbridge.boot.dialogue import Dialogue
    from kbridge.boot.kernels import Kernel
    from kbridge.boot.recipes import ByHand, Disks, Recipe
    from kbridge.boot.sight import Sight
    from kbridge.boot.wishes import Wishes

LOAD: Final = 25.0
"""Seconds for a kernel or an initramfs to be read; a BIOS reads some megabytes a second."""
OPENINGS: Final = 2
HIDDEN: Final = 0.7
"""Seconds that the screen stays blank, which a menu's frame would follow at once: the menu is hidden then."""
PIECE: Final = 48
"""Characters of the command line in a variable: no command is to be longer than a row."""
VARIABLES: Final = "abcdefghijlmnopqrstuvwxyz"
"""For pieces of the command line; ``k`` is the kernel."""
_MENUS: Final = frozenset({State.MENU, State.COUNTDOWN})
_NESTED: Final = "ESC at any time exits"

_T = TypeVar("_T")
_Steps: TypeAlias = Generator[Step, bool, _T]


def find(recipe: Recipe, wishes: Wishes, sight: Sight) -> _Steps[bool]:
    """Bring a menu, or boot a kernel with the wished command line; return whether there is a menu."""
    assert recipe.disks is not None
    if recipe.disks.normal and (yield from _leave_rescue(recipe, recipe.disks, sight)):
        return True
    disks, by_hand = GRUB.disks, GRUB.by_hand
    assert disks is not None
    assert by_hand is not None
    if (yield from _back_to_menu(sight)):
        return True
    shell = _Shell(disks, by_hand, sight)
    yield from shell.begin()
    look = _Look(disks, shell)
    yield from look.begin()
    if (yield from _open_config(look, shell, by_hand, sight)):
        return True
    yield from _boot_by_hand(look, shell, by_hand, wishes, sight)
    return False


class _Shell:
    """A command line at which one command is entered after the other."""

    def __init__(self, disks: Disks, by_hand: ByHand | None, sight: Sight) -> None:
        self._disks = disks
        self._by_hand = by_hand
        self._sight = sight

    def begin(self) -> Dialogue:
        """Have one prompt, on one terminal, and answers that do not wait for keys."""
        sight, sign = self._sight, self._disks.sign
        if drawn_twice(sign, sight.typed()) and GRUB.terminals is not None:
            alone = GRUB.terminals.alone.format(GRUB.terminals.usual)
            yield from tell_twice_drawn(sign, alone, sight)
        elif not at_prompt(sign, sight):
            # Keys that were to bring a menu came here.
            yield Press(ENTER, "Enter")
            yield Until(at_prompt, ECHO, (sign, sight))
        if self._by_hand is not None:
            for command in self._by_hand.before:
                yield from self.ask(command)

    def ask(self, text: str, seconds: float = DRAW) -> _Steps[list[str]]:
        """Return the rows that a command prints."""
        disks, sight = self._disks, self._sight
        if self._by_hand is not None and sight.screen.y > self._by_hand.rows:
            # It says where its cursor is on a screen of its own size, which scrolled where this one did not.
            yield from tell_twice_drawn(disks.sign, self._by_hand.clear, sight)
        return (yield from ask(disks.sign, text, sight, erase=disks.erase, seconds=seconds))

    def told(self, text: str) -> _Steps[list[str]]:
        """Return what a command prints, when it was printed the same way twice: no byte was damaged."""
        before: list[str] | None = None
        for _ in range(MAX_REPAIRS):
            answer = yield from self.ask(text)
            if answer == before:
                return answer
            before = answer
        raise GaveUp(
            "the boot loader's answers cannot be read",
            f"{text!r} is answered otherwise each time",
            "try again",
        )

    def enter(self, text: str, seconds: float = DRAW) -> _Steps[str]:
        """Enter a command that may be entered again; return its error, or nothing."""
        assert self._by_hand is not None
        sign, sight = self._disks.sign, self._sight
        for _ in range(MAX_REPAIRS):
            answer = yield from self.ask(text, seconds)
            yield Press(self._by_hand.previous)
            same = yield Until(at_prompt, ECHO, (sign, sight, text))
            yield Press(KILL_LINE)
            yield Until(at_prompt, ECHO, (sign, sight))
            if same:
                return error(answer)
        raise GaveUp(
            "the boot loader's command line does not take what is typed",
            f"it does not have {text!r} as the last command",
            "see whether keys get lost on the line",
        )


class _Look:
    """What is on a loader's disks, looked at once."""

    def __init__(self, disks: Disks, shell: _Shell) -> None:
        self._disks = disks
        self._shell = shell
        self._names: dict[str, frozenset[str]] = {}
        self.devices: list[str] = []

    def begin(self) -> Dialogue:
        """List the devices."""
        self.devices = devices((yield from self._shell.told(self._disks.devices)))

    def names(self, device: str, folder: str = "") -> _Steps[frozenset[str]]:
        """Return the names in a folder, which those above it must have; none where it is not there."""
        above, _, last = folder.rpartition("/")
        if folder and f"{last}/" not in (yield from self.names(device, above)):
            return frozenset()
        at = f"({device})/{folder}/" if folder else f"({device})/"
        if at not in self._names:
            self._names[at] = names((yield from self._shell.told(self._disks.names.format(at))))
        return self._names[at]

    def loader_folders(self, device: str) -> _Steps[list[str]]:
        """Return the folders of a device in which a loader's files may be."""
        found = []
        for folder in FOLDERS:
            inner = yield from self.names(device, folder)
            found += [folder] if inner else []
        return found

    def vendors(self, device: str) -> _Steps[list[str]]:
        """Return the folders of an EFI system partition."""
        top = yield from self.names(device)
        # FAT keeps a name's case or not; it is found by either.
        efi = next((name[:-1] for name in sorted(top) if name.upper() == f"{EFI_FOLDER}/"), "")
        if not efi:
            return []
        inner = sorted((yield from self.names(device, efi)), key=natural)
        return [f"{efi}/{name[:-1]}" for name in inner if name.endswith("/")][:MAX_VENDORS]

    @property
    def said(self) -> str:
        """What was looked at, in words."""
        read = [f"({device})" for device in self.devices if self._names.get(f"({device})/")]
        other = [f"({device})" for device in self.devices if f"({device})" not in read]
        parts = [f"on {', '.join(read)}" if read else "no file system could be read"]
        if other:
            parts.append(f"{', '.join(other)} cannot be read")
        return "; ".join(parts) if self.devices else "it has no disks"


def _leave_rescue(recipe: Recipe, disks: Disks, sight: Sight) -> _Steps[bool]:
    """Make the loader of its rescue shell; return whether its menu is there."""
    shell = _Shell(disks, None, sight)
    yield from shell.begin()
    look = _Look(disks, shell)
    yield from look.begin()
    for device in look.devices:
        for folder in (yield from look.loader_folders(device)):
            if not has_modules((yield from look.names(device, folder))):
                continue
            place = f"({device})/{folder}"
            yield Note(f"the loader's files are in {place}")
            yield from shell.ask(disks.root.format(device))
            yield from shell.ask(disks.prefix.format(place))
            first, last = disks.normal
            if error((yield from shell.ask(first, LOAD))):
                continue
            yield from type_in(disks.sign, last, sight, erase=disks.erase)
            yield Press(ENTER, "Enter")
            came = yield from _comes(GRUB.disks.sign if GRUB.disks is not None else "", sight)
            if came is not None:
                return came
    raise GaveUp(
        f"{recipe.program}: the loader's files are not found",
        f"no folder of {', '.join(f'/{folder}' for folder in FOLDERS)} has its modules: {look.said}",
        "start the guest from a rescue disk and run `grub-install` there; or look yourself: `kbridge console`",
    )


def _comes(sign: str, sight: Sight) -> _Steps[bool | None]:
    """Wait for a menu, hidden or not; return whether one came, or else a prompt; ``None`` where nothing did."""

    def menu() -> bool:
        return sight.state in _MENUS

    def back() -> bool:
        return sight.state is State.COMMAND and at_prompt(sign, sight)

    def boots() -> bool:
        return sight.state is State.LOADER and any(
            row.lstrip().startswith("Booting ") for row in sight.screen.display()
        )

    def bare() -> bool:
        """Whether there is nothing but a countdown's number: a menu is coming, or hidden."""
        return not any(row.strip() and not row.strip().isdecimal() for row in sight.screen.display())

    for _ in range(MAX_REPAIRS):
        if not (yield Until(lambda: menu() or back() or boots() or bare(), DRAW)):
            return None
        if bare() and not (yield Until(lambda: menu() or back() or boots(), HIDDEN)):
            yield Press(ESCAPE)
            yield Until(lambda: menu() or back() or boots(), ECHO)
        if boots():
            raise GaveUp(
                "the configuration that was found boots at once",
                "it has timeout=0, and shows no menu",
                "the debug stub may change the command line: --way stub; or type it: `kbridge console`",
            )
        if menu() or back():
            return menu()
    return None


def _back_to_menu(sight: Sight) -> _Steps[bool]:
    """Leave a command line that somebody opened from a menu; return whether the menu is there."""
    shown = " ".join(" ".join(row.split()) for row in sight.screen.display())
    if _NESTED not in shown:
        return False
    yield Press(ESCAPE)
    return (yield Until(lambda: sight.state in _MENUS, ECHO))


def _open_config(look: _Look, shell: _Shell, by_hand: ByHand, sight: Sight) -> _Steps[bool]:
    """Open the first configuration that brings a menu; return whether one did."""
    assert GRUB.disks is not None
    sign = GRUB.disks.sign
    for listed in (look.loader_folders, look.vendors):
        for device in look.devices:
            for folder in (yield from listed(device)):
                found = yield from look.names(device, folder)
                if CONFIG not in found:
                    continue
                place = f"({device})/{folder}"
                yield Note(f"a configuration is in {place}")
                for _ in range(OPENINGS):
                    yield from shell.enter(GRUB.disks.root.format(device))
                    if has_modules(found):
                        yield from shell.enter(GRUB.disks.prefix.format(place))
                    yield from type_in(sign, by_hand.open.format(f"{place}/{CONFIG}"), sight)
                    yield Press(ENTER, "Enter")
                    if (yield from _comes(sign, sight)):
                        return True
                yield Note(f"{place}/{CONFIG} brings no menu")
    return False


def _boot_by_hand(look: _Look, shell: _Shell, by_hand: ByHand, wishes: Wishes, sight: Sight) -> Dialogue:
    if wishes.entry:
        raise GaveUp(
            f"entry {wishes.entry!r} cannot be chosen: there is no menu",
            f"no {CONFIG} was found {look.said}",
            "leave out --entry: the newest kernel is booted then",
        )
    kernel = yield from _newest(look)
    if kernel is None:
        raise GaveUp(
            "GRUB has no configuration, and no kernel is found",
            f"looked for {CONFIG} in {', '.join(f'/{folder}' for folder in FOLDERS)} and /{EFI_FOLDER}/*, for vmlinuz "
            f"in / and /boot: {look.said}",
            "start the guest from a rescue disk and install a kernel and `grub-install` there; or look yourself: "
            "`kbridge console`",
        )
    text = wishes.change((yield from _own_words(look, shell, by_hand, wishes, kernel))).text
    pieces = _pieces(text)
    if by_hand.specials.search(text) or len(pieces) > len(VARIABLES):
        raise GaveUp(
            "the command line cannot be typed at GRUB",
            f"it has one of \\ ' \" * ?, or more than {PIECE * len(VARIABLES)} characters: {text}",
            "append less",
        )
    yield Note(f"boots {kernel.path} of ({kernel.device}): {text}")
    assert GRUB.disks is not None
    yield from shell.enter(GRUB.disks.root.format(kernel.device))
    yield from shell.enter(by_hand.put.format("k", kernel.path))
    for name, piece in zip(VARIABLES, pieces, strict=False):
        yield from shell.enter(by_hand.put.format(name, piece))
    used = "".join(f"${name}" for name in VARIABLES[: len(pieces)])
    commands = [f"{by_hand.kernel} $k {used}"]
    if kernel.initrd:
        commands.append(f"{by_hand.initrd} {kernel.initrd}")
    for command in commands:
        wrong = yield from shell.enter(command, LOAD)
        if wrong:
            raise GaveUp(f"GRUB cannot load {command}", wrong, "look yourself: `kbridge console`")
    yield Note(f"read back: {text}")
    yield from type_in(GRUB.disks.sign, by_hand.boot, sight)
    yield Press(ENTER, "Enter", boots=True)


def _newest(look: _Look) -> _Steps[Kernel | None]:
    """Return the kernel that is to be booted."""
    for device in look.devices:
        for folder in KERNEL_FOLDERS:
            found = kernels(device, folder, (yield from look.names(device, folder)))
            if found:
                return found[0]
    return None


def _own_words(look: _Look, shell: _Shell, by_hand: ByHand, wishes: Wishes, kernel: Kernel) -> _Steps[str]:
    """Return the command line that a configuration would have: the root, and this line as the console."""
    given = wishes.append.split()
    words = []
    if not any(word.startswith("root=") for word in given):
        words.append((yield from _root(look, shell, by_hand, kernel)))
    words.append("ro")
    if not any(word.startswith("console=") for word in given):
        variables = yield from shell.told(by_hand.variables)
        if wishes.console:
            words.append(f"console={wishes.console}")
        elif any(line.strip() in ("grub_cpu=i386", "grub_cpu=x86_64") for line in variables):
            words.append("console=ttyS0,115200")
    return " ".join(words)


def _root(look: _Look, shell: _Shell, by_hand: ByHand, kernel: Kernel) -> _Steps[str]:
    """Return the word that names the root file system."""
    first = [kernel.device, *(device for device in look.devices if device != kernel.device)]
    for device in first:
        if kernel.initrd and is_root((yield from look.names(device))):
            said = yield from shell.told(by_hand.describe.format(device))
            found = by_hand.uuid.search(joined(said))
            if found is not None:
                return f"root=UUID={found[1]}"
    raise GaveUp(
        f"{kernel.path} of ({kernel.device}) is found, and not what its root file system is",
        f"no device with /etc and /usr has a UUID: {look.said}"
        if kernel.initrd
        else "it has no initramfs, and a kernel alone finds no root by its UUID",
        "name it: --append root=/dev/…",
    )


def _pieces(text: str) -> list[str]:
    """Cut a command line for variables that are put together again: a blank at a variable's end would be lost."""
    pieces = []
    while text:
        size = len(text[:PIECE].rstrip()) if len(text) > PIECE else len(text)
        pieces.append(text[:size])
        text = text[size:]
    return pieces
