"""gdb on a memory image: a relay for it in this process, for as long as gdb runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbridge.commands.gdb_command import gdb_arguments
from kbridge.errors import KbridgeError

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
    # The reactor is installed for good as it is loaded.
    from twisted.internet import reactor  # noqa: PLC0415

    from kbridge.crash.core_file import CoreFile  # noqa: PLC0415
    from kbridge.crash.core_relay import CoreRelay  # noqa: PLC0415
    from kbridge.debuginfo.finders import Finder  # noqa: PLC0415

    core = CoreFile.open(path)
    with tempfile.TemporaryDirectory(prefix="kbridge-") as folder:
        socket, links = Path(folder, "gdb"), Path(folder, "debug")
        links.mkdir()
        relay = CoreRelay(reactor, core, name, Finder(vmlinux, folders), links)
        relay.start(socket)
        status = {
            "debug_dirs": [*map(str, folders), str(links)],
            "vmlinux": None if vmlinux is None else str(vmlinux),
        }
        try:
            return _serve(reactor, [found, *gdb_arguments(status, str(socket)), *arguments])
        finally:
            relay.stop()
            core.close()


def _serve(reactor: Any, command: Sequence[str]) -> int:
    """Run a program on this terminal, and the reactor as long as it runs; return its exit status."""
    process = subprocess.Popen(command)  # noqa: S603 (its user's own program)
    # An interrupt is the program's, which is in the same group on this terminal; what ends us ends it too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)

    def end(number: int, frame: FrameType | None) -> None:
        process.terminate()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)

    def wait() -> None:
        process.wait()
        reactor.callFromThread(reactor.stop)

    reactor.callWhenRunning(threading.Thread(target=wait, daemon=True).start)
    reactor.run(installSignalHandlers=False)
    status = process.returncode
    # As a shell tells it.
    return 128 - status if status < 0 else int(status or os.EX_OK)
