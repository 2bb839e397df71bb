"""The `debian` guest: Debian with systemd on a disk that GRUB boots, its root locked or with a password.

mmdebstrap makes the system of Debian's packages; two initramfs of it, initramfs-tools' and dracut's, are two entries.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Final

from lab import builds, cache, cloud, debian, disks, menus
from lab.errors import LabError
from lab.progress import Step

NAME: Final = "debian"
MEMORY: Final = 384
PASSWORD: Final = "kbridge"
"""Root's, where root has one."""
_HASH: Final = (
    "$6$kbridgesalt$MEesDSwHCuqRGE4wZc2XuVgh82JJxi.J9tD5YKgJnSrh/3c9HYklyuw5yO.noWJTDINk8KXo2wm3/EF.bQEhv."
)
ROOTS: Final = {"locked": "*", "password": _HASH}
SHADOW: Final = "/etc/shadow"
_SUITE: Final = "bookworm"
_META: Final = "linux-image-cloud-amd64"
_PACKAGES: Final = (
    "systemd", "systemd-sysv", "udev", _META, "initramfs-tools", "dracut-core", "busybox-static", "e2fsprogs", "kmod",
)  # fmt: skip
_LEFT_OUT: Final = (
    "/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*",
    "/usr/lib/x86_64-linux-gnu/gconv/*", "/lib/modules/*/kernel/net/*", "/lib/modules/*/kernel/arch/*",
    "/lib/modules/*/kernel/drivers/*",
    "/lib/modules/*/kernel/fs/*",
)  # fmt: skip
# udev loads what it finds a device for, and little of it is of use here.
_KEPT: Final = (
    "/lib/modules/*/kernel/drivers/virtio/*", "/lib/modules/*/kernel/drivers/block/virtio_blk.ko",
    "/lib/modules/*/kernel/drivers/misc/pvpanic/*", "/lib/modules/*/kernel/fs/autofs/*",
)  # fmt: skip
_EARLY: Final = Path(__file__).with_name("debian-early.sh")
_LATE: Final = Path(__file__).with_name("debian-late.sh")
_MEGABYTES: Final = 320
WORDS: Final = ("root=/dev/vda1", "ro", "console=ttyS0,115200")
ENTRIES: Final = (
    menus.Entry("Debian GNU/Linux", "/boot/vmlinuz", "/boot/initrd.img", WORDS),
    menus.Entry("Debian GNU/Linux, with dracut", "/boot/vmlinuz", "/boot/initrd-dracut.img", WORDS),
)


def build() -> builds.Build:
    _require_tools()
    kernel = debian.package(cloud.versioned(debian.package(_META)))
    scripts = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (_EARLY, _LATE))
    recipe = json.dumps([_SUITE, _PACKAGES, _LEFT_OUT, _KEPT, _MEGABYTES, debian.installed("grub-pc-bin")])
    key = builds.key(kernel.version, kernel.name, recipe, *scripts, disks.recipe())
    with cache.locked(NAME) as base:
        return builds.load(cache.ensure(base, key, lambda new: _make(kernel, new)))


def _require_tools() -> None:
    disks.require_tools()
    wanted = ["mmdebstrap"] if os.geteuid() == 0 else ["mmdebstrap", "fakeroot"]
    if missing := [tool for tool in wanted if shutil.which(tool) is None]:
        raise LabError(
            f"cannot make a Debian system; run scripts/setup, or: sudo apt-get install {' '.join(missing)}"
        )


def _make(kernel: debian.Package, folder: Path) -> None:
    system, tree, disk = folder / "system.tar", folder / "tree", folder / "disk.img"
    debian.pipeline(f"{NAME}: mmdebstrap, one minute or two", _mmdebstrap(system), cwd=folder)
    tree.mkdir()
    with Step(f"{NAME}: disk image"):
        disks.make(disk, tree, _MEGABYTES, archive=system)
        disks.install_grub(disk)
    shutil.rmtree(tree)
    system.unlink()
    release = kernel.name.removeprefix("linux-image-")
    builds.Description(NAME, kernel.version, release, disk=disk.name).write(folder)


def _mmdebstrap(archive: Path) -> list[str]:
    return [
        "mmdebstrap",
        "--variant=minbase",
        f"--include={','.join(_PACKAGES)}",
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
        *(f"--dpkgopt=path-include={pattern}" for pattern in _KEPT),
        f'--essential-hook=sh {shlex.quote(str(_EARLY))} "$1"',
        f'--customize-hook=sh {shlex.quote(str(_LATE))} "$1"',
        _SUITE,
        str(archive),
    ]


def shadow(root: str) -> bytes:
    """The file of passwords with root as one of `ROOTS` says."""
    return f"root:{ROOTS[root]}:20000:0:99999:7:::\n".encode()
