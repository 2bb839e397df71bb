"""The small system on the disks that boot loaders are tried with: busybox, an init of our own, an initramfs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

from lab import cpio, initramfs

KERNEL: Final = "/boot/vmlinuz"
INITRD: Final = "/boot/initrd.img"
MEGABYTES: Final = 64
_INITRAMFS_INIT: Final = Path(__file__).with_name("disk-initramfs.sh")
_INIT: Final = Path(__file__).with_name("disk-init.sh")
_FOLDERS: Final = ("bin", "sbin", "boot", "boot/grub", "dev", "etc", "proc", "root", "sys", "tmp")


@dataclass(frozen=True, slots=True)
class Parts:
    """What differs from one architecture to the next; `modules` are .ko files in loading order."""

    kernel: Path
    modules: Sequence[Path]
    busybox: bytes


def recipe() -> str:
    """All that shapes the system but its `Parts`, for a build's key."""
    files = (_INITRAMFS_INIT, _INIT, Path(__file__))
    return " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)


def plant(tree: Path, parts: Parts, hostname: str) -> None:
    """Write the root file system into a new folder."""
    for name in _FOLDERS:
        (tree / name).mkdir(parents=True)
    # Applets have the same names whatever the architecture.
    for applet in initramfs.applets():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    for name, content, mode in (
        (KERNEL[1:], parts.kernel.read_bytes(), 0o644),
        (INITRD[1:], initramfs.compress(_initramfs(parts)), 0o644),
        ("bin/busybox", parts.busybox, 0o755),
        ("sbin/init", _INIT.read_bytes(), 0o755),
        ("etc/hostname", f"{hostname}\n".encode(), 0o644),
        ("etc/passwd", b"root::0:0:root:/root:/bin/sh\n", 0o644),
    ):
        (tree / name).write_bytes(content)
        (tree / name).chmod(mode)


def _initramfs(parts: Parts) -> bytes:
    """One that loads modules, mounts the disk and hands over to its init."""
    entries = [
        *(
            cpio.directory(name)
            for name in ("bin", "dev", "etc", "lib", "lib/modules", "proc", "root", "sys")
        ),
        cpio.character_device("dev/console", 5, 1),
        cpio.file("bin/busybox", parts.busybox, 0o755),
        cpio.symlink("bin/sh", "busybox"),
        cpio.file("init", _INITRAMFS_INIT.read_bytes(), 0o755),
        *(cpio.file(f"lib/modules/{path.name}", path.read_bytes()) for path in parts.modules),
        cpio.file("lib/modules/load-order", "".join(f"{path.name}\n" for path in parts.modules).encode()),
    ]
    return cpio.archive(entries)
