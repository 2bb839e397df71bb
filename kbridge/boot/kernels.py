"""What names on a disk tell of how it boots: devices, folders, kernels and the initramfs of each.

Pure.  Names are as GRUB's ``ls`` prints them: ``(hd0,gpt1)``, folders with a ``/`` behind them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_DEVICES: Final = 32
"""Devices that are looked at: a server may have a hundred disks, and each costs seconds on a serial line."""
MAX_VENDORS: Final = 8
"""Folders of an EFI system partition that are looked into."""

CONFIG: Final = "grub.cfg"
FOLDERS: Final = ("boot/grub", "boot/grub2", "grub", "grub2")
"""Where a configuration and the loader's modules are; without ``boot`` on a file system of their own."""
EFI_FOLDER: Final = "EFI"
KERNEL_FOLDERS: Final = ("boot", "")

_DEVICE: Final = re.compile(r"\(((?:[a-z]+\d*|(?:lvm|md|mduuid|lvmid|crypto\w*)/[^(),\s]+)(?:,[a-z]*\d+)*)\)")
_PASSED: Final = re.compile(r"(?:fd\d+|proc|memdisk|host)\b")
_LAST: Final = re.compile(r"cd\d*\b")
_MODULES: Final = re.compile(r"(?:i386|x86_64|arm|arm64|riscv64|loongarch64|powerpc|ia64)-[a-z0-9-]+/")
_KERNEL: Final = re.compile(r"(?:vmlinuz|vmlinux|kernel|bzImage)(?:-(?P<version>[\w.+~-]+))?")
_NOT_KERNELS: Final = (".old", ".sig", ".bak", ".hmac", ".efi.signed", ".dpkg-tmp", ".dpkg-new")
_INITRDS: Final = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}", "initramfs-{}", "initrd-{}.img")
_BARE_INITRDS: Final = ("initrd.img", "initramfs.img", "initrd")
_ROOT_HAS: Final = (("etc/",), ("usr/", "bin/", "bin"))
_FULL_ROW: Final = 79


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel, and its initramfs or nothing, by their paths on one device."""

    device: str
    path: str
    initrd: str


def joined(rows: Sequence[str]) -> str:
    """Return an answer as one text: a loader ends a row at column 79, in the midst of a word too."""
    parts = [row + ("" if len(row) >= _FULL_ROW else " ") for row in rows]
    return "".join(parts).strip()


def devices(rows: Sequence[str]) -> list[str]:
    """Return the devices of an answer, without parentheses, in the order in which they are looked at.

    Those with parts of their own are left out, and floppies; optical disks are the last, which may have another
    system's installer.
    """
    found = [name for name in dict.fromkeys(_DEVICE.findall(joined(rows))) if not _PASSED.match(name)]
    whole = {name.rpartition(",")[0] for name in found}
    return sorted(
        (name for name in found if name not in whole),
        key=lambda name: (bool(_LAST.match(name)), natural(name)),
    )[:MAX_DEVICES]


def names(rows: Sequence[str]) -> frozenset[str]:
    """Return the names of a folder; none of one that cannot be read."""
    return frozenset() if error(rows) else frozenset(joined(rows).split()) - {"./", "../"}


def error(rows: Sequence[str]) -> str:
    """Return the error of an answer, or nothing."""
    return next((row.strip() for row in rows if row.lstrip().startswith("error: ")), "")


def has_modules(found: Iterable[str]) -> bool:
    """Whether a folder has a loader's modules."""
    return any(_MODULES.fullmatch(name) for name in found)


def is_root(found: frozenset[str]) -> bool:
    """Whether a file system with these names at its top is a system's root."""
    return all(any(name in found for name in some) for some in _ROOT_HAS)


def kernels(device: str, folder: str, found: frozenset[str]) -> list[Kernel]:
    """Return a folder's kernels, the one to be booted first: that with an initramfs, of the newest version."""
    at = f"/{folder}/" if folder else "/"
    several = []
    for name in found:
        match = _KERNEL.fullmatch(name)
        if match is None or name.endswith(_NOT_KERNELS):
            continue
        version = match["version"]
        wanted = _BARE_INITRDS if version is None else (one.format(version) for one in _INITRDS)
        initrd = next((one for one in wanted if one in found), "")
        several.append((("rescue" not in name, bool(initrd), natural(version or "")), name, initrd))
    return [
        Kernel(device, at + name, at + initrd if initrd else "")
        for _, name, initrd in sorted(several, reverse=True)
    ]


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return what texts are sorted by so that 10 comes after 9, and 6.1 after 6.1-rc1."""
    parts = re.findall(r"-rc|~|\d+|[a-z]+|[^\da-z]", text.lower())
    return (
        *(
            (3, int(part), "") if part.isdecimal() else (0 if part in ("-rc", "~") else 2, 0, part)
            for part in parts
        ),
        (1, 0, ""),
    )
