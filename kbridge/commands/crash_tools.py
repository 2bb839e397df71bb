"""drgn and crash on a memory image, which they read themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import click

from kbridge.crash.core_file import CoreFile
from kbridge.crash.core_memory import CoreMemory
from kbridge.crash.unpacked import unpacked
from kbridge.debuginfo.finders import Finder
from kbridge.debuginfo.kernel import GuestKernel, Kernel
from kbridge.debuginfo.opening import at_once, result_of
from kbridge.errors import ImageError, KbridgeError
from symbols.errors import SymbolError

_PERCENT: Final = 100


def run_crash(path: Path, vmlinux: Path | None, folders: Sequence[Path], arguments: Sequence[str]) -> int:
    """Run crash on an image; return its exit status.  Raises ``KbridgeError``."""
    program = shutil.which("crash")
    if program is None:
        raise KbridgeError("cannot run crash", why="it is not installed", todo="apt-get install crash")
    core = CoreFile.open(path)
    try:
        file = _kernel(core, Finder(vmlinux, folders)).path
        if file is None:
            raise ImageError(
                f"no file of the kernel in {path} is known",
                why="crash needs one with DWARF",
                todo="install its debug package (linux-image-…-dbg), or give --vmlinux or --debug-dir",
            )
        with unpacked(core, path, _progress(), reads_kdump=True) as plain:
            return subprocess.run([program, *arguments, str(file), str(plain)], check=False).returncode  # noqa: S603
    finally:
        core.close()


def run_drgn(path: Path, vmlinux: Path | None, folders: Sequence[Path], arguments: Sequence[str]) -> int:
    """Run drgn on an image; return 0, or what its user's code exits with.  Raises ``KbridgeError``."""
    from kbridge.commands.drgn_command import INSTALL, read_arguments  # noqa: PLC0415

    task = read_arguments(str(path), arguments)
    try:
        import drgn  # noqa: PLC0415 (an extra that most do without)
    except ImportError as error:
        raise KbridgeError("drgn cannot be loaded", why=str(error), todo=INSTALL) from error
    core = CoreFile.open(path)
    try:
        finder = Finder(vmlinux, folders)
        kernel = _kernel(core, finder)
        files = [] if kernel.path is None else [kernel.path]
        with unpacked(core, path, _progress()) as plain:
            program = drgn.Program()
            try:
                program.set_core_dump(plain)
                options = program.debug_info_options
                options.directories = (*map(str, folders), *options.directories)
                program.load_debug_info((*task.symbols, *files), default=True)
            except drgn.MissingDebugInfoError as error:
                if program.main_module().wants_debug_file():
                    raise ImageError(
                        f"no file has the types of the kernel in {path}", why=" ".join(str(error).split())
                    ) from error
                # Which modules have none it has said itself, in its log.
            except (LookupError, OSError, ValueError) as error:
                raise ImageError(f"drgn cannot open {path}", why=" ".join(str(error).split())) from error
            task.run(program)
    finally:
        core.close()
    return 0


def _kernel(core: CoreFile, finder: Finder) -> Kernel:
    """Return the kernel in an image.  Raises ``ImageError``."""
    known = GuestKernel(CoreMemory(core), finder, at_once)
    try:
        return result_of(known.look())
    except SymbolError as error:
        raise ImageError(f"no kernel is found in {core.name}", why=str(error)) from error


def _progress() -> Callable[[int, int], None]:
    """Return what shows progress on a terminal."""
    if not sys.stderr.isatty():
        return lambda done, total: None
    last = -1

    def show(done: int, total: int) -> None:
        nonlocal last
        percent = _PERCENT * done // max(total, 1)
        if percent != last:
            last = percent
            click.echo(
                f"\rkbridge: unpacking {percent} %" + ("\r\033[K" if done == total else ""),
                err=True,
                nl=False,
            )

    return show
