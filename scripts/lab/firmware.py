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
_CODE: Final = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
_VARIABLES: Final = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


def board(firmware: str, places: Places) -> Board:
    """The board with a firmware; `places.firmware` must be there, made by `prepare`, once it is started."""
    if firmware == BIOS:
        return PC
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
    if firmware == BIOS:
        return
    if not _CODE.exists():
        raise LabError(f"{_CODE} is missing; run scripts/setup, or: sudo apt-get install ovmf")
    shutil.copyfile(_VARIABLES, places.firmware)
