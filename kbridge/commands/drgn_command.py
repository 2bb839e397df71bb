"""``kbridge drgn``: drgn on a guest's memory, through its debug socket.  The one file that needs drgn installed."""

from __future__ import annotations

import argparse
import logging
import pkgutil
import runpy
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gdbstubs.target import Halted
from kbridge.blocking_client import BlockingClient
from kbridge.control import guest_path, relay
from kbridge.debuginfo.finders import Finder
from kbridge.debuginfo.opening import OpenedKernel, open_kernel
from kbridge.errors import GuestError, KbridgeError
from kbridge.memory.read_ahead import ReadAhead
from kbridge.memory.session import SessionMemory
from kbridge.options import relay_options
from symbols.direct_map import IMAGE_MAP, KERNEL_HALF

if TYPE_CHECKING:
    from types import TracebackType

    import drgn

INSTALL: Final = "pip install 'kbridge[drgn]'"
ISA_END: Final = 1 << 20
"""Below are the registers of old devices, in the map of physical memory too."""
MODULES_END: Final = 0xFFFF_FFFF_FF00_0000
"""Of modules, which follow the kernel's image (Documentation/arch/x86/x86_64/mm.rst)."""
LEVELS: Final = ("debug", "info", "warning", "error", "critical", "none")


@click.command("drgn")
@relay_options
@click.option("--stop", is_flag=True, help="Stop the guest while drgn is open, if nobody else controls it.")
@click.argument("guest")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    control: str | None,
    config: str | None,
    guest: str,
    arguments: tuple[str, ...],
    *,
    stop: bool,
) -> None:
    """Open drgn on a guest's memory, read-only.

    Memory is read through the relay, as an observer beside other debuggers: while the guest runs too, where the relay
    has its machine monitor.  A guest without one, such as a kgdb guest behind a serial line only, must stand: break in
    with a debugger first, or use --stop.  What stands after `--` goes to drgn: a script and its arguments, or
    `-e CODE`; without any it is drgn's own prompt.  The kernel's file with types must be at hand (`vmlinux`,
    `debug_dirs`, `debuginfod_urls`).
    """
    task = read_arguments(guest, arguments)
    try:
        import drgn  # noqa: F401, PLC0415 (an extra that most do without)
    except ImportError as error:
        raise KbridgeError("drgn cannot be loaded", why=str(error), todo=INSTALL) from error
    _show_log(task.level)
    status = relay(control, config).get(guest_path(guest))
    memory = open_memory(guest, status, stop=stop)
    try:
        finder = Finder(
            None if status["vmlinux"] is None else Path(status["vmlinux"]),
            [Path(one) for one in status["debug_dirs"]],
        )
        kernel = open_kernel(guest, memory, finder)
        task.run(open_program(guest, memory, kernel, task.symbols, status["debug_dirs"]))
    finally:
        memory.close()


# -- the guest's memory ---------------------------------------------------------------------------------------


def open_memory(guest: str, status: dict[str, Any], *, stop: bool) -> SessionMemory:
    """Return the memory of a guest, which is stopped for that only with ``stop``.  Raises ``GuestError``."""
    sockets = status["sockets"]
    if sockets["gdb"] is None:
        raise GuestError(f"{guest} has no debug stub", todo="configure `qmp` or `stub` for it")
    has_monitor = status["monitor"] is not None

    def observe() -> BlockingClient:
        client = _attach(sockets["gdb_observe"])
        try:
            _look_on(guest, client, has_monitor=has_monitor)
        except BaseException:
            client.close()
            raise
        return client

    if not stop:
        return SessionMemory(guest, observe(), observe)
    client = _attach(sockets["gdb"])
    if runs(client):
        client.close()
        raise GuestError(
            f"{guest} was not stopped",
            why="another debugger controls it and lets it run",
            todo="`kbridge ls` shows who; leave out --stop to look on",
        )
    return SessionMemory(guest, client, observe)


def runs(client: BlockingClient) -> bool:
    """Tell whether the guest ran when this session came: the relay tells no reason for a stop then."""
    return isinstance(client.stop, Halted) and client.stop.signal == 0


def _attach(path: str) -> BlockingClient:
    return BlockingClient.connect(path, _say)


def _look_on(guest: str, client: BlockingClient, *, has_monitor: bool) -> None:
    """Have memory read while the guest runs."""
    if has_monitor:
        client.monitor("live on")
    elif runs(client):
        raise GuestError(
            f"{guest} runs",
            why="it has no machine monitor, and its own stub reads memory only while it stands",
            todo=f"stop it: `kbridge drgn --stop {guest}`, or break in with a debugger and try again",
        )


def _say(words: str) -> None:
    for line in words.splitlines():
        click.echo(line if line.startswith("kbridge: ") else f"kbridge: {line}", err=True)


# -- drgn's program -------------------------------------------------------------------------------------------


