"""What is missing on this machine, and how to get it: the checks behind ``kbridge doctor``.

The checks are functions of a ``Host``, so that tests show them machines that they do not have.  They look and
never touch: nothing is made, and nothing is *connected to*.  Connecting to a stub pauses its guest, a console
or a monitor serves one client, and a client that does not read stalls the guest; ``/proc`` tells as much.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol, assert_never

from kbridge.config import Config, GuestConfig, StubKind
from kbridge.transports.endpoints import Endpoint, Pty, Rfc2217, Serial, Tcp, Telnet, Unix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kbridge.errors import ConfigError

PYTHON_NEEDED: Final = (3, 11)
DESCRIPTORS: Final = 128
"""What a relay without guests may need, with a few dozen sessions and readers."""
DESCRIPTORS_A_GUEST: Final = 16
CONSOLE_SERVERS: Final = ("conserver", "ser2net", "minicom", "screen", "picocom")


class Level(Enum):
    """How much a finding matters."""

    OK = "ok"
    WARN = "warn"
    """Something works less well, or not for all."""
    MISSING = "missing"
    """Something does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and for all but OK what to do about it."""

    level: Level
    what: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is at a path."""

    mode: int
    """``st_mode``: kind and permissions."""
    owner: str
    """The owner's name, or number where it has none."""
    readable: bool
    writable: bool


@dataclass(frozen=True, slots=True)
class SocketUse:
    """A unix socket's path in ``/proc/net/unix``."""

    listening: bool
    clients: int


class Host(Protocol):
    """The machine, as far as the checks look at it."""

    @property
    def python(self) -> tuple[int, int, int]:
        """The running Python's version."""

    @property
    def env(self) -> Mapping[str, str]:
        """The environment."""

    @property
    def descriptor_limit(self) -> tuple[int, int]:
        """The soft and the hard limit of open files; -1 is none."""

    def which(self, program: str) -> str | None:
        """Give the path of a program."""

    def output(self, *command: str) -> str | None:
        """Run a program; its output, or ``None`` when it fails or takes longer than ten seconds."""

    def facts(self, path: str) -> FileFacts | None:
        """Look at a path, following links; ``None`` when there is nothing or it may not be looked at."""

    def head(self, path: str, length: int) -> bytes:
        """Read the start of a file; empty when it cannot be read."""

    def why_not_open(self, path: str) -> str:
        """Open a device for reading and writing and close it; why that fails, or empty."""

    def socket_use(self, path: str) -> SocketUse:
        """Look a unix socket up."""

    def tcp_listens(self, port: int) -> bool:
        """Whether a program on this machine listens on a TCP port."""

    def holders(self, path: str) -> tuple[str, ...]:
        """Name the other programs that have a device open, as ``conserver (812)``."""

    def running(self, program: str) -> bool:
        """Whether a program of this name runs."""


def examine(host: Host, config: Config | ConfigError) -> list[Finding]:
    """Do all checks; ``config`` is the configuration or what is wrong with it."""
    findings = [*programs(host), *virtualization(host)]
    if not isinstance(config, Config):
        return [
            *findings,
            Finding(Level.MISSING, f"configuration: {config}", "`kbridge config explain` helps"),
        ]
    findings.append(
        Finding(Level.OK, f"configuration {config.source}: {_counted(len(config.guests), 'guest')}")
    )
    findings += [*folders(host, config), *descriptors(host, config), *debug_files(host, config)]
    relay_runs = host.socket_use(str(config.relay.runtime_dir / "control")).listening
    for name, guest in config.guests.items():
        findings += guest_lines(host, name, guest, relay_runs=relay_runs)
    return findings


def programs(host: Host) -> Iterator[Finding]:
    """Check Python, gdb and QEMU."""
    version = ".".join(map(str, host.python))
    if host.python >= PYTHON_NEEDED:
        yield Finding(Level.OK, f"Python {version}")
    else:
        yield Finding(Level.MISSING, f"Python {version} is too old", "install Python 3.11 or later")
    yield _gdb(host)
    qemu = host.which("qemu-system-x86_64")
    if qemu is None:
        yield Finding(
            Level.WARN,
            "no qemu-system-x86_64: `scripts/demo` and the tests need it, bridging other machines does not",
            "apt install qemu-system-x86",
        )
    else:
        yield Finding(Level.OK, _first_line(host.output(qemu, "--version")) or f"{qemu}, of unknown version")


def _gdb(host: Host) -> Finding:
    gdb = host.which("gdb")
    if gdb is None:
        return Finding(Level.MISSING, "no gdb: `kbridge gdb` cannot run", "apt install gdb")
    version = _first_line(host.output(gdb, "--version"))
    if not version:
        return Finding(Level.MISSING, f"{gdb} does not run", "apt install --reinstall gdb")
    if "python speaks" not in (
        host.output(gdb, "-nx", "-batch", "-ex", "python print('python speaks')") or ""
    ):
        return Finding(
            Level.WARN,
            f"{version}, without Python: the kernel's own gdb scripts do not load",
            "apt install gdb",
        )
    return Finding(Level.OK, f"{version}, with Python")


