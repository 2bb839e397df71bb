"""``kbridge gdb``."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click

from kbridge.control import Control, Refused, guest_path, relay
from kbridge.errors import GuestError, KbridgeError
from kbridge.options import relay_options
from kbridge.stub_memory import read_by_stub
from symbols import elf, kaslr
from symbols.errors import SymbolError

PER_CPU_SYMBOL: Final = "__per_cpu_start"
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

    Starts an unmodified gdb, attached, which stops the guest; with `vmlinux` configured the symbols are where
    KASLR put the kernel.  Where another debugger controls the guest, or with --observe, it observes: `continue`
    waits for the next stop, and `monitor help` tells what else there is.  What stands after `--` goes to gdb:
    `kbridge gdb web1 -- -batch -ex bt`.
    """
    found = shutil.which(program)
    if found is None:
        raise KbridgeError(f"cannot run {program}", why="it is not installed", todo="apt-get install gdb")
    api = relay(control, config)
    status = api.get(guest_path(guest))
    if status["sockets"]["gdb"] is None:
        raise GuestError(f"{guest} has no debug stub", todo="configure `qmp` or `stub` for it")
    socket = status["sockets"]["gdb_observe" if observe else "gdb"]
    symbols = _symbols(api, status)
    os.execv(found, [program, *gdb_arguments(status, socket, symbols), *arguments])  # noqa: S606 (no shell is wanted)


def gdb_arguments(status: dict[str, Any], socket: str, symbols: Iterable[str]) -> list[str]:
    """Return gdb's arguments for a guest's ``socket``; ``symbols`` are the commands that load them."""
    commands = [f"set debug-file-directory {':'.join(status['debug_dirs'])}", *SETTINGS]
    # Before the guest is stopped: a large vmlinux takes seconds.
    commands += symbols
    commands.append(f"target remote {socket}")
    return [argument for each in commands for argument in ("-ex", each)]


def _symbols(api: Control, status: dict[str, Any]) -> tuple[str, ...]:
    """Return the gdb commands that load the guest's vmlinux; without one, say why and go on."""
    vmlinux = status["vmlinux"]
    if vmlinux is None:
        return ()
    try:
        linked = _linked_at(vmlinux)
        slide = kaslr.slide(_handler(api, status), linked[kaslr.DIVIDE_ERROR_SYMBOL])
    except (SymbolError, KbridgeError) as error:
        click.echo(f"kbridge: symbols of {vmlinux} are not loaded: {error}", err=True)
        return ()
    return symbol_commands(vmlinux, slide, per_cpu=linked.get(PER_CPU_SYMBOL))


def symbol_commands(vmlinux: str, slide: int, *, per_cpu: int | None) -> tuple[str, ...]:
    """Return the gdb commands that load a vmlinux which KASLR moved by ``slide``.

    ``per_cpu``: where per-CPU variables begin in it.  At 0 they are offsets into each processor's area, which
    do not slide (x86-64 before Linux 6.15): the kernel's own gdb scripts rely on them.
    """
    if per_cpu != 0:
        return (f'symbol-file "{vmlinux}" -o {slide:#x}',)
    # Only add-symbol-file takes a section's own address, and it asks whether that is meant.
    load = f'add-symbol-file "{vmlinux}" -o {slide:#x} -s .data..percpu 0'
    return "set confirm off", load, "set confirm on"


def _handler(api: Control, status: dict[str, Any]) -> int:
    """Return where exception 0's handler is: through the monitor, or where there is none through the stub."""
    try:
        return int(api.get(guest_path(status["name"], "/kernel"))["divide_error"], 16)
    except Refused as error:
        if error.kind != "not-capable":
            raise
    search = kaslr.divide_error_handler()
    (wanted,) = next(search)
    data = read_by_stub(status["sockets"]["gdb"], wanted.address, wanted.length)
    return kaslr.handler_of(data)


def _linked_at(vmlinux: str) -> dict[str, int]:
    """Return where the two symbols that say how to place the others are in the file; the second may be absent."""
    try:
        with Path(vmlinux).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
            found = elf.symbol_values(image, [kaslr.DIVIDE_ERROR_SYMBOL, PER_CPU_SYMBOL])
    except (OSError, ValueError) as error:
        raise KbridgeError(f"{vmlinux} cannot be read", why=str(error)) from error
    if kaslr.DIVIDE_ERROR_SYMBOL not in found:
        raise KbridgeError(
            f"{vmlinux} has no symbol {kaslr.DIVIDE_ERROR_SYMBOL}", todo="give an x86-64 vmlinux with symbols"
        )
    return found
