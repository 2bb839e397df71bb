"""Boot loaders and guests that are not there: what they draw for each key, and what they boot in the end.

``Grub`` draws as GRUB 2.06 does on a serial line (captures in ``data/console``): a key in its editor is a line drawn
again, behind a cursor that is hidden meanwhile.  ``Guest`` is the kernel and the shell that a command line starts.
``drive`` runs ``kbridge.boot.control`` against them, in a time of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kbridge.boot.control import End, Entry, Keys, Machine, Outcome, Reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbridge.boot.wishes import Wishes

WIDTH = 76
KERNEL = "linux\t/boot/vmlinuz root=/dev/vda1 ro console=ttyS0,115200"
DEFAULT = ("insmod ext2", "echo\t'Loading Linux ...'", f"{KERNEL} quiet", "initrd\t/boot/initrd.img")
PLAIN = "root=/dev/vda1 ro console=ttyS0,115200"
SULOGIN = "Give root password for maintenance\r\n(or press Control-D to continue): "
FORCE = "systemd.setenv=SYSTEMD_SULOGIN_FORCE=1"


def expanded(text: str) -> str:
    return text.replace("\t", " " * 8)


@dataclass
class Guest:
    """What a kernel does with its command line."""

    shell: str = "/root # "
    user: str = "0"
    panics: bool = False
    silent: bool = False
    login: str = "web1 login: "
    asks: str = ""
    """Root's password, which sulogin asks for."""
    flushes: int = 0
    """How many answers sulogin throws away."""
    deaf: int = 0
    """How many lines a shell throws away before it reads."""
    typed: str = ""
    at: str = ""
    booted: list[str] = field(default_factory=list)

    def boot(self, command_line: str) -> str:
        self.booted.append(command_line)
        self.typed = ""
        self.at = ""
        if self.silent:
            return ""
        text = f"[    0.000000] Linux version 6.1.0-1 (a@b) #1 SMP\r\n[    0.000000] Command line: {command_line}\r\n"
        if self.panics:
            return (
                f'{text}[    1.000000] VFS: Cannot open root device "vda1" or unknown-block(0,0): error -6\r\n'
                "[    1.100000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n"
            )
        text += "[    1.000000] Run /init as init process\r\n"
        words = command_line.split()
        if any(word.startswith("break=") for word in words):
            self.at = "shell"
            return f"{text}Loading, please wait...\r\nSpawning shell within the initramfs\r\n(initramfs) "
        wished = {"single", "emergency"} & set(words) or any(word.startswith("init=") for word in words)
        if not wished:
            self.at = "login"
            return f"{text}\r\nDebian GNU/Linux 12 web1 ttyS0\r\n\r\n{self.login}"
        if self.asks:
            self.at = "sulogin"
            return f"{text}{SULOGIN}"
        self.at = "shell"
        return text + self.shell

    def key(self, char: str) -> str:
        if char == "\x15":
            self.typed = ""
            return ""
        if char != "\r":
            self.typed += char
            return char if self.at == "shell" else ""
        typed, self.typed = self.typed, ""
        if self.at == "sulogin" and self.flushes:
            # What came before it was ready is gone, and not even a line's end shows.
            self.flushes -= 1
            return ""
        if self.at == "sulogin":
            if typed != self.asks:
                return f"\r\nLogin incorrect\r\n\r\n{SULOGIN}"
            self.at = "shell"
            return f"\r\n{self.shell}"
        if self.at == "shell":
            if self.deaf:
                self.deaf -= 1
                return f"\r\n{self.shell}"
            said = typed.removeprefix("echo ").replace('""', "").replace("$(id -u)", self.user)
            return f"\r\n{said}\r\n{self.shell}"
        return "\r\n"