def virtualization(host: Host) -> Iterator[Finding]:
    """Check hardware virtualization; a ``/dev/kvm`` that opens is no proof of it."""
    flags = re.search(
        r"^(?:flags|Features)\s*:.*\b(vmx|svm)\b", _text(host.head("/proc/cpuinfo", 1 << 16)), re.MULTILINE
    )
    emulation = "guests are emulated, which is fast enough for debugging"
    device = host.facts("/dev/kvm")
    if device is None:
        how = "load kvm_intel or kvm_amd" if flags else "nothing to do; the machine may have it switched off"
        yield Finding(Level.WARN, f"no /dev/kvm: {emulation}", how)
    elif why := host.why_not_open("/dev/kvm"):
        yield Finding(Level.WARN, f"/dev/kvm cannot be opened ({why}): {emulation}", "adduser $USER kvm")
    elif flags is None:
        yield Finding(
            Level.WARN,
            f"/dev/kvm opens, but no processor has vmx or svm, so it cannot run a kernel: {emulation}",
            "nothing to do here; on a virtual machine, its host must allow nesting",
        )
    else:
        yield Finding(Level.OK, f"/dev/kvm opens and the processors have {flags[1]}")


def folders(host: Host, config: Config) -> Iterator[Finding]:
    """Check the state and the runtime folder."""
    for key in ("state_dir", "runtime_dir"):
        path = getattr(config.relay, key)
        what = f"{key} {path}"
        facts = host.facts(str(path))
        if facts is None:
            above = next((p for p in path.parents if host.facts(str(p)) is not None), None)
            above_facts = None if above is None else host.facts(str(above))
            if above_facts is not None and above_facts.writable:
                yield Finding(Level.OK, f"{what} will be made")
            else:
                how = f"as root: install -d -m 0700 -o $USER {path}; or set relay.{key}"
                yield Finding(Level.MISSING, f"{what} cannot be made: {above} is not writable", how)
        elif not stat.S_ISDIR(facts.mode):
            yield Finding(Level.MISSING, f"{what} is not a folder", f"remove it or set relay.{key}")
        elif not facts.writable:
            yield Finding(
                Level.MISSING, f"{what} belongs to {facts.owner} and is not writable", f"run as {facts.owner}"
            )
        elif facts.mode & 0o022 and not facts.mode & stat.S_ISVTX:
            how = f"chmod go-w {path}"
            yield Finding(Level.WARN, f"{what} may be written by others than {facts.owner}", how)
        elif key == "state_dir" and facts.mode & 0o055:
            how = f"chmod 0700 {path}"
            yield Finding(Level.WARN, f"{what}: others than {facts.owner} may read the consoles there", how)
        else:
            yield Finding(Level.OK, f"{what} is writable")


def descriptors(host: Host, config: Config) -> Iterator[Finding]:
    """Check the limit of open files against the number of guests."""
    soft, hard = host.descriptor_limit
    needed = DESCRIPTORS + DESCRIPTORS_A_GUEST * len(config.guests)
    if soft in range(needed):
        can = hard < 0 or hard >= needed
        how = f"ulimit -n {needed}" if can else f"as root, or LimitNOFILE={needed} in the systemd unit"
        guests = _counted(len(config.guests), "guest")
        yield Finding(Level.WARN, f"{soft} files may be open, and {guests} may need {needed}", how)
    else:
        yield Finding(
            Level.OK, "any number of files may be open" if soft < 0 else f"{soft} files may be open"
        )


def debug_files(host: Host, config: Config) -> Iterator[Finding]:
    """Check that names and source lines can be had."""
    for name, guest in config.guests.items():
        if guest.vmlinux is not None:
            yield _vmlinux(host, f"{name}: vmlinux {guest.vmlinux}", str(guest.vmlinux))
    places = list(dict.fromkeys(path for g in config.guests.values() for path in g.debug_dirs))
    for path in places:
        if host.facts(str(path)) is None:
            how = "correct the path, or leave it out"
            yield Finding(Level.WARN, f"debug_dirs: there is no {path}", how)
    served = [path for path in (*places, *config.relay.debug_dirs) if host.facts(str(path / ".build-id"))]
    if served:
        yield Finding(Level.OK, f"debug files by build-id in {', '.join(map(str, served))}")
    elif config.relay.debuginfod_urls:
        yield Finding(Level.OK, f"debug files come from {', '.join(config.relay.debuginfod_urls)}")
    elif host.env.get("DEBUGINFOD_URLS"):
        yield Finding(Level.OK, "debug files come from debuginfod (DEBUGINFOD_URLS)")
    elif any(guest.vmlinux is None for guest in config.guests.values()):
        yield Finding(
            Level.WARN,
            "no folder in debug_dirs has debug files: backtraces of guests without `vmlinux` have no names",
            "install the kernel's debug package (linux-image-…-dbg), name its vmlinux in `vmlinux`, or a server in "
            "`debuginfod_urls`",
        )


