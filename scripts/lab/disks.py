"""Disk images that boot by GRUB, on a BIOS and under UEFI, made without root, loop devices and mounts.

    sector 0           the BIOS's boot sector (GRUB's boot.img) with a table of two partitions
    sectors 1 to 2047  GRUB's core image for the BIOS
    1 MiB on           partition 1: ext4, the system's root with /boot/grub/grub.cfg
    behind it          partition 2: FAT, with GRUB as EFI/BOOT/BOOTX64.EFI

GRUB has all the modules that it needs in its core images; nothing is read from the disk but grub.cfg.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

from lab import debian
from lab.errors import LabError

_MEBIBYTE: Final = 1 << 20
_SECTOR: Final = 512
_ROOT_AT: Final = _MEBIBYTE
_ESP_SIZE: Final = 4 * _MEBIBYTE
_LABEL: Final = "kbridge-root"
_PREFIX: Final = "/boot/grub"
_COMMON: Final = (
    "part_msdos", "ext2", "normal", "configfile", "serial", "terminal", "linux", "echo", "ls", "cat", "reboot", "halt",
    "sleep", "test", "true", "search", "search_label", "minicmd", "help", "gzio", "password_pbkdf2",
)  # fmt: skip
_TOOLS: Final = {
    "grub-mkimage": "grub-common", "sfdisk": "fdisk", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs",
    "mformat": "mtools", "mcopy": "mtools",
}  # fmt: skip
_FILES: Final = {
    "/usr/lib/grub/i386-pc/boot.img": "grub-pc-bin",
    "/usr/lib/grub/x86_64-efi/linux.mod": "grub-efi-amd64-bin",
}
# Whoever is not root needs a process that takes itself for root.
_AS_ROOT: Final = () if os.geteuid() == 0 else ("fakeroot",)
_UNPACK: Final = 'tar -x -f "$1" -C "$2" --numeric-owner --exclude="./dev/*" && shift 2 && exec "$@"'
# mke2fs and sfdisk are where only root's PATH leads.
_PATH: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def require_tools() -> None:
    """Raises LabError that names the packages of all that is missing at once."""
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool, path=_PATH) is None]
    missing += [package for path, package in _FILES.items() if not Path(path).exists()]
    if missing:
        raise LabError(
            f"cannot make a disk image; run scripts/setup, or: "
            f"sudo apt-get install {' '.join(dict.fromkeys(missing))}"
        )


def recipe() -> str:
    """What shapes an image but the files in it, for a build's key."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def run(*command: str | Path, given: str = "", cwd: Path | None = None) -> None:
    """Run one of the tools; LabError with its last words if it fails."""
    done = subprocess.run(
        [str(word) for word in command], input=given, capture_output=True, text=True, check=False, cwd=cwd,
        env={**os.environ, "PATH": _PATH, "MTOOLS_SKIP_CHECK": "1"},
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"{command[0]} failed: {debian.last_line(done.stderr or done.stdout)}")


def make(disk: Path, tree: Path, megabytes: int, *, archive: Path | None = None) -> None:
    """Write the image `disk` whose root file system, of so many MiB, holds what is in the folder `tree`.

    The owners of what is in `archive`, a tar that is unpacked there first, are kept.
    """
    require_tools()
    size = megabytes * _MEBIBYTE
    esp_at = _ROOT_AT + size
    with disk.open("wb") as file:
        file.truncate(esp_at + _ESP_SIZE)
    run(
        "sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk,
        given=f"label: dos\nlabel-id: 0x6b627267\n"
        f"start={_ROOT_AT // _SECTOR}, size={size // _SECTOR}, type=83, bootable\n"
        f"start={esp_at // _SECTOR}, size={_ESP_SIZE // _SECTOR}, type=ef\n",
    )  # fmt: skip
    # GRUB 2.06 cannot read a file system whose checksums are seeded.
    unpack = () if archive is None else (*_AS_ROOT, "sh", "-c", _UNPACK, "sh", archive, tree)
    run(
        *unpack, "mke2fs", "-q", "-F", "-t", "ext4", "-L", _LABEL, "-m", "0", "-O", "^metadata_csum_seed",
        "-E", f"offset={_ROOT_AT},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1",
        "-d", tree, disk, f"{megabytes}M",
    )  # fmt: skip


def install_grub(disk: Path) -> None:
    """Have GRUB boot an image made by `make`, on a BIOS and under UEFI."""
    with tempfile.TemporaryDirectory(dir=disk.parent) as name, disk.open("r+b") as file:
        # Up to the table of partitions; its defaults (the core image follows, on the disk that was booted) fit.
        file.write(Path("/usr/lib/grub/i386-pc/boot.img").read_bytes()[:440])
        file.seek(_SECTOR)
        file.write(_bios_core(Path(name)))
        file.seek(-_ESP_SIZE, os.SEEK_END)
        file.write(_esp(Path(name)))


def _bios_core(work: Path) -> bytes:
    early = work / "early.cfg"
    early.write_text("serial --unit=0 --speed=115200\n")
    core = work / "core.img"
    run(
        "grub-mkimage", "-O", "i386-pc", "-o", core, "-p", f"(hd0,msdos1){_PREFIX}", "-c", early, "biosdisk", *_COMMON
    )  # fmt: skip
    image = core.read_bytes()
    if len(image) > _ROOT_AT - _SECTOR:
        raise LabError(
            f"GRUB's core image has {len(image)} bytes and does not fit before the first partition"
        )
    return image


def _esp(work: Path) -> bytes:
    early = work / "early-efi.cfg"
    early.write_text(f"search --no-floppy --label {_LABEL} --set root\nset prefix=($root){_PREFIX}\n")
    loader = work / "bootx64.efi"
    run("grub-mkimage", "-O", "x86_64-efi", "-o", loader, "-p", _PREFIX, "-c", early, "fat", *_COMMON)
    esp = work / "esp.img"
    with esp.open("wb") as file:
        file.truncate(_ESP_SIZE)
    run("mformat", "-i", esp, "::")
    run("mmd", "-i", esp, "::/EFI", "::/EFI/BOOT")
    run("mcopy", "-i", esp, loader, "::/EFI/BOOT/BOOTX64.EFI")
    return esp.read_bytes()


def copy(source: Path, target: Path, files: Mapping[str, bytes]) -> None:
    """A copy of an image that keeps its holes, with `files` (absolute paths) in its root file system replaced.

    A file is root's, and readable by all unless it is /etc/shadow.
    """
    run("cp", "--sparse=always", "--reflink=auto", source, target)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        commands: list[str] = []
        for number, (path, content) in enumerate(files.items()):
            (Path(name) / str(number)).write_bytes(content)
            commands += _debugfs_write(Path(name) / str(number), path)
        # debugfs' status is 0 whatever its commands met: what it did is read back below.
        run("debugfs", "-w", "-f", "-", f"{target}?offset={_ROOT_AT}", given="\n".join(commands) + "\n")
        for path, content in files.items():
            back = Path(name) / "back"
            run("debugfs", "-R", f"dump {path} {back}", f"{target}?offset={_ROOT_AT}")
            if not back.exists() or back.read_bytes() != content:
                raise LabError(f"debugfs could not write {path} into {target}")
            back.unlink()


def _debugfs_write(source: Path, path: str) -> Sequence[str]:
    mode = "0100640" if path == "/etc/shadow" else "0100644"
    return (
        f"rm {path}", f"write {source} {path}", f"sif {path} mode {mode}", f"sif {path} uid 0", f"sif {path} gid 0",
    )  # fmt: skip
