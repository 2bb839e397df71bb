"""``kbridge gdb``."""

from __future__ import annotations

import os
import shutil

import click

from kbridge.commands.gdb_arguments import gdb_arguments
from kbridge.control import guest_path, relay
from kbridge.errors import GuestError, KbridgeError
from kbridge.options import relay_options


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
