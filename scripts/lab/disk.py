"""The `disk` guest: a small system that GRUB boots on a BIOS and under UEFI, and that U-Boot boots.

Debian's cloud kernel, an initramfs that mounts the disk, and a root file system of busybox with an init of our own.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

from lab import builds, cache, cloud, debian, disks, disksystem, initramfs, menus, modules

NAME: Final = "disk"
_MODULES: Final = ("virtio_pci", "virtio_blk", "pvpanic_pci")
WORDS: Final = ("root=/dev/vda1", "ro", "console=ttyS0,115200")
ENTRIES: Final = (
    menus.Entry("kbridge GNU/Linux", disksystem.KERNEL, disksystem.INITRD, WORDS),
    menus.Entry(
        "kbridge GNU/Linux (recovery mode)", disksystem.KERNEL, disksystem.INITRD, (*WORDS, "single")
    ),
)


def build() -> builds.Build:
    disks.require_tools()
    kernel = cloud.build()
    busybox = initramfs.static_busybox()
    recipe = json.dumps(
        [kernel.folder.name, debian.installed("grub-pc-bin"), debian.installed("busybox-static")]
    )
    key = builds.key(kernel.description.version, recipe, disksystem.recipe(), disks.recipe())

    def make(folder: Path) -> None:
        tree = folder / "tree"
        chosen = modules.select(kernel.modules, _MODULES)
        disksystem.plant(tree, disksystem.Parts(kernel.kernel, chosen, busybox), NAME)
        disks.make(folder / "disk.img", tree, disksystem.MEGABYTES)
        disks.install_grub(folder / "disk.img")
        shutil.rmtree(tree)
        version, release = kernel.description.version, kernel.description.release
        builds.Description(NAME, version, release, disk="disk.img").write(folder)

    with cache.locked(NAME) as base:
        return builds.load(cache.ensure(base, key, make))
