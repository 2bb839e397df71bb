"""One virtual machine: its QEMU command line and the folder that holds its sockets; runs nothing."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

from lab.errors import LabError

# sun_path of sockaddr_un holds 108 bytes with its end marker.
_SOCKET_PATH_LIMIT = 107
CONSOLE_ID = "console"
KGDB_PARAMETER = "kgdboc=ttyS1,115200"
"""The kernel's parameter that puts kgdb on the second serial port; the console stays on the first."""


@dataclass(frozen=True, slots=True)
class Board:
    """What a machine is before it has a disk or a kernel: QEMU's program, its package, arguments for it."""

    program: str
    package: str
    arguments: tuple[str, ...]


PC = Board("qemu-system-x86_64", "qemu-system-x86", ("-machine", "pc"))


class ConsoleBackend(enum.Enum):
    """What the guest's first serial port is connected to."""

    UNIX = "unix"
    PTY = "pty"
    TELNET = "telnet"


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one machine, all in its own folder."""

    folder: Path

    def __post_init__(self) -> None:
        longest = max(len(bytes(path)) for path in self.sockets())
        if longest > _SOCKET_PATH_LIMIT:
            raise LabError(
                f"{self.folder} is too long for a socket in it: {longest} bytes instead of {_SOCKET_PATH_LIMIT}; "
                "give a shorter --dir"
            )
        if any(character in str(self.folder) for character in ",\n"):
            raise LabError(
                f"{self.folder}: QEMU's options cannot hold a path with a comma; give another --dir"
            )

    @property
    def qmp(self) -> Path:
        return self.folder / "qmp.sock"

    @property
    def serial(self) -> Path:
        return self.folder / "serial.sock"

    @property
    def serial2(self) -> Path:
        return self.folder / "serial2.sock"

    @property
    def kgdb(self) -> Path:
        return self.folder / "kgdb.sock"

    @property
    def gdb(self) -> Path:
        return self.folder / "gdb.sock"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def log(self) -> Path:
        return self.folder / "qemu.log"

    @property
    def disk(self) -> Path:
        return self.folder / "disk.img"

    @property
    def firmware(self) -> Path:
        """What a firmware writes its settings to."""
        return self.folder / "firmware.fd"

    def sockets(self) -> tuple[Path, ...]:
        return (self.qmp, self.serial, self.serial2, self.kgdb, self.gdb)


@dataclass(frozen=True, slots=True)
class Machine:
    """All that shapes the virtual machine. `memory` is in MiB; `extra` are arguments for QEMU as they are.

    It is started with a `kernel`, an `initrd` and a command line, or boots from `disk`, which is its own to write to.

    The second serial port, ttyS1, is a plain one or kgdb's: there is one of them.
    """

    name: str
    places: Places
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    disk: Path | None = None
    board: Board = PC
    memory: int = 256
    processors: int = 2
    console: ConsoleBackend = ConsoleBackend.UNIX
    second_serial: bool = False
    kgdb_port: bool = False
    stub: bool = False
    stopped: bool = False
    vmcoreinfo: bool = True
    extra: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """The argument vector."""
        for path in (self.kernel, self.initrd, self.disk):
            if "," in str(path or ""):
                raise LabError(f"{path}: QEMU's options cannot hold a path with a comma; set XDG_CACHE_HOME")
        return [
            self.board.program,
            *("-name", self.name, *self.board.arguments, "-accel", "tcg"),
            *("-no-user-config", "-nodefaults", "-display", "none"),
            *("-m", str(self.memory), "-smp", str(self.processors)),
            *self._boot(),
            *("-chardev", f"socket,id=qmp,path={self.places.qmp},server=on,wait=off"),
            *("-mon", "chardev=qmp,mode=control"),
            *("-chardev", self._console(), "-serial", f"chardev:{CONSOLE_ID}"),
            *(_serial("serial2", self.places.serial2) if self.second_serial else ()),
            *(_serial("kgdb", self.places.kgdb) if self.kgdb_port else ()),
            *("-device", "pvpanic-pci", "-action", "panic=pause"),
            *(("-device", "vmcoreinfo") if self.vmcoreinfo else ()),
            *("-device", "virtio-serial-pci,id=virtio-serial0"),
            *("-object", "rng-builtin,id=rng0", "-device", "virtio-rng-pci,rng=rng0"),
            *("-blockdev", self._disk()),
            *("-device", "virtio-blk-pci,drive=disk0"),
            *("-nic", "none"),
            *(("-gdb", f"unix:{self.places.gdb},server=on,wait=off") if self.stub else ()),
            *(("-S",) if self.stopped else ()),
            *self.extra,
        ]

    def _boot(self) -> tuple[str, ...]:
        if self.kernel is None:
            return ()
        initrd = () if self.initrd is None else ("-initrd", str(self.initrd))
        return ("-kernel", str(self.kernel), *initrd, "-append", self.append)

    def _disk(self) -> str:
        if self.disk is None:
            return "driver=null-co,node-name=disk0,size=67108864,read-zeroes=on"
        return f"driver=raw,node-name=disk0,file.driver=file,file.filename={self.disk}"

    def _console(self) -> str:
        match self.console:
            case ConsoleBackend.UNIX:
                return f"socket,id={CONSOLE_ID},path={self.places.serial},server=on,wait=off"
            case ConsoleBackend.PTY:
                return f"pty,id={CONSOLE_ID}"
            case ConsoleBackend.TELNET:
                return f"socket,id={CONSOLE_ID},host=127.0.0.1,port=0,server=on,wait=off,telnet=on"


def _serial(name: str, path: Path) -> tuple[str, ...]:
    chardev = f"socket,id={name},path={path},server=on,wait=off"
    return ("-chardev", chardev, "-serial", f"chardev:{name}")


def command_line(*parts: str) -> str:
    """The kernel's command line of a test guest."""
    return " ".join(["console=ttyS0", *(part for part in parts if part)])
