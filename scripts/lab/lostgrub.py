"""GRUBs that lost their way, written into a guest's own copy of its disk: no grub.cfg, or a wrong prefix.

Without grub.cfg GRUB opens its command line.  With a prefix that is on no disk it has no `normal` module and opens the
rescue shell; its modules are on the disk then, where a person would find them.  On a BIOS the core image is one that
speaks on the serial line before any configuration is read, as images with a configuration inside do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from lab import disks, firmware
from lab.errors import LabError

WRONG_PREFIX: Final = "(hd0,msdos9)/boot/grub"
_RIGHT_PREFIX: Final = "(hd0,msdos1)/boot/grub"
_CFG: Final = "/boot/grub/grub.cfg"
_PLATFORMS: Final = {firmware.BIOS: "i386-pc", firmware.EFI: "x86_64-efi"}
_ON_SERIAL: Final = "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\n"
_CORE: Final = {
    firmware.BIOS: ("biosdisk", "part_msdos", "ext2", "serial", "terminal"),
    firmware.EFI: ("part_msdos", "ext2", "fat"),
}
_WHOLE: Final = ("normal", "configfile", "linux", "ls", "search", "search_fs_file", "echo", "test", "minicmd")
_SECTOR: Final = 512
_PARTITIONS_AT: Final = 446
_GAP: Final = 2047 * _SECTOR
"""Between the boot sector and the first partition."""


def lose(disk: Path, starts_by: str, *, prefix: bool) -> None:
    """Take grub.cfg off a disk, or with `prefix` have GRUB look for its files where no partition is."""
    if starts_by not in _PLATFORMS:
        raise LabError(f"a guest that starts from {starts_by} has no GRUB that could be lost")
    if prefix:
        _plant_modules(disk, _PLATFORMS[starts_by])
    else:
        disks.run("debugfs", "-w", "-R", f"rm {_CFG}", f"{disk}?offset={_first_partition(disk)}")
        if starts_by == firmware.EFI:
            return
    with tempfile.TemporaryDirectory(dir=disk.parent) as name:
        core = _core(Path(name), starts_by, prefix=prefix)
        if starts_by == firmware.EFI:
            # The second partition of all disks is the EFI system partition.
            esp = f"{disk}@@{_partition(disk, 1)}"
            disks.run("mcopy", "-o", "-i", esp, core, "::/EFI/BOOT/BOOTX64.EFI")
            return
        image = core.read_bytes()
    if len(image) > _GAP:
        raise LabError(
            f"GRUB's core image has {len(image)} bytes and does not fit before the first partition"
        )
    with disk.open("r+b") as file:
        file.seek(_SECTOR)
        file.write(image)


def _core(work: Path, starts_by: str, *, prefix: bool) -> Path:
    core, early = work / "core", work / "early.cfg"
    early.write_text(_ON_SERIAL if starts_by == firmware.BIOS else "")
    configured = ("-c", early) if starts_by == firmware.BIOS else ()
    disks.run(
        "grub-mkimage", "-O", _PLATFORMS[starts_by], "-o", core, "-p", WRONG_PREFIX if prefix else _RIGHT_PREFIX,
        *configured, *_CORE[starts_by], *(() if prefix else _WHOLE),
    )  # fmt: skip
    return core


def _plant_modules(disk: Path, platform: str) -> None:
    """Write all of GRUB's modules to the disk, and the lists by which it loads them."""
    files = [path for path in Path("/usr/lib/grub", platform).iterdir() if path.suffix in (".mod", ".lst")]
    folder = f"/boot/grub/{platform}"
    commands = [f"mkdir {folder}", f"cd {folder}", *(f"write {path} {path.name}" for path in files)]
    place = f"{disk}?offset={_first_partition(disk)}"
    with tempfile.TemporaryDirectory(dir=disk.parent) as name:
        disks.run("debugfs", "-w", "-f", "-", place, given="\n".join(commands) + "\n")
        # debugfs' status is 0 whatever its commands met.
        back = Path(name) / "normal.mod"
        disks.run("debugfs", "-R", f"dump {folder}/normal.mod {back}", place)
        if not back.exists() or not back.stat().st_size:
            raise LabError(f"debugfs could not write GRUB's modules into {disk}")


def _first_partition(disk: Path) -> int:
    return _partition(disk, 0)


def _partition(disk: Path, number: int) -> int:
    """The offset in bytes of a primary partition, by the table in the boot sector."""
    with disk.open("rb") as file:
        file.seek(_PARTITIONS_AT + 16 * number + 8)
        return int.from_bytes(file.read(4), "little") * _SECTOR