class Grub:
    """GRUB on a serial line."""

    def __init__(
        self,
        guest: Guest | None = None,
        *,
        entries: dict[str, Any] | None = None,
        timeout: float = 5,
        style: str = "menu",
        serial: bool = True,
        terminals: str = "serial console",
        password: tuple[str, str] | None = None,
        rows: int = 12,
        stalls: bool = False,
    ) -> None:
        self.guest = guest or Guest()
        self.all: dict[str, Any] = entries or {
            "Small Linux": DEFAULT,
            "Small Linux (rescue)": DEFAULT,
            "Advanced options": {"Small Linux, old": DEFAULT, "Small Linux, older": DEFAULT},
        }
        self.timeout = timeout
        self.style = style
        self.serial = serial
        self.terminals = terminals
        self.password = password
        self.rows = rows
        self.stalls = stalls
        """Whether its editor takes no keys."""
        self.due: float | None = None
        self.resets = 0

    # ── the machine ─────────────────────────────────────────────────────────────────────────────────────────

    def reset(self, now: float) -> str:
        self.resets += 1
        self.menus = [self.all]
        self.chosen = 0
        self.mode = "off"
        self.typed = ""
        self.allowed = self.password is None
        self.due = now + 0.5
        return ""

    def tick(self, now: float) -> str:
        if self.due is None or now < self.due:
            return ""
        self.due = None
        if self.mode == "off":
            if not self.serial or self.timeout == 0:
                head = "\x1b[H\x1b[J\x1b[1;1H  Booting `Small Linux'\n\r\n\r" if self.serial else ""
                return head + self._boot()
            self.due = now + self.timeout if self.timeout > 0 else None
            self.mode = "menu" if self.style == "menu" else "hidden"
            if self.style == "hidden":
                return "\x1b[H\x1b[J\x1b[1;1H"
            if self.style == "countdown":
                return "\x1b[H\x1b[J\x1b[1;1H\x1b[1;1H5    \x1b[1;1H4    "
            return self._menu(counts=True)
        return f"\x1b[H\x1b[J\x1b[1;1H  Booting `{self._title()}'\n\r\n\r" + self._boot()

    def key(self, char: str, now: float) -> str:
        match self.mode:
            case "off":
                return ""
            case "hidden":
                self.due = None
                if char != "\x1b":
                    return ""
                self.mode = "menu"
                return self._menu()
            case "menu":
                self.due = None
                return "\x1b[5;78H\x1b[22;1H" + " " * 79 + "\x1b[23;1H" + " " * 79 + self._menu_key(char)
            case "name" | "password":
                return self._password_key(char)
            case "command":
                return self._command_key(char)
            case "editor":
                return "" if self.stalls else self._editor_key(char)
            case _:
                return self.guest.key(char)

    def _title(self) -> str:
        return list(self.menus[-1])[self.chosen]

    def _boot(self) -> str:
        self.mode = "booted"
        return self._boot_text(list(self.menus[-1][self._title()]))

    def _boot_text(self, lines: list[str]) -> str:
        self.mode = "booted"
        text = "\n".join(lines).replace("\\\n", "")
        kernel = next((line for line in text.split("\n") if line.split()[:1] == ["linux"]), "")
        return ("Loading Linux ...\n\r" if self.serial else "") + self.guest.boot(
            " ".join(kernel.split()[2:])
        )

    # ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────

    def _frame(self, *words: str) -> str:
        border = "+" + "-" * WIDTH + "+"
        last = 4 + self.rows + 1
        return (
            "\x1b[?25l\x1b[m\x1b[H\x1b[J\x1b[1;1H\x1b[2;24HGNU GRUB  version 2.06-13+deb12u2\n\r\n\r\x1b[m"
            f"\x1b[4;2H{border}"
            + "".join(f"\x1b[{4 + row};2H|\x1b[{4 + row};79H|" for row in range(1, self.rows + 1))
            + f"\x1b[{last};2H{border}\x1b[m\x1b[{last + 1};2H\x1b[{last + 2};2H\x1b[m"
            + "\n\r".join(f"      {line:70}" for line in words)
        )

    def _row(self, row: int, text: str, *, chosen: bool = False) -> str:
        return f"{chr(27) + '[7m' if chosen else ''}\x1b[{5 + row};3H{text:{WIDTH}}\x1b[m\x1b[{5 + row};78H"

    def _menu(self, *, counts: bool = False) -> str:
        self.mode = "menu"
        text = self._frame(
            "Use the ^ and v keys to select which entry is highlighted.",
            "Press enter to boot the selected OS, `e' to edit the commands",
            "before booting or `c' for a command-line.",
        )
        text += self._entries()
        if counts:
            words = f"   The highlighted entry will be executed automatically in {self.timeout}s."
            text += f"\x1b[22;1H{words:79}\x1b[5;78H"
        return text

    def _entries(self) -> str:
        titles = list(self.menus[-1])
        top = max(0, self.chosen - self.rows + 1)
        shown = titles[top : top + self.rows]
        rows = [
            self._row(n, ("*" if top + n == self.chosen else " ") + title, chosen=top + n == self.chosen)
            for n, title in enumerate(shown)
        ]
        return "".join(rows) + "".join(self._row(n, "") for n in range(len(shown), self.rows)) + "\x1b[5;78H"

    def _menu_key(self, char: str) -> str:
        last = len(self.menus[-1]) - 1
        match char:
            case "\x01":
                self.chosen = 0
            case "\x0e":
                self.chosen = min(self.chosen + 1, last)
            case "\x10":
                self.chosen = max(self.chosen - 1, 0)
            case "\r":
                entry = self.menus[-1][self._title()]
                if isinstance(entry, dict):
                    self.menus.append(entry)
                    self.chosen = 0
                    return self._menu()
                return "\x1b[H\x1b[J\x1b[1;1H  Booting a command list\n\r\n\r" + self._boot()
            case "e" | "c" if not self.allowed:
                self.mode, self.after, self.typed = "name", char, ""
                return "\x1b[H\x1b[J\x1b[1;1HEnter username: \n\r\x1b[1;17H"
            case "e":
                return self._edit()
            case "c":
                return self._command()
            case _:
                return ""
        return self._entries()

    # ── a password ──────────────────────────────────────────────────────────────────────────────────────────

    def _password_key(self, char: str) -> str:
        if char != "\r":
            self.typed += char
            return char if self.mode == "name" else ""
        typed, self.typed = self.typed, ""
        if self.mode == "name":
            self.name, self.mode = typed, "password"
            return "\n\rEnter password: "
        if (self.name, typed) != self.password:
            return "\n\r\n\rerror: access denied.\n\r" + self._menu()
        self.allowed = True
        return "\n\r" + (self._edit() if self.after == "e" else self._command())

    # ── the command line ────────────────────────────────────────────────────────────────────────────────────

    def _command(self) -> str:
        self.mode = "command"
        self.typed = ""
        return (
            "\x1b[H\x1b[J\x1b[1;1H\x1b[2;24HGNU GRUB  version 2.06-13+deb12u2\n\r\n\r\x1b[?25h"
            "   Minimal BASH-like line editing is supported.\n\r\n\rgrub> "
        )

    def _command_key(self, char: str) -> str:
        match char:
            case "\x1b":
                return self._menu()
            case "\x15":
                erased, self.typed = len(self.typed), ""
                return "\b" * erased + " " * erased + "\b" * erased
            case "\r":
                typed, self.typed = self.typed, ""
                if typed == "terminal_output":
                    names = f"\n\rActive output terminals:\n\r{self.terminals} \n\r"
                    return f"{names}Available output terminals:\n\rgfxterm \n\rgrub> "
                if typed.startswith("terminal_output "):
                    self.terminals = typed.split()[1]
                    return "\n\rgrub> "
                return f"\n\rerror: can't find command `{typed.split()[0] if typed else ''}'.\n\rgrub> "
            case _:
                self.typed += char
                return char

    # ── the editor ──────────────────────────────────────────────────────────────────────────────────────────

    def _edit(self) -> str:
        self.mode = "editor"
        entry = self.menus[-1][self._title()]
        inner = entry.values() if isinstance(entry, dict) else ()
        lines = (
            ["menuentry 'x' {" for _ in inner]
            if inner
            else [f"\t{line}" for line in "\n".join(entry).split("\n")]
        )
        self.lines = [f"setparams '{self._title()}'", "", *lines, ""]
        self.line = self.column = self.top = 0
        return (
            self._frame(
                "Minimum Emacs-like screen editing is supported. TAB lists",
                "completions. Press Ctrl-x or F10 to boot, Ctrl-c or F2 for",
                "a command-line or ESC to discard edits and return to the GRUB menu.",
            )
            + "\x1b[?25l"
            + self._text()
        )

    def _wrapped(self, line: str) -> list[str]:
        text = expanded(line)
        rows = []
        while len(text) > WIDTH - 1:
            rows.append(text[: WIDTH - 1] + "\\")
            text = text[WIDTH - 1 :]
        return [*rows, text]

    def _text(self) -> str:
        """The whole text, and the cursor where it belongs."""
        before = [row for line in self.lines[: self.line] for row in self._wrapped(line)]
        at = len(expanded(self.lines[self.line][: self.column]))
        # Behind a row's last character the cursor stays in it.
        down = max(at - 1, 0) // (WIDTH - 1)
        y, x = len(before) + down, at - down * (WIDTH - 1)
        rows = [row for line in self.lines for row in self._wrapped(line)]
        self.top = min(max(self.top, y - self.rows + 1), y)
        shown = rows[self.top : self.top + self.rows]
        shown += [""] * (self.rows - len(shown))
        drawn = "".join(f"\x1b[{5 + n};3H{row:{WIDTH}}" for n, row in enumerate(shown))
        return f"\x1b[?25l{drawn}\x1b[{5 + y - self.top};{3 + x}H\x1b[?25h"

    def _editor_key(self, char: str) -> str:
        line = self.lines[self.line]
        match char:
            case "\x1b":
                return self._menu()
            case "\x18":
                return "\x1b[H\x1b[J\x1b[1;1H  Booting a command list\n\r\n\r" + self._boot_text(self.lines)
            case "\x0e" | "\x10":
                step = 1 if char == "\x0e" else -1
                self.line = min(max(self.line + step, 0), len(self.lines) - 1)
                self.column = min(self.column, len(self.lines[self.line]))
            case "\x01":
                self.column = 0
            case "\x05":
                self.column = len(line)
            case "\x08" if self.column:
                self.lines[self.line] = line[: self.column - 1] + line[self.column :]
                self.column -= 1
            case "\x08" if self.line:
                self.column = len(self.lines[self.line - 1])
                self.lines[self.line - 1] += line
                del self.lines[self.line]
                self.line -= 1
            case "\x04":
                self.lines[self.line] = line[: self.column] + line[self.column + 1 :]
            case _ if char.isprintable():
                self.lines[self.line] = line[: self.column] + char + line[self.column :]
                self.column += 1
            case _:
                return ""
        return self._text()


