"""The `cloud` guest: the kernel that Debian ships for clouds, with its debug information."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

from lab import builds, cache, debian, debugfiles, modules
from lab.errors import LabError

NAME = "cloud"
_META = "linux-image-cloud-amd64"
# Devices of the hypervisor first; then some that do no harm and make a longer list.
MODULES = (
    "virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "pvpanic_pci", "qemu_fw_cfg",
    "dummy", "isofs", "vfat", "virtio_net", "crc_itu_t",
)  # fmt: skip
# Small ones that need no device, loaded with `kbridge.modules=all`: with them more than 50 are.
MORE_MODULES = (
    "nls_utf8", "nls_ascii", "nls_iso8859_1", "nls_iso8859_15", "nls_cp857", "nls_cp874",
    "tcp_scalable", "tcp_highspeed", "tcp_hybla", "tcp_lp", "tcp_veno", "tcp_yeah", "cordic", "rational",
    "crc7", "ecb", "ofb", "pcbc", "michael_mic", "blowfish_generic", "des_generic", "md4", "lz4",
    "ghash_generic", "stp", "ts_bm", "ts_kmp", "dm_zero", "em_cmp", "em_nbyte", "em_u32", "xxhash_generic",
)  # fmt: skip
APPEND = ""
_LAYOUT = 4


def versioned(meta: debian.Package) -> str:
    """The package that holds the kernel, from the one that only points at the newest."""
    for name in meta.depends:
        if name.startswith("linux-image-"):
            return name
    raise LabError(f"{meta.name} {meta.version} names no kernel package among its dependencies")


def build() -> builds.Build:
    with cache.locked(NAME) as base:
        image = debian.package(versioned(debian.package(_META)))
        recipe = json.dumps([_LAYOUT, MODULES, MORE_MODULES])
        entry = cache.ensure(
            base, builds.key(image.version, image.name, recipe), lambda new: _make(image, new)
        )
        made = builds.load(entry)
        builds.refresh_initramfs(made)
    return made


def _make(image: debian.Package, folder: Path) -> None:
    debug = debian.package(f"{image.name}-dbg")
    if debug.version != image.version:
        raise LabError(
            f"{debug.name} is {debug.version} but {image.name} is {image.version}; try: sudo apt-get update"
        )
    release = image.name.removeprefix("linux-image-")
    work = folder / "work"
    work.mkdir()
    debian.unpack(debian.download(image, work), work, "./boot/*", "./lib/modules/*")
    chosen = modules.select(work / "lib" / "modules", MODULES)
    more = [
        path
        for path in modules.select(work / "lib" / "modules", (*MODULES, *MORE_MODULES))
        if path not in chosen
    ]
    kept = folder / "modules"
    kept.mkdir()
    for path in (*chosen, *more):
        path.rename(kept / path.name)
    (work / "boot" / f"vmlinuz-{release}").rename(folder / "vmlinuz")
    (work / "boot" / f"config-{release}").rename(folder / "config")

    _debug_files(debian.download(debug, work), work, folder, release, [*chosen, *more])
    shutil.rmtree(work)
    builds.Description(
        name=NAME,
        version=image.version,
        release=release,
        kernel="vmlinuz",
        vmlinux="vmlinux",
        modules=tuple(modules.canonical(path.stem) for path in chosen),
        more_modules=tuple(modules.canonical(path.stem) for path in more),
    ).write(folder)


def _debug_files(deb: Path, work: Path, folder: Path, release: str, chosen: list[Path]) -> None:
    """The kernel's DWARF, and that of the chosen modules only: all of them take another gigabyte."""
    debian.unpack(deb, work, "./usr/lib/debug/boot/*", *(f"*/{path.name}" for path in chosen))
    boot = work / "usr" / "lib" / "debug" / "boot"
    (boot / f"vmlinux-{release}").rename(folder / "vmlinux")
    (boot / f"System.map-{release}").rename(folder / "System.map")
    debug = folder / "debug"
    debug.mkdir()
    for path in modules.find(work / "usr" / "lib" / "debug" / "lib").values():
        path.rename(debug / path.name)
    debugfiles.link(debug, [folder / "vmlinux", *debug.glob("*.ko")])