def open_program(
    guest: str, memory: SessionMemory, kernel: OpenedKernel, symbols: Sequence[Path], folders: Sequence[str]
) -> drgn.Program:
    """Return drgn's program for a guest's kernel, with its types.  Raises ``GuestError``.

    ``symbols`` are files of its user's; ``folders`` are those in which drgn looks by build-id.
    """
    import drgn  # noqa: PLC0415

    try:
        program = make_program(memory, kernel)
        options = program.debug_info_options
        options.directories = (*folders, *options.directories)
        program.load_debug_info((*symbols, *kernel.files), default=True)
    except drgn.MissingDebugInfoError as error:
        if program.main_module().wants_debug_file():
            raise GuestError(
                f"no file has the types of {guest}'s kernel",
                why=" ".join(str(error).split()),
                todo="install its debug package (linux-image-…-dbg)",
            ) from error
        # Which modules have none it has said itself, in its log.
    except (drgn.FaultError, LookupError, OSError, ValueError) as error:
        raise GuestError(
            f"drgn cannot open {guest}",
            why=" ".join(str(error).split()),
            todo="try again: what a guest that runs changes meanwhile may be such a moment; or use --stop",
        ) from error
    return program


def make_program(memory: SessionMemory, kernel: OpenedKernel) -> drgn.Program:
    """Return drgn's program for a kernel whose memory can be read, without types yet."""
    import drgn  # noqa: PLC0415

    where_all_is_memory = (
        range(kernel.map.offset + ISA_END, kernel.map.offset + kernel.map.size),
        range(IMAGE_MAP, MODULES_END),
    )
    near = ReadAhead(memory.read, where_all_is_memory, time.monotonic)

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        where = kernel.map.virtual(address) if physical else address
        if where is None:
            raise drgn.FaultError("no memory of the guest's is there", address)
        try:
            data = near.read(where, count)
        except GuestError as error:
            raise drgn.FaultError(str(error), address) from error
        if len(data) < count:
            raise drgn.FaultError("nothing is mapped there", address + len(data))
        return data

    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    program.add_memory_segment(0, kernel.map.size, read, physical=True)
    # Memory may change at any time: the guest is others' to resume.
    program.set_linux_kernel_custom(kernel.vmcoreinfo, True)
    # The kernel's half is read as it is mapped now.  drgn would walk the page tables: five reads for one.
    program.add_memory_segment(KERNEL_HALF, (1 << 64) - KERNEL_HALF, read)
    return program


def _show_log(level: int) -> None:
    """Have what drgn says to its user's eyes marked as its."""
    log = logging.getLogger("drgn")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("kbridge: drgn: %(message)s"))
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(level)


# -- what is to be done with it -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """What drgn is asked to do: a script, a line of code, or what its user types."""

    code: str | None
    script: tuple[str, ...]
    """Its path and arguments; after `-e`, arguments only."""
    symbols: tuple[Path, ...]
    level: int

    def run(self, program: drgn.Program) -> None:
        """Do it, with everything around as drgn's own command has it; its user's errors end with status 1."""
        try:
            self._run(program)
        except Exception as error:  # noqa: BLE001 (whatever its user's code raises)
            traceback.print_exception(error.with_traceback(_from_users_code(error.__traceback__)))
            sys.exit(1)

    def _run(self, program: drgn.Program) -> None:
        import drgn.cli  # noqa: PLC0415

        drgn.set_default_prog(program)
        if self.code is not None:
            sys.argv = ["-e", *self.script]
            self._execute(self.code, "<string>", drgn.cli.default_globals(program))
        elif self.script:
            path = self.script[0]
            sys.argv = list(self.script)
            if pkgutil.get_importer(path) is None:
                sys.path.insert(0, str(Path(path).resolve().parent))
            runpy.run_path(path, init_globals={"prog": program}, run_name="__main__")
        elif sys.stdin.isatty():
            click.echo(drgn.cli.version_header(), err=True)
            drgn.cli.run_interactive(program)
        else:
            sys.argv = [""]
            self._execute(sys.stdin.read(), "<stdin>", drgn.cli.default_globals(program))

    def _execute(self, code: str, name: str, names: dict[str, Any]) -> None:
        sys.path.insert(0, "")
        exec(compile(code, name, "exec"), names)  # noqa: S102 (its user's own code)


def _from_users_code(frames: TracebackType | None) -> TracebackType | None:
    """Leave out what called the user's code."""
    while frames is not None and frames.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
        frames = frames.tb_next
    return frames


def read_arguments(guest: str, arguments: Sequence[str]) -> Task:
    """Read what stands after `--`, as drgn's own command does; ends with status 2 where it makes no sense."""
    parser = argparse.ArgumentParser(
        usage=f"kbridge drgn {guest} -- [-q] [--log-level LEVEL] [-s PATH] [-e CODE | SCRIPT] [ARG...]",
        prog="kbridge drgn",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-e", dest="code", metavar="CODE")
    parser.add_argument("-s", "--symbols", metavar="PATH", type=Path, action="append", default=[])
    parser.add_argument("--log-level", choices=LEVELS, default="warning")
    parser.add_argument("-q", "--quiet", dest="log_level", action="store_const", const="none")
    parser.add_argument("script", metavar="SCRIPT", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    script = tuple(given.script)
    if given.code is None and script and not Path(script[0]).is_file():
        parser.error(f"there is no script {script[0]}")
    level = (
        logging.CRITICAL + 1 if given.log_level == "none" else int(getattr(logging, given.log_level.upper()))
    )
    return Task(given.code, script, tuple(given.symbols), level)
