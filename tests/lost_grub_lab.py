"""GRUBs that are not there and have no configuration: `grub> ` and `grub rescue> ` over disks that are given as paths.

Drawn as GRUB 2.06 does on a serial line: it believes in 24 rows, says where its cursor is before and behind each key,
and ends a row at column 79.  Its rescue shell echoes plainly and knows `ls`, `set`, `insmod` and, once, `normal`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from loaders_lab import Grub, Guest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEIGHT = 24
MODULES = ("boot/grub/i386-pc/normal.mod", "boot/grub/i386-pc/ext2.mod")
KERNELS = (
    "boot/vmlinuz-6.1.0-9-amd64", "boot/initrd.img-6.1.0-9-amd64", "boot/System.map-6.1.0-10-amd64",
    "boot/vmlinuz-6.1.0-10-amd64", "boot/initrd.img-6.1.0-10-amd64", "boot/config-6.1.0-10-amd64",
)  # fmt: skip
ROOT = (
    "etc/fstab",
    "usr/bin/env",
    "bin/sh",
    *(f"{name}/x" for name in ("home", "proc", "srv", "var", "lib64")),
)
UUID = "99d1d842-d288-446d-a08f-33b2cd86fb24"


class LostGrub(Grub):
    """`disks` has the paths of each device's files, or nothing of a device that cannot be read."""

    def __init__(
        self,
        disks: Mapping[str, Sequence[str] | None],
        guest: Guest | None = None,
        *,
        rescue: bool = False,
        nested: bool = False,
        dies_at: str = "",
        empty: bool = False,
        refuses: str = "",
        **menu: Any,
    ) -> None:
        super().__init__(guest, **menu)
        self.disks = disks
        self.rescue = rescue
        self.nested = nested
        """Whether the command line was opened from a menu."""
        self.dies_at = dies_at
        """A command that never returns."""
        self.empty = empty
        """Whether its configuration has no menu."""
        self.refuses = refuses
        """A file that cannot be loaded."""

    def reset(self, now: float) -> str:
        self.variables = {"grub_cpu": "i386", "pager": "1", "prefix": "(hd0,gpt9)/boot/grub"}
        self.y = 1
        self.history = ""
        self.kernel: list[str] | None = None
        self.normal = self.more = False
        return super().reset(now)

    def tick(self, now: float) -> str:
        if self.mode != "off" or self.due is None or now < self.due:
            return super().tick(now)
        self.due = None
        if self.rescue:
            self.mode = "rescue"
            return "error: no such partition.\r\nEntering rescue mode...\r\ngrub rescue> "
        return self._shell(" ESC at any time exits." if self.nested else "")

    def _shell(self, more: str = "") -> str:
        self.mode, self.typed, self.y = "shell", "", 6
        return (
            "\x1b[H\x1b[J\x1b[1;1H\x1b[2;24HGNU GRUB  version 2.06-13+deb12u2\n\r\n\r\x1b[?25h"
            f"   Minimal BASH-like line editing is supported.{more}\n\r\n\rgrub> "
        )

    def key(self, char: str, now: float) -> str:
        if self.mode == "dead":
            return ""
        if self.mode == "rescue":
            return self._rescue_key(char, now)
        if self.mode != "shell":
            if self.mode == "menu" and char == "\x1b" and len(self.menus) == 1:
                self.due = None
                return self._shell()
            return super().key(char, now)
        if self.more:
            self.more = False
            return self._say("")
        match char:
            case "\x1b":
                return self._menu() if self.nested else ""
            case "\x15" | "\x10":
                erased, self.typed = len(self.typed), "" if char == "\x15" else self.history
                blank = f"\x1b[{self.y};7H{' ' * erased}\x1b[{self.y};7H"
                return f"{blank}{self.typed}\x1b[{self.y};{7 + len(self.typed)}H"
            case "\r":
                typed, self.typed = self.typed, ""
                self.history = typed or self.history
                return self._command_line(typed, now)
            case _:
                self.typed += char
                at = 6 + len(self.typed)
                return f"\x1b[{self.y};{at}H{char}\x1b[{self.y};{at + 1}H"

    def _say(self, text: str) -> str:
        """An answer, and the prompt behind it."""
        rows = [row for line in text.split("\n") for row in self._cut(line)] if text else []
        self.y = min(self.y + len(rows) + 1, HEIGHT)
        if len(rows) >= HEIGHT - 1 and self.variables["pager"] == "1":
            self.more = True
            return "\n\r" + "\n\r".join(rows) + "\n\r--MORE--"
        return "\n\r" + "".join(f"{row}\n\r" for row in rows) + "grub> "

    def _cut(self, line: str) -> list[str]:
        return [line[at : at + 79] for at in range(0, len(line), 79)] or [""]

    # ── commands ────────────────────────────────────────────────────────────────────────────────────────────

    def _command_line(self, typed: str, now: float) -> str:
        name, _, rest = typed.partition(" ")
        if self.dies_at and typed.startswith(self.dies_at):
            self.mode = "dead"
            return "\n\r"
        match name:
            case "":
                return self._say("")
            case "clear":
                self.y = 1
                return "\x1b[H\x1b[J\x1b[1;1Hgrub> "
            case "configfile" if self._has(rest) and self.empty:
                self.y = 1
                return "\x1b[H\x1b[J\x1b[1;1H" + self._say("error: syntax error.")
            case "configfile" if self._has(rest):
                return self._open(now)
            case "linux" | "initrd":
                words = self._expanded(rest).split()
                if not words or words[0] == self.refuses or not self._has(f"({self.root}){words[0]}"):
                    return self._say(f"error: file `{''.join(words[:1])}' not found.")
                self.kernel = words if name == "linux" else self.kernel
                return self._say("")
            case "boot" if self.kernel is not None:
                self.mode = "booted"
                return "\n\r" + self.guest.boot(" ".join(self.kernel[1:]))
            case "boot":
                return self._say("error: you need to load the kernel first.")
        return self._say(self._common(name, rest))

    @property
    def root(self) -> str:
        return self.variables.get("root", "")

    def _common(self, name: str, rest: str) -> str:
        """What both shells know."""
        if name == "set" and not rest:
            return "\n".join(f"{key}={self.variables[key]}" for key in sorted(self.variables))
        if name == "set" and "=" in rest:
            key, _, value = rest.partition("=")
            self.variables[key] = value.replace("'", "")
            return ""
        if name == "ls" and not rest:
            return "".join(f"({one}) " for one in self.disks)
        if name == "ls" and rest.startswith("-l ("):
            return self._described(rest[4:].partition(")")[0])
        if name == "ls":
            return self._listed(rest)
        return f"error: can't find command `{name}'."

    def _described(self, device: str) -> str:
        if self.disks.get(device) is None:
            return "error: no such partition."
        return (
            f"\tPartition {device}: Filesystem type ext* - Label `x' -\nLast modification time 2026-11-28 17:52:52 "
            f"Saturday, UUID\n{UUID} - Partition start at 1024KiB - Total size\n65536KiB"
        )

    def _listed(self, place: str) -> str:
        found = re.fullmatch(r"\((?P<device>[^()]+)\)/(?P<folder>(?:.+/)?)", place)
        if found is None:
            return f"error: invalid file name `{place}'."
        paths = self.disks.get(found["device"])
        if paths is None:
            return "error: unknown filesystem."
        behind = [path.removeprefix(found["folder"]) for path in paths if path.startswith(found["folder"])]
        names = dict.fromkeys(name.partition("/")[0] + ("/" if "/" in name else "") for name in behind)
        return "".join(f"{name} " for name in ["./", "../", *names]) if names else "error: file not found."

    def _has(self, place: str) -> bool:
        found = re.fullmatch(r"\(([^()]+)\)/(.+)", place)
        return found is not None and found[2] in (self.disks.get(found[1]) or ())

    def _expanded(self, text: str) -> str:
        """Variables one behind the other: of a value, a blank at its end is lost."""
        return re.sub(r"\$([a-z])", lambda found: self.variables.get(found[1], "").rstrip(), text)

    def _open(self, now: float) -> str:
        if self.timeout == 0:
            self.mode, self.due = "menu", now + 1
            return f"\x1b[H\x1b[J\x1b[1;1H  Booting `{self._title()}'\n\r\n\r"
        self.mode, self.due = "off", now
        return super().tick(now)

    # ── the rescue shell ────────────────────────────────────────────────────────────────────────────────────

    def _rescue_key(self, char: str, now: float) -> str:
        if char == "\b":
            had, self.typed = bool(self.typed), self.typed[:-1]
            return "\b \b" if had else ""
        if char != "\r":
            self.typed += char if char.isprintable() else ""
            return char if char.isprintable() else ""
        typed, self.typed = self.typed, ""
        if self.dies_at and typed.startswith(self.dies_at):
            self.mode = "dead"
            return "\r\n"
        prefix = self.variables["prefix"]
        if typed == "insmod normal" and self._has(f"{prefix}/i386-pc/normal.mod"):
            self.normal = True
            return "\r\ngrub rescue> "
        if typed == "normal" and self.normal:
            return self._open(now) if self._has(f"{prefix}/grub.cfg") and not self.empty else self._shell()
        name, _, rest = typed.partition(" ")
        said = self._common(name, rest) if typed else ""
        if name in ("insmod", "normal"):
            said = "error: file not found." if name == "insmod" else "Unknown command `normal'."
        return "\r\n" + "".join(f"{line}\r\n" for line in said.split("\n") if said) + "grub rescue> "
