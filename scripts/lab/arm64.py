"""The `arm64` guest: the same small system as `disk`, of Debian's packages for arm64, booted by U-Boot."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

from lab import builds, cache, cloud, debian, disks, disksystem, modules

NAME: Final = "arm64"
WORDS: Final = ("root=/dev/vda1", "ro", "console=ttyAMA0,115200")
_META: Final = "linux-image-cloud-arm64"
_BUSYBOX: Final = "busybox-static"
# Its cloud kernel has no pvpanic.
_MODULES: Final = ("virtio_pci", "virtio_blk")


def build() -> builds.Build:
    disks.require_tools()
    archive = debian.Archive("arm64", cache.root() / "apt-arm64")
    with cache.locked(NAME) as base:
        image, busybox = _packages(archive)
        key = _key(image, busybox)
        if not (base / key / "guest.json").exists() and archive.renew():
            image, busybox = _packages(archive)
            key = _key(image, busybox)
        return builds.load(cache.ensure(base, key, lambda new: _make(archive, image, busybox, new)))


def _packages(archive: debian.Archive) -> tuple[debian.Package, debian.Package]:
    return archive.package(cloud.versioned(archive.package(_META))), archive.package(_BUSYBOX)


def _key(image: debian.Package, busybox: debian.Package) -> str:
    return builds.key(image.version, image.name, busybox.version, disksystem.recipe(), disks.recipe())


def _make(archive: debian.Archive, image: debian.Package, busybox: debian.Package, folder: Path) -> None:
    release = image.name.removeprefix("linux-image-")
    work, tree = folder / "work", folder / "tree"
    work.mkdir()
    debian.unpack(archive.download(image, work), work, "./boot/*", "./lib/modules/*")
    debian.unpack(archive.download(busybox, work), work, "./bin/busybox")
    chosen = modules.select(work / "lib" / "modules", _MODULES)
    parts = disksystem.Parts(
        work / "boot" / f"vmlinuz-{release}", chosen, (work / "bin" / "busybox").read_bytes()
    )
    disksystem.plant(tree, parts, NAME)
    disks.make(folder / "disk.img", tree, disksystem.MEGABYTES)
    shutil.rmtree(tree)
    shutil.rmtree(work)
    builds.Description(NAME, image.version, release, disk="disk.img").write(folder)
