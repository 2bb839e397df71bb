"""gdb on a memory image: a relay for it in this process, for as long as gdb runs.

gdb is started first, and finds a socket that listens: it begins while the relay is still being loaded, and while the
index that an earlier gdb made of the kernel's DWARF is looked at.  A kernel that was opened before at the same place is
lent to it, and it reads that meanwhile.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbridge.commands.gdb_arguments import gdb_arguments
from kbridge.crash.core_file import CoreFile
from kbridge.crash.lent_kernel import lend
from kbridge.debuginfo import gdb_indexes, kept_files
from kbridge.debuginfo.gdb_indexes import GdbIndex
from kbridge.errors import KbridgeError
from symbols import vmcoreinfo
from symbols.errors import SymbolError
from symbols.vmcoreinfo import Vmcoreinfo

if TYPE_CHECKING:
    from types import FrameType


def run_gdb(
    path: Path,
    name: str,
    vmlinux: Path | None,
    folders: Sequence[Path],
    program: str,
    arguments: Sequence[str],
) -> int:
    """Run gdb on the image at ``path``, which its user calls ``name``; return its exit status.

    Raises ``KbridgeError``.
    """
    found = shutil.which(program)
    if found is None:
        raise KbridgeError(f"cannot run {program}", why="it is not installed", todo="apt-get install gdb")
    with (
        closing(CoreFile.open(path)) as core,
        tempfile.TemporaryDirectory(prefix="kbridge-") as folder,
    ):
        place, links, indexes = Path(folder, "gdb"), Path(folder, "debug"), Path(folder, "index")
        links.mkdir()
        indexes.mkdir()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The folder is its owner's alone.
        listening.bind(str(place))
        listening.listen()
        status = {
            "debug_dirs": [*map(str, folders), str(links)],
            "vmlinux": None if vmlinux is None else str(vmlinux),
        }
        kernel = _kernel(core)
        index = None
        command = [found]
        if kernel.build_id is not None:
            index = GdbIndex(gdb_indexes.folder(), Path(found), kernel.build_id, indexes)
            command += index.arguments
        lent = lend(core, kernel, vmlinux, folders, kept_files.folder(), links, Path(folder, "vmlinux"))
        command += [*gdb_arguments(status, str(place), lent), *arguments]
        ended_by: list[int] = []
        with _running(command, ended_by) as process:
            lending = threading.Thread(target=(lambda: None) if index is None else index.lend)
            lending.start()
            _serve(process, core, name, vmlinux, folders, place, listening, links, lending)
        if index is not None:
            index.keep()
    # As a shell tells it; gdb itself ends with 0 when it is told to.
    number = ended_by[0] if ended_by else -process.returncode
    return 128 + number if number > 0 else process.returncode


def _kernel(core: CoreFile) -> Vmcoreinfo:
    """Return what an image says of its kernel, which may be nothing."""
    try:
        return vmcoreinfo.parse(core.head.vmcoreinfo() or b"")
    except SymbolError:
        return Vmcoreinfo("", None, None, {})


@contextmanager
def _running(command: Sequence[str], ended_by: list[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on this terminal; what ends us ends it, and is noted."""
    with subprocess.Popen(command) as process:  # noqa: S603 (its user's own program)

        def end(number: int, frame: FrameType | None) -> None:
            ended_by.append(number)
            process.terminate()

        # An interrupt is the program's, which is in the same group on this terminal.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGHUP, end)
        try:
            yield process
        except BaseException:
            process.terminate()
            raise


def _serve(
    process: subprocess.Popen[bytes],
    core: CoreFile,
    name: str,
    vmlinux: Path | None,
    folders: Sequence[Path],
    place: Path,
    listening: socket.socket,
    links: Path,
    lending: threading.Thread,
) -> None:
    """Serve the image for as long as a program runs, once what is lent to it is there."""
    # It takes the time in which gdb begins.
    reactor = bare_reactor()

    from kbridge.crash.core_relay import CoreRelay  # noqa: PLC0415
    from kbridge.debuginfo import layouts  # noqa: PLC0415
    from kbridge.debuginfo.finders import Finder  # noqa: PLC0415

    finder = Finder(vmlinux, folders, layouts=layouts.folder())
    relay = CoreRelay(reactor, core, name, finder, links, kept_files.folder())
    lending.join()
    relay.start(place, listening)

    def wait() -> None:
        process.wait()
        reactor.callFromThread(reactor.stop)

    reactor.callWhenRunning(threading.Thread(target=wait, daemon=True).start)
    try:
        reactor.run(installSignalHandlers=False)
    finally:
        relay.stop()


def bare_reactor() -> Any:
    """Install Twisted's reactor without its TLS, and return it.

    An image is served on a unix socket, and nothing is fetched for it: OpenSSL takes as long to load as all else of the
    reactor.  Twisted does without where it is not installed, which ``None`` says of a module (Python, ``sys.modules``).
    """
    hidden: dict[str, Any] = sys.modules
    loaded = hidden.get("OpenSSL")
    hidden["OpenSSL"] = loaded
    try:
        # Typed as a module by what installs it.
        from twisted.internet import reactor  # noqa: PLC0415
    finally:
        if loaded is None:
            del hidden["OpenSSL"]
    return reactor
