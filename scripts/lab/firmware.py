"""What a machine starts from when no kernel is handed to it: the boards of the guests that boot from a disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lab.machine import Places

from lab.errors import LabError
from lab.machine import PC, Board

BIOS: Final = "bios"
EFI: Final = "efi"
UBOOT: Final = "uboot"
UBOOT_ARM64: Final = "uboot-arm64"
_CODE: Final = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
_VARIABLES: Final = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
_UBOOT_FILES: Final = {
    UBOOT: Path("/usr/lib/u-boot/qemu-x86/u-boot.rom"),
    UBOOT_ARM64: Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin"),
}


def board(firmware: str, places: Places) -> Board:
    """The board with a firmware; `places.firmware` must be there, made by `prepare`, once it is started."""
    if firmware == BIOS:
        return PC
    if firmware == UBOOT:
        return Board(PC.program, PC.package, (*PC.arguments, "-bios", str(_UBOOT_FILES[firmware])))
    if firmware == UBOOT_ARM64:
        return Board(
            "qemu-system-aarch64",
            "qemu-system-arm",
            ("-machine", "virt", "-cpu", "cortex-a57", "-bios", str(_UBOOT_FILES[firmware])),
        )
    return Board(
        PC.program,
        PC.package,
        (
            *PC.arguments,
            *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_CODE}"),
            *("-drive", f"if=pflash,format=raw,unit=1,file={places.firmware}"),
        ),
    )


def prepare(firmware: str, places: Places) -> None:
    """Write what a firmware keeps its settings in: new ones, so that each start is the first."""
    wanted = _UBOOT_FILES.get(firmware, _CODE)
    if firmware != BIOS and not wanted.exists():
        package = "ovmf" if wanted == _CODE else "u-boot-qemu"
        raise LabError(f"{wanted} is missing; run scripts/setup, or: sudo apt-get install {package}")
    if firmware == EFI:
        shutil.copyfile(_VARIABLES, places.firmware)
