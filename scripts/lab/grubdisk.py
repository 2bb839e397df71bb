"""The `grub` guest: a small system on a disk, booted by GRUB on a BIOS or under UEFI.

Debian's cloud kernel, an initramfs that mounts the disk, and a root file system of busybox with an init of our own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from lab import builds, cache, cloud, cpio, debian, disks, initramfs, menus, modules

NAME = "grub"
MODULES = ("virtio_pci", "virtio_blk", "pvpanic_pci")
KERNEL, INITRD = "/boot/vmlinuz", "/boot/initrd.img"
WORDS = ("root=/dev/vda1", "ro", "console=ttyS0,115200")
ENTRIES = (
    menus.Entry("kbridge GNU/Linux", KERNEL, INITRD, WORDS),
    menus.Entry("kbridge GNU/Linux (recovery mode)", KERNEL, INITRD, (*WORDS, "single")),
)
_INITRAMFS_INIT = Path(__file__).with_name("disk-initramfs.sh")
_INIT = Path(__file__).with_name("disk-init.sh")
_MEGABYTES = 48
_LAYOUT = 1


def build() -> builds.Build:
    disks.require_tools()
    kernel = cloud.build()
    grub = debian.installed("grub-pc-bin")
    parts = [path.read_bytes() for path in (_INITRAMFS_INIT, _INIT, initramfs.BUSYBOX, Path(disks.__file__))]
    recipe = json.dumps([_LAYOUT, MODULES, _MEGABYTES, grub, kernel.folder.name])
    key = builds.key(
        kernel.description.version, recipe, *(hashlib.sha256(part).hexdigest() for part in parts)
    )
    with cache.locked(NAME) as base:
        return builds.load(cache.ensure(base, key, lambda new: _make(kernel, new)))


def _make(kernel: builds.Build, folder: Path) -> None:
    chosen = modules.select(kernel.modules, MODULES)
    image = initramfs.compress(disk_initramfs(chosen))
    tree = folder / "tree"
    for name in ("bin", "sbin", "boot/grub", "dev", "etc", "proc", "root", "sys", "tmp"):
        (tree / name).mkdir(parents=True)
    shutil.copyfile(kernel.kernel, tree / KERNEL[1:])
    (tree / INITRD[1:]).write_bytes(image)
    busybox = tree / "bin/busybox"
    shutil.copyfile(initramfs.BUSYBOX, busybox)
    busybox.chmod(0o755)
    for applet in initramfs.applets():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    init = tree / "sbin/init"
    shutil.copyfile(_INIT, init)
    init.chmod(0o755)
    (tree / "etc/hostname").write_text("grub\n")
    (tree / "etc/passwd").write_text("root::0:0:root:/root:/bin/sh\n")
    disks.make(folder / "disk.img", tree, _MEGABYTES)
    shutil.rmtree(tree)
    builds.Description(
        name=NAME,
        version=kernel.description.version,
        release=kernel.description.release,
        disk="disk.img",
    ).write(folder)


def disk_initramfs(chosen: list[Path]) -> bytes:
    """An initramfs that loads modules, mounts the disk and hands over to its init."""
    entries = [
        *(
            cpio.directory(name)
            for name in ("bin", "dev", "etc", "lib", "lib/modules", "proc", "root", "sys")
        ),
        cpio.character_device("dev/console", 5, 1),
        cpio.file("bin/busybox", initramfs.static_busybox(), 0o755),
        cpio.symlink("bin/sh", "busybox"),
        cpio.file("init", _INITRAMFS_INIT.read_bytes(), 0o755),
        *(cpio.file(f"lib/modules/{path.name}", path.read_bytes()) for path in chosen),
        cpio.file("lib/modules/load-order", "".join(f"{path.name}\n" for path in chosen).encode()),
    ]
    return cpio.archive(entries)