class UBoot:
    """U-Boot's command line."""

    def __init__(
        self, guest: Guest | None = None, *, bootargs: str = "console=ttyS0 root=/dev/sda1", delay: int = 2
    ) -> None:
        self.guest = guest or Guest()
        self.bootargs = self.preset = bootargs
        self.delay = delay
        self.due: float | None = None
        self.resets = 0

    def reset(self, now: float) -> str:
        self.resets += 1
        self.bootargs = self.preset
        self.mode = "countdown"
        self.typed = ""
        self.due = now + self.delay
        text = "\r\nU-Boot 2023.01+dfsg-2 (Jun 22 2026 - 08:38:07 +0000)\r\n\r\n"
        return text + (f"Hit any key to stop autoboot:  {self.delay} " if self.delay else "")

    def tick(self, now: float) -> str:
        if self.due is None or now < self.due:
            return ""
        self.due = None
        return self._boot()

    def _boot(self) -> str:
        self.mode = "booted"
        return "\r\nStarting kernel ...\r\n\r\n" + self.guest.boot(self.bootargs)

    def key(self, char: str, now: float) -> str:
        if self.mode == "booted":
            return self.guest.key(char)
        if self.mode == "countdown":
            self.mode, self.due = "command", None
            return "\b\b\b 0 \r\n=> "
        if char == "\x15":
            erased, self.typed = len(self.typed), ""
            return "\b" * erased + " " * erased + "\b" * erased
        if char != "\r":
            self.typed += char
            return char
        typed, self.typed = self.typed, ""
        if typed == "printenv bootargs":
            said = f"bootargs={self.bootargs}" if self.bootargs else '## Error: "bootargs" not defined'
            return f"\r\n{said}\r\n=> "
        if typed.startswith("setenv bootargs "):
            self.bootargs = (
                typed.removeprefix("setenv bootargs ")
                .replace('"${bootargs} "', self.bootargs + " ")
                .replace("'", "")
            )
            return "\r\n=> "
        return self._boot() if typed == "boot" else f"\r\nUnknown command '{typed}'\r\n=> "


