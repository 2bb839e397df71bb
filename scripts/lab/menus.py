"""GRUB's configurations of the guests that boot from a disk: each is something that a tool meets on a serial line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

USER: Final = "admin"
PASSWORD: Final = "kbridge"
"""Whom the `password` menu asks for before it lets anybody edit an entry."""
# grub-mkpasswd-pbkdf2 of PASSWORD, with a tenth of the usual rounds: an emulated processor counts them.
_HASH: Final = (
    "grub.pbkdf2.sha512.1000.000102030405060708090A0B0C0D0E0F.41073646F767B480880AA53705C8C185FAEF06ABF3A8EA0DBEDF9DBD"
    "2E0A65D99B2AA0AF4E8D793417A33F63E600B5253EAC1F5DD7924AE761E0406C1C527C2A"
)
# As in Debian's, where it loads drivers of screens.
_LOAD_VIDEO: Final = "function load_video {\n\ttrue\n}\n"
CONFIG: Final = "config"
PREFIX: Final = "prefix"
_LONG: Final = "kbridge.long=" + "-".join(f"word{number}" for number in range(20))


@dataclass(frozen=True, slots=True)
class Entry:
    """One bootable entry; `words` are the kernel's command line, `initrd` may be empty."""

    title: str
    kernel: str
    initrd: str
    words: tuple[str, ...]

    def text(self, *, options: str = "", joint: str = " ") -> str:
        """As grub-mkconfig writes it."""
        lines = [
            "load_video",
            "insmod gzio",
            "if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi",
            "insmod part_msdos",
            "insmod ext2",
            "search --no-floppy --label --set=root kbridge-root",
            "echo\t'Loading Linux ...'",
            f"linux\t{joint.join([self.kernel, *self.words])}",
        ]
        if self.initrd:
            lines += ["echo\t'Loading initial ramdisk ...'", f"initrd\t{self.initrd}"]
        body = "".join(f"\t{line}\n" for line in lines)
        return f"menuentry '{self.title}' --class gnu-linux --class os {options}{{\n{body}}}\n"

    def with_words(self, *words: str) -> Entry:
        return replace(self, words=(*self.words, *words))


@dataclass(frozen=True, slots=True)
class Menu:
    """What is written around the entries."""

    help: str
    timeout: int = 5
    style: str = "menu"
    terminal: str = "serial console"
    password: bool = False
    joint: str = " "
    more_words: tuple[str, ...] = ()
    with_initrd: bool = True
    lost: str = ""
    """What GRUB does not find: `CONFIG`, its configuration, or `PREFIX`, all of its files (`lostgrub`)."""

    def text(self, entries: tuple[Entry, ...]) -> str:
        """The whole grub.cfg. The first entry is the default one; all but it are in a submenu too, as Debian has it."""
        lines = ["set default=0", f"set timeout_style={self.style}", f"set timeout={self.timeout}"]
        if self.terminal:
            lines += [
                "serial --unit=0 --speed=115200",
                f"terminal_input {self.terminal}",
                f"terminal_output {self.terminal}",
            ]
        if self.password:
            lines += [f"set superusers={USER}", f"password_pbkdf2 {USER} {_HASH}"]
        options = "--unrestricted " if self.password else ""
        default = entries[0].with_words(*self.more_words)
        if not self.with_initrd:
            default = replace(default, initrd="")
        shown = [default.text(options=options, joint=self.joint)]
        shown += [entry.text(options=options) for entry in entries[1:]]
        submenu = "".join(entry.text(options=options) for entry in entries)
        shown.append(f"submenu 'Advanced options' {options}{{\n{submenu}}}\n")
        return "\n".join([*lines, "", _LOAD_VIDEO, *shown])


MENUS: Final = {
    "menu": Menu("a menu that counts 5 s down"),
    "waiting": Menu("a menu without a countdown", timeout=-1),
    "none": Menu("timeout=0: no menu, no moment to stop it", timeout=0),
    "hidden": Menu("timeout_style=hidden, 3 s", timeout=3, style="hidden"),
    "countdown": Menu("timeout_style=countdown, 5 s: no menu until a key comes", style="countdown"),
    "no-serial": Menu("no terminal on the serial line", terminal="", timeout=1),
    "firmware": Menu(
        "the firmware's console only, which UEFI has on the serial line too", terminal="console"
    ),
    "password": Menu(f"user {USER}, password {PASSWORD}, to edit an entry", password=True),
    "long": Menu("a command line that is longer than the screen is wide", more_words=(_LONG,)),
    "continued": Menu("the same, continued over several lines", more_words=(_LONG,), joint=" \\\n\t\t"),
    "panic": Menu("a default entry without an initramfs: no root, a panic", with_initrd=False),
    "no-init": Menu("a default entry whose init is missing: a panic", more_words=("init=/sbin/nothing",)),
    "no-config": Menu("no grub.cfg on the disk: GRUB's command line", lost=CONFIG),
    "wrong-prefix": Menu(
        "GRUB looks for its files on a partition that is not there: grub rescue", lost=PREFIX
    ),
}
