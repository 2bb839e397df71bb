"""The machine that we run on, as ``kbridge doctor`` looks at it: ``doctor.Host`` from ``/proc``, files, programs.

It blocks (programs run for up to ten seconds): for the command line, not for the relay.
"""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kbridge.doctor import FileFacts, SocketUse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROGRAM_SECONDS: Final = 10
_PROC: Final = Path("/proc")
# /proc/net/unix: the flag of a listening socket, and the state of a connected one (linux/net.h).
_ACCEPTS_CONNECTIONS: Final = 0x10000
_CONNECTED: Final = 3
# /proc/net/tcp: TCP_LISTEN (net/tcp_states.h).
_TCP_LISTEN: Final = 0x0A


class ThisHost:
    """The machine that this process runs on."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    @property
    def python(self) -> tuple[int, int, int]:
        """The running Python's version."""
        return sys.version_info[:3]

    @property
    def env(self) -> Mapping[str, str]:
        """The environment."""
        return self._env

    @property
    def descriptor_limit(self) -> tuple[int, int]:
        """The soft and the hard limit of open files; -1 is none."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    def which(self, program: str) -> str | None:
        """Give the path of a program."""
        return shutil.which(program, path=self._env.get("PATH"))

    def output(self, *command: str) -> str | None:
        """Run a program; its output, or ``None`` when it fails or takes longer than ``PROGRAM_SECONDS``."""
        try:
            done = subprocess.run(  # noqa: S603  # what runs is named by the checks, never by a user
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=PROGRAM_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.decode("utf-8", "replace")

    def facts(self, path: str) -> FileFacts | None:
        """Look at a path, following links; ``None`` when there is nothing or it may not be looked at."""
        try:
            found = Path(path).stat()
        except OSError:
            return None
        try:
            owner = pwd.getpwuid(found.st_uid).pw_name
        except KeyError:
            owner = str(found.st_uid)
        return FileFacts(found.st_mode, owner, os.access(path, os.R_OK), os.access(path, os.W_OK))

    def head(self, path: str, length: int) -> bytes:
        """Read the start of a file; empty when it cannot be read."""
        try:
            with Path(path).open("rb") as file:
                return file.read(length)
        except OSError:
            return b""

    def why_not_open(self, path: str) -> str:
        """Open a device for reading and writing and close it; why that fails, or empty."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK))
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def socket_use(self, path: str) -> SocketUse:
        """Look a unix socket up in ``/proc/net/unix``."""
        # The kernel keeps the path as the listener spelled it.
        real, base = os.path.realpath(path), os.path.basename(path)  # noqa: PTH119
        listening, clients = False, 0
        for line in _lines(_PROC / "net/unix"):
            fields = line.split(maxsplit=7)
            if len(fields) < 8 or not fields[7].endswith(base):
                continue
            if os.path.realpath(fields[7]) == real:
                listening = listening or bool(int(fields[3], 16) & _ACCEPTS_CONNECTIONS)
                clients += int(fields[5], 16) == _CONNECTED
        return SocketUse(listening, clients)

    def tcp_listens(self, port: int) -> bool:
        """Whether a program on this machine listens on a TCP port, of whatever address."""
        for name in ("net/tcp", "net/tcp6"):
            for line in _lines(_PROC / name):
                fields = line.split()
                if int(fields[3], 16) == _TCP_LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    return True
        return False

    def holders(self, path: str) -> tuple[str, ...]:
        """Name the other programs that have a device open; those of other users only for root."""
        real = os.path.realpath(path)
        found = []
        for process in _processes():
            if process.name == str(os.getpid()):
                continue
            try:
                targets = {str(entry.readlink()) for entry in (process / "fd").iterdir()}
            except OSError:
                continue
            if real in targets:
                found.append(f"{_name(process)} ({process.name})")
        return tuple(found)

    def running(self, program: str) -> bool:
        """Whether a program of this name runs."""
        return any(_name(process) == program for process in _processes())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "surrogateescape").splitlines()[1:]
    except OSError:
        return []


def _processes() -> Iterator[Path]:
    return (entry for entry in _PROC.iterdir() if entry.name.isdigit())


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        return ""
