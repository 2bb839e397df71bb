"""What gdb is started with, for a guest as for a memory image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

SETTINGS: Final = (
    # A stub behind a slow line may take its time.
    "set remotetimeout 30",
    # Whole pages of the kernel's image instead of a read for each variable.  Only the image and the modules:
    # elsewhere device registers are mapped, which must not be read for no reason.
    "set dcache line-size 4096",
    "set dcache size 4096",
    "set mem inaccessible-by-default off",
    "mem 0xffffffff80000000 0xffffffffff000000 rw cache",
)
SCRIPTS: Final = "vmlinux-gdb.py"
"""The kernel's own commands for gdb, which its build leaves beside vmlinux (CONFIG_GDB_SCRIPTS)."""


def gdb_arguments(status: dict[str, Any], socket: str, kernel: Path | None = None) -> list[str]:
    """Return gdb's arguments for a guest's ``socket``; ``kernel``: a main file to read first, if it is at hand."""
    commands = [f"set debug-file-directory {':'.join(status['debug_dirs'])}", *SETTINGS]
    if kernel is not None:
        commands.append(f"file {kernel}")
    commands.append(f"target remote {socket}")
    if status["vmlinux"] is not None:
        scripts = Path(status["vmlinux"]).with_name(SCRIPTS)
        if scripts.is_file():
            # They look for the kernel's types as they are read.
            commands.append(f"source {scripts}")
    return [argument for each in commands for argument in ("-ex", each)]