class SystemdBoot:
    """systemd-boot on UEFI's serial console, which takes an Escape for one when nothing follows it for 2 s."""

    FIRST = 24
    SHOWN = 77

    def __init__(
        self, guest: Guest | None = None, *, entries: dict[str, str] | None = None, timeout: float = 5
    ) -> None:
        self.guest = guest or Guest()
        self.entries = entries or {"Small Linux": f"{PLAIN} quiet", "Small Linux rescue": f"{PLAIN} rescue"}
        self.timeout = timeout
        self.due: float | None = None
        self.resets = 0

    def reset(self, now: float) -> str:
        self.resets += 1
        self.chosen = 0
        self.mode = "menu"
        self.escape = ""
        self.text = ""
        self.at = self.first = 0
        self.due = now + self.timeout
        head = 'BdsDxe: starting Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x1,0x0)\r\n\x1b[2J\x1b[01;01H'
        return head + self._menu() + f"\x1b[28;01H{f'Boot in {self.timeout} s.':^79}"

    def tick(self, now: float) -> str:
        if self.due is None or now < self.due:
            return ""
        self.due = None
        if self.escape:
            self.escape = ""
            return self._close() if self.mode == "editor" else ""
        return self._boot(list(self.entries.values())[self.chosen])

    def _boot(self, words: str) -> str:
        self.mode = "booted"
        return "\x1b[2J\x1b[01;01HEFI stub: Loaded initrd\r\n" + self.guest.boot(words)

    def _menu(self) -> str:
        titles = [*self.entries, "Reboot Into Firmware Interface"]
        colours = {True: "\x1b[30m\x1b[47m", False: "\x1b[37m\x1b[40m"}
        return "".join(
            f"\x1b[{self.FIRST + n};23H\x1b[0m{colours[n == self.chosen]}{title:^36}\x1b[0m{colours[False]}"
            for n, title in enumerate(titles)
        )

    def _close(self) -> str:
        self.mode = "menu"
        return "\x1b[28;01H\x1b[0m\x1b[37m\x1b[40m" + " " * 79

    def _row(self) -> str:
        if self.at < self.first:
            self.first = self.at
        self.first = max(self.first, self.at - self.SHOWN)
        shown = self.text[self.first : self.first + self.SHOWN + 1]
        return f"\x1b[28;02H\x1b[0m\x1b[30m\x1b[47m{shown:78}\x1b[28;{2 + self.at - self.first:02}H"

    def key(self, char: str, now: float) -> str:
        if self.mode == "booted":
            return self.guest.key(char)
        self.due = None
        if char == "\x1b":
            self.escape, self.due = char, now + 2
            return ""
        if self.escape:
            self.escape += char
            if self.escape == "\x1b[":
                return ""
            done, self.escape = self.escape, ""
            if done == "\x1b[F" and self.mode == "editor":
                self.at = len(self.text)
                return self._row()
            return ""
        gone = "\x1b[28;01H" + " " * 79 if self.mode == "menu" else ""
        return gone + (self._menu_key(char) if self.mode == "menu" else self._editor_key(char))

    def _menu_key(self, char: str) -> str:
        match char:
            case "j":
                self.chosen = min(self.chosen + 1, len(self.entries))
            case "k":
                self.chosen = max(self.chosen - 1, 0)
            case "\r":
                return self._boot(list(self.entries.values())[self.chosen])
            case "e":
                self.mode = "editor"
                self.text = list(self.entries.values())[self.chosen]
                self.at = self.first = 0
                return self._row()
            case _:
                return ""
        return self._menu()

    def _editor_key(self, char: str) -> str:
        if char == "\r":
            return self._boot(self.text)
        if char.isprintable():
            self.text = self.text[: self.at] + char + self.text[self.at :]
            self.at += 1
        return self._row()


