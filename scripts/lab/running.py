"""Starting a guest, saying where it is, and staying with it until it ends."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import debian, lifetime, monitor
from lab.errors import LabError
from lab.machine import CONSOLE_ID, Machine, Places

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.builds import Build

_START_SECONDS = 30.0
_POLL_SECONDS = 0.02
_LOCK_SECONDS = 5.0
_LONGEST_BASE = 64


@dataclass(frozen=True, slots=True)
class Started:
    """A QEMU whose monitor answers."""

    machine: Machine
    process: subprocess.Popen[bytes]
    console: str

    def report(self, build: Build) -> str:
        """One line of JSON for whoever asked for the guest."""
        places = self.machine.places
        return json.dumps(
            {
                "name": self.machine.name,
                "version": build.description.version,
                "release": build.description.release,
                "pid": self.process.pid,
                "dir": str(places.folder),
                "qmp": f"unix:{places.qmp}",
                "console": self.console,
                "console_id": CONSOLE_ID,
                "console2": f"unix:{places.serial2}" if self.machine.second_serial else None,
                "kgdb": f"unix:{places.kgdb}" if self.machine.kgdb_port else None,
                "stub": f"unix:{places.gdb}" if self.machine.stub else None,
                **build.files(),
                "append": self.machine.append,
                "log": str(places.log),
            }
        )


def make_folder() -> Path:
    """A new folder that only we may enter, with a short path."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    # A socket's path has little room, and QEMU's options none for a comma.
    fits = base.startswith("/") and len(base) < _LONGEST_BASE and "," not in base
    usable = fits and os.access(base, os.W_OK | os.X_OK)
    return Path(tempfile.mkdtemp(prefix="kbg-", dir=base if usable else "/tmp"))


def _take(places: Places) -> int:
    """A lock that lasts as long as the QEMU that inherits it, so that two never share a folder."""
    descriptor = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A QEMU that was just killed holds it until the kernel has taken it apart.
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise LabError(
                    f"{places.folder} is in use by a running guest; end that one, or give another --dir"
                ) from None
            time.sleep(_POLL_SECONDS)
        else:
            return descriptor


def start(machine: Machine, prepare: Callable[[], None], *, detach: bool) -> Started:
    """QEMU, running, its monitor free; LabError with its words if it fails. Replaces stale sockets.

    `prepare` is called before that, when the folder is ours.
    """
    places = machine.places
    lock = _take(places)
    try:
        prepare()
        for path in places.sockets():
            path.unlink(missing_ok=True)
        with places.log.open("wb") as log:
            try:
                process = subprocess.Popen(
                    machine.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(lock,),
                    start_new_session=True,
                    preexec_fn=lifetime.child_setup(detach=detach),  # noqa: PLW1509 - this process has one thread
                )
            except FileNotFoundError as error:
                raise LabError(
                    f"{machine.board.program} is missing; run scripts/setup, or: "
                    f"sudo apt-get install {machine.board.package}"
                ) from error
    finally:
        os.close(lock)
    try:
        filename = _first_answer(process, places)
        endpoint = monitor.console_endpoint(machine.console, filename, places.serial)
    except BaseException:
        lifetime.stop(process)
        raise
    return Started(machine, process, endpoint)


def _first_answer(process: subprocess.Popen[bytes], places: Places) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return monitor.console_filename(places.qmp)
        except OSError as error:
            if process.poll() is not None:
                raise LabError(f"QEMU did not start: {_said(places)}") from error
            if time.monotonic() > deadline:
                raise LabError(
                    f"QEMU's monitor did not answer within {_START_SECONDS:.0f} s; see {places.log}"
                ) from error
        time.sleep(_POLL_SECONDS)


def _said(places: Places) -> str:
    return debian.last_line(places.log.read_text(errors="replace"))


def block_signals() -> None:
    """Hold back requests to end until we can act on them, so that no folder is left behind."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def run(machine: Machine, build: Build, prepare: Callable[[], None], *, detach: bool, temporary: bool) -> int:
    """Start a machine, print its report, stay until it ends. `temporary`: its folder goes then."""
    parent = os.getppid()
    block_signals()
    if not detach:
        lifetime.die_with_parent(signal.SIGTERM, parent)
    # Before anything is said: whoever reads that may close our input at once.
    line = None if detach else lifetime.lifeline()
    done = False
    try:
        started = start(machine, prepare, detach=detach)
        try:
            print(started.report(build), flush=True)
            done = detach
            return 0 if detach else _stay(started, line)
        finally:
            if not done:
                lifetime.stop(started.process)
    finally:
        if temporary and not done:
            shutil.rmtree(machine.places.folder)


def _stay(started: Started, line: int | None) -> int:
    process = started.process
    if not lifetime.wait(process, line):
        return 0
    status = process.wait()
    if status < 0:
        print(f"guest: QEMU was ended by {signal.Signals(-status).name}", file=sys.stderr)
        return 1
    if status:
        print(f"guest: QEMU ended with status {status}: {_said(started.machine.places)}", file=sys.stderr)
        return 1
    return 0
