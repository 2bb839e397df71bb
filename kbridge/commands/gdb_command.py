"""``kbridge gdb``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

import click

from kbridge.control import guest_path, relay
from kbridge.errors import GuestError, KbridgeError
from kbridge.options import relay_options

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


@click.command("gdb")
@relay_options
@click.option("--gdb", "program", default="gdb", show_default=True, metavar="PROGRAM", help="The gdb to run.")
@click.option("--observe", is_flag=True, help="Only look: the guest is neither stopped nor resumed.")
@click.argument("guest")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    control: str | None,
    config: str | None,
    program: str,
    guest: str,
    arguments: tuple[str, ...],
    *,
    observe: bool,
) -> None:
    """Debug a guest's kernel with gdb.

    Starts an unmodified gdb, attached, which stops the guest.  The relay serves it the kernel's symbols and modules
    where KASLR put them; this command adds where the files with lines and types are, and the kernel's own gdb scripts
    if they are beside `vmlinux`.  Where another debugger controls the guest, or with --observe, it observes:
    `continue` waits for the next stop, and `monitor help` tells what else there is.  What stands after `--` goes to
    gdb: `kbridge gdb web1 -- -batch -ex bt`.
    """
    found = shutil.which(program)
    if found is None:
        raise KbridgeError(f"cannot run {program}", why="it is not installed", todo="apt-get install gdb")
    status = relay(control, config).get(guest_path(guest))
    if status["sockets"]["gdb"] is None:
        raise GuestError(f"{guest} has no debug stub", todo="configure `qmp` or `stub` for it")
    socket = status["sockets"]["gdb_observe" if observe else "gdb"]
    os.execv(found, [program, *gdb_arguments(status, socket), *arguments])  # noqa: S606 (no shell is wanted)


def gdb_arguments(status: dict[str, Any], socket: str) -> list[str]:
    """Return gdb's arguments for a guest's ``socket``."""
    commands = [f"set debug-file-directory {':'.join(status['debug_dirs'])}", *SETTINGS]
    commands.append(f"target remote {socket}")
    if status["vmlinux"] is not None:
        scripts = Path(status["vmlinux"]).with_name(SCRIPTS)
        if scripts.is_file():
            # They look for the kernel's types as they are read.
            commands.append(f"source {scripts}")
    return [argument for each in commands for argument in ("-ex", each)]