def _vmlinux(host: Host, what: str, path: str) -> Finding:
    facts = host.facts(path)
    if facts is None:
        return Finding(
            Level.MISSING, f"{what} is not there", "install the kernel's debug package, or leave it out"
        )
    if not facts.readable:
        return Finding(Level.MISSING, f"{what} may not be read", f"it belongs to {facts.owner}")
    if host.head(path, 4) != b"\x7fELF":
        how = "name the uncompressed vmlinux with symbols, not the kernel image that boots"
        return Finding(Level.MISSING, f"{what} is not an ELF file", how)
    return Finding(Level.OK, what)


def guest_lines(host: Host, name: str, guest: GuestConfig, *, relay_runs: bool) -> Iterator[Finding]:
    """Check what a guest's monitor, console and stub are at; ``relay_runs``: then their client is the relay."""
    if guest.qmp is not None:
        yield _line(host, f"{name}: qmp {guest.qmp}", guest.qmp, relay_runs=relay_runs)
    if guest.console is not None:
        yield _line(host, f"{name}: console {guest.console}", guest.console, relay_runs=relay_runs)
    if not isinstance(guest.stub, StubKind):
        yield _line(host, f"{name}: stub {guest.stub}", guest.stub, relay_runs=relay_runs)
    if guest.qmp is None and guest.console is None and guest.stub is StubKind.NONE:
        how = "give it qmp, console or stub"
        yield Finding(Level.WARN, f"{name} has neither monitor nor console nor stub: nothing to bridge", how)


def _line(host: Host, what: str, endpoint: Endpoint, *, relay_runs: bool) -> Finding:
    match endpoint:
        case Unix(path):
            return _unix(host, what, path, relay_runs=relay_runs)
        case Pty(path) | Serial(path, _):
            return _device(host, what, path, relay_runs=relay_runs)
        case Tcp(address, port) | Telnet(address, port) | Rfc2217(address, port, _):
            if address not in {"localhost", "127.0.0.1", "::1"}:
                return Finding(Level.OK, f"{what} is on another machine and was not tried")
            if host.tcp_listens(port):
                return Finding(Level.OK, f"{what}: something listens there")
            return Finding(Level.MISSING, f"{what}: nothing listens there", "start the machine")
        case _:
            assert_never(endpoint)


def _unix(host: Host, what: str, path: str, *, relay_runs: bool) -> Finding:
    facts = host.facts(path)
    if facts is None:
        how = "start the machine, or correct the path; the folder must be readable for this user"
        return Finding(Level.MISSING, f"{what} is not there", how)
    if not stat.S_ISSOCK(facts.mode):
        return Finding(Level.MISSING, f"{what} is not a socket", "correct the path")
    if not facts.writable:
        how = f"run kbridge as {facts.owner}, or give its user write access to the socket"
        return Finding(Level.MISSING, f"{what} belongs to {facts.owner}, and this user may not connect", how)
    use = host.socket_use(path)
    if not use.listening:
        return Finding(Level.MISSING, f"{what} is left over: no program listens there", "start the machine")
    if use.clients and not relay_runs:
        return Finding(
            Level.WARN,
            f"{what} is in use by another program{_suspects(host)}, and serves one client",
            "end that program, or give the machine another socket for kbridge",
        )
    return Finding(
        Level.OK, f"{what} listens, owner {facts.owner}{', in use by the relay' if use.clients else ''}"
    )


def _device(host: Host, what: str, path: str, *, relay_runs: bool) -> Finding:
    facts = host.facts(path)
    if facts is None:
        return Finding(Level.MISSING, f"{what} is not there", "start the machine, or plug the device in")
    if not stat.S_ISCHR(facts.mode):
        return Finding(Level.MISSING, f"{what} is not a terminal device", "correct the path")
    if not (facts.readable and facts.writable):
        how = "adduser $USER dialout" if not path.startswith("/dev/pts/") else f"run kbridge as {facts.owner}"
        return Finding(Level.MISSING, f"{what} belongs to {facts.owner}, and this user may not open it", how)
    holders = host.holders(path)
    if holders and not relay_runs:
        return Finding(
            Level.WARN,
            f"{what} is open in {', '.join(holders)}: two readers would each get half of the bytes",
            "end that program, or let kbridge be its client (telnet: or rfc2217:)",
        )
    return Finding(Level.OK, f"{what} can be opened")


def _suspects(host: Host) -> str:
    found = [program for program in CONSOLE_SERVERS if host.running(program)]
    return f" ({' or '.join(found)} runs here)" if found else ""


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0].strip()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