@dataclass
class Run:
    """What became of it."""

    outcome: Outcome
    seconds: float
    entries: list[Entry]
    keys: bytes

    @property
    def ended(self) -> tuple[End, str]:
        return self.outcome.end, self.outcome.what


def drive(
    loader: Any,
    wishes: Wishes,
    *,
    arrives: Callable[[bytes], bytes] = bytes,
    typed: Callable[[bytes], bytes] = bytes,
    pieces: Callable[[bytes], list[bytes]] = lambda data: [data],
    most_seconds: float = 5000.0,
    catches: bool = True,
    answers: Callable[[str], str | None] | None = None,
    thinks: float = 100.0,
    **options: Any,
) -> Run:
    """Run it to its end.

    ``arrives`` and ``typed`` say what becomes of bytes on the line, ``pieces`` how they are read; ``catches`` whether
    the debug stub sees the kernel begin.  ``answers`` is who is asked for a secret, and ``thinks`` so many seconds.
    """
    machine = Machine(wishes, nonce="kb0001", **options)
    now = 0.0
    entries: list[Entry] = []
    keys = b""
    out = ""
    machine.start(now)
    while True:
        for effect in machine.effects():
            match effect:
                case Keys(data):
                    keys += data
                    for char in typed(data).decode("latin-1"):
                        out += loader.key(char, now)
                case Reset(by_stub):
                    machine.restarted(now)
                    if by_stub and catches:
                        machine.caught()
                    out = loader.reset(now)
                case Entry():
                    entries.append(effect)
        if machine.outcome is not None:
            return Run(machine.outcome, now, entries, keys)
        if out:
            data, out = arrives(out.encode("latin-1")), ""
            for piece in pieces(data):
                machine.receive(piece, now)
            continue
        if machine.asking and answers is not None:
            now += thinks
            machine.tick(now)
            machine.give(answers(machine.asking), now)
            continue
        deadline = machine.deadline
        assert deadline is not None, "every state has a deadline"
        now = max(now, min(deadline, *([loader.due] if loader.due is not None else [deadline])))
        assert now < most_seconds, f"not ended after {now} s in {machine.state}"
        out += loader.tick(now)
        machine.tick(now)
