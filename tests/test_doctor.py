"""`kbridge doctor`: each check shown machines that lack what it looks for, and this one as it is."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kbridge.config import Config, parse
from kbridge.doctor import (
    FileFacts,
    Finding,
    Host,
    Level,
    SocketUse,
    debug_files,
    descriptors,
    examine,
    folders,
    guest_lines,
    programs,
    virtualization,
)
from kbridge.errors import ConfigError
from kbridge.host import ThisHost

SOCKET = FileFacts(stat.S_IFSOCK | 0o600, "qemu", readable=True, writable=True)
FOLDER = FileFacts(stat.S_IFDIR | 0o700, "root", readable=True, writable=True)
FILE = FileFacts(stat.S_IFREG | 0o644, "root", readable=True, writable=True)
TERMINAL = FileFacts(stat.S_IFCHR | 0o660, "root", readable=True, writable=True)
LISTENS = SocketUse(listening=True, clients=0)


@dataclass
class FakeHost:
    """A machine that has what a test gives it, and nothing else."""

    python: tuple[int, int, int] = (3, 12, 1)
    env: Mapping[str, str] = field(default_factory=dict)
    descriptor_limit: tuple[int, int] = (1024, 4096)
    files: dict[str, FileFacts] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    sockets: dict[str, SocketUse] = field(default_factory=dict)
    ports: set[int] = field(default_factory=set)
    held: dict[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    processes: set[str] = field(default_factory=set)
    open_error: str = ""

    def which(self, program: str) -> str | None:
        return f"/usr/bin/{program}" if any(f"/usr/bin/{program} " in each for each in self.outputs) else None

    def output(self, *command: str) -> str | None:
        return self.outputs.get(" ".join(command))

    def facts(self, path: str) -> FileFacts | None:
        return self.files.get(path)

    def head(self, path: str, length: int) -> bytes:
        return self.contents.get(path, b"")[:length]

    def why_not_open(self, path: str) -> str:
        return self.open_error

    def socket_use(self, path: str) -> SocketUse:
        return self.sockets.get(path, SocketUse(listening=False, clients=0))

    def tcp_listens(self, port: int) -> bool:
        return port in self.ports

    def holders(self, path: str) -> tuple[str, ...]:
        return self.held.get(path, ())

    def running(self, program: str) -> bool:
        return program in self.processes


GDB = "/usr/bin/gdb --version"
GDB_PYTHON = "/usr/bin/gdb -nx -batch -ex python print('python speaks')"
QEMU = "/usr/bin/qemu-system-x86_64 --version"


def config(text: str = "") -> Config:
    return parse(text.encode(), Path("/etc/kbridge/kbridge.toml"), {}, uid=0)


def one(findings: list[Finding]) -> Finding:
    [finding] = findings
    assert (finding.level is Level.OK) == (not finding.todo)
    return finding


def line(host: FakeHost, key: str, endpoint: str, *, relay_runs: bool = False) -> Finding:
    guest = config(f'[guests.a]\n{key} = "{endpoint}"\nstub = "none"').guests["a"]
    return one(list(guest_lines(host, "a", guest, relay_runs=relay_runs)))


def test_programs_that_are_there() -> None:
    host: Host = FakeHost(
        outputs={
            GDB: "GNU gdb 13.1\nCopyright",
            GDB_PYTHON: "python speaks\n",
            QEMU: "QEMU emulator version 7.2\n",
        }
    )
    found = list(programs(host))
    assert [f.level for f in found] == [Level.OK] * 3
    assert [f.what for f in found] == [
        "Python 3.12.1",
        "GNU gdb 13.1, with Python",
        "QEMU emulator version 7.2",
    ]


def test_programs_that_are_missing_are_named_with_the_command_that_installs_them() -> None:
    found = list(programs(FakeHost(python=(3, 9, 2))))
    assert [f.level for f in found] == [Level.MISSING, Level.MISSING, Level.WARN]
    assert [f.todo for f in found] == [
        "install Python 3.11 or later",
        "apt install gdb",
        "apt install qemu-system-x86",
    ]


def test_a_gdb_that_lacks_python_or_does_not_run() -> None:
    _, gdb, _ = programs(
        FakeHost(outputs={GDB: "GNU gdb 13.1\n", GDB_PYTHON: "Scripting in Python is not supported"})
    )
    assert (gdb.level, "without Python" in gdb.what) == (Level.WARN, True)
    _, gdb, _ = programs(FakeHost(outputs={GDB: ""}))
    assert (gdb.level, "does not run" in gdb.what) == (Level.MISSING, True)


@pytest.mark.parametrize(
    ("device", "error", "flags", "level", "words"),
    [
        (True, "", b"fpu vmx sse", Level.OK, "have vmx"),
        (True, "", b"fpu svm", Level.OK, "have svm"),
        (True, "", b"fpu vmx_like sse", Level.WARN, "cannot run a kernel"),
        (True, "Permission denied", b"vmx", Level.WARN, "Permission denied"),
        (False, "", b"vmx", Level.WARN, "no /dev/kvm"),
        (False, "", b"", Level.WARN, "no /dev/kvm"),
    ],
)
def test_kvm_is_believed_only_with_a_processor_for_it(
    device: bool, error: str, flags: bytes, level: Level, words: str
) -> None:
    host = FakeHost(
        open_error=error, contents={"/proc/cpuinfo": b"processor\t: 0\nflags\t\t: " + flags + b"\n"}
    )
    if device:
        host.files["/dev/kvm"] = TERMINAL
    finding = one(list(virtualization(host)))
    assert finding.level is level
    assert words in finding.what


def test_folders_as_they_should_be_or_that_can_be_made() -> None:
    host = FakeHost(files={"/var/lib/kbridge": FOLDER, "/run": FOLDER})
    found = list(folders(host, config()))
    assert [f.level for f in found] == [Level.OK, Level.OK]
    assert "will be made" in found[1].what


@pytest.mark.parametrize(
    ("facts", "level", "words", "todo"),
    [
        (FileFacts(stat.S_IFDIR | 0o700, "ann", True, False), Level.MISSING, "belongs to ann", "run as ann"),
        (FILE, Level.MISSING, "not a folder", "set relay."),
        (FileFacts(stat.S_IFDIR | 0o777, "ann", True, True), Level.WARN, "written by others", "chmod go-w"),
        (FileFacts(stat.S_IFDIR | 0o755, "ann", True, True), Level.WARN, "read the consoles", "chmod 0700"),
    ],
)
def test_a_state_folder_that_is_not_as_it_should_be(
    facts: FileFacts, level: Level, words: str, todo: str
) -> None:
    finding = next(folders(FakeHost(files={"/var/lib/kbridge": facts, "/run/kbridge": FOLDER}), config()))
    assert finding.level is level
    assert words in finding.what
    assert todo in finding.todo


def test_a_folder_that_cannot_be_made() -> None:
    closed = FileFacts(stat.S_IFDIR | 0o755, "root", readable=True, writable=False)
    state, runtime = folders(FakeHost(files={"/": closed}), config())
    assert (state.level, runtime.level) == (Level.MISSING, Level.MISSING)
    assert "/var/lib/kbridge" in state.todo


def test_the_limit_of_open_files_grows_with_the_guests() -> None:
    many = config("\n".join(f"[guests.g{n}]" for n in range(100)))
    assert one(list(descriptors(FakeHost(), config()))).level is Level.OK
    finding = one(list(descriptors(FakeHost(), many)))
    assert (finding.level, finding.todo) == (Level.WARN, "ulimit -n 1728")
    assert "systemd" in one(list(descriptors(FakeHost(descriptor_limit=(1024, 1024)), many))).todo
    assert one(list(descriptors(FakeHost(descriptor_limit=(-1, -1)), many))).level is Level.OK


def test_debug_files() -> None:
    assert list(debug_files(FakeHost(), config())) == []
    bare = config("[guests.a]")
    assert one(list(debug_files(FakeHost(), bare))).level is Level.WARN
    assert one(list(debug_files(FakeHost(env={"DEBUGINFOD_URLS": "x"}), bare))).level is Level.OK
    fetched = config('[relay]\ndebuginfod_urls = ["https://d.example"]\n[guests.a]')
    assert "https://d.example" in one(list(debug_files(FakeHost(), fetched))).what
    with_ids = FakeHost(files={"/usr/lib/debug/.build-id": FOLDER})
    assert one(list(debug_files(with_ids, bare))).level is Level.OK
    named = config('[guests.a]\nvmlinux = "/v"\ndebug_dirs = ["/d"]')
    elf = FakeHost(files={"/v": FILE, "/d": FOLDER}, contents={"/v": b"\x7fELF\x02"})
    assert one(list(debug_files(elf, named))).level is Level.OK


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (FakeHost(), "is not there"),
        (FakeHost(files={"/v": FileFacts(stat.S_IFREG, "root", False, False)}), "may not be read"),
        (FakeHost(files={"/v": FILE}, contents={"/v": b"MZ\x00\x00"}), "is not an ELF file"),
    ],
)
def test_a_vmlinux_that_is_of_no_use(host: FakeHost, words: str) -> None:
    host.files["/d"] = FOLDER
    finding = one(list(debug_files(host, config('[guests.a]\nvmlinux = "/v"\ndebug_dirs = ["/d"]'))))
    assert finding.level is Level.MISSING
    assert words in finding.what


def test_a_debug_folder_that_is_not_there() -> None:
    finding, _ = debug_files(FakeHost(), config('[guests.a]\ndebug_dirs = ["/d"]'))
    assert (finding.level, "there is no /d" in finding.what) == (Level.WARN, True)


@pytest.mark.parametrize(
    ("host", "level", "words"),
    [
        (FakeHost(), Level.MISSING, "is not there"),
        (FakeHost(files={"/s": FILE}), Level.MISSING, "is not a socket"),
        (
            FakeHost(files={"/s": FileFacts(stat.S_IFSOCK, "qemu", True, False)}),
            Level.MISSING,
            "belongs to qemu",
        ),
        (FakeHost(files={"/s": SOCKET}), Level.MISSING, "left over"),
        (FakeHost(files={"/s": SOCKET}, sockets={"/s": LISTENS}), Level.OK, "owner qemu"),
        (
            FakeHost(
                files={"/s": SOCKET},
                sockets={"/s": SocketUse(listening=True, clients=1)},
                processes={"conserver"},
            ),
            Level.WARN,
            "another program (conserver runs here)",
        ),
    ],
)
@pytest.mark.parametrize("key", ["console", "qmp"])
def test_a_unix_socket(host: FakeHost, level: Level, words: str, key: str) -> None:
    finding = line(host, key, "unix:/s")
    assert finding.level is level
    assert words in finding.what


def test_what_the_relay_itself_uses_is_as_it_should_be() -> None:
    host = FakeHost(files={"/s": SOCKET}, sockets={"/s": SocketUse(listening=True, clients=1)})
    assert "in use by the relay" in line(host, "console", "unix:/s", relay_runs=True).what
    host = FakeHost(files={"/dev/ttyS0": TERMINAL}, held={"/dev/ttyS0": ("kbridge (7)",)})
    assert line(host, "console", "serial:/dev/ttyS0:9600", relay_runs=True).level is Level.OK


@pytest.mark.parametrize(
    ("host", "level", "words"),
    [
        (FakeHost(), Level.MISSING, "is not there"),
        (FakeHost(files={"/dev/ttyS0": FILE}), Level.MISSING, "not a terminal"),
        (
            FakeHost(files={"/dev/ttyS0": FileFacts(stat.S_IFCHR, "root", True, False)}),
            Level.MISSING,
            "may not open",
        ),
        (
            FakeHost(files={"/dev/ttyS0": TERMINAL}, held={"/dev/ttyS0": ("conserver (8)",)}),
            Level.WARN,
            "open in conserver (8)",
        ),
        (FakeHost(files={"/dev/ttyS0": TERMINAL}), Level.OK, "can be opened"),
    ],
)
def test_a_serial_device(host: FakeHost, level: Level, words: str) -> None:
    finding = line(host, "console", "serial:/dev/ttyS0:9600")
    assert finding.level is level
    assert words in finding.what


def test_network_lines_are_never_connected_to() -> None:
    assert line(FakeHost(ports={4000}), "console", "telnet:localhost:4000").level is Level.OK
    assert line(FakeHost(), "console", "tcp:127.0.0.1:4000").level is Level.MISSING
    assert "was not tried" in line(FakeHost(), "console", "rfc2217:far.example:4000").what


def test_a_guest_without_anything() -> None:
    finding = one(list(guest_lines(FakeHost(), "a", config("[guests.a]").guests["a"], relay_runs=False)))
    assert (finding.level, "nothing to bridge" in finding.what) == (Level.WARN, True)


def test_an_endpoint_as_stub_is_looked_at_and_never_connected_to() -> None:
    guest = config('[guests.a]\nstub = "unix:/s"').guests["a"]
    host = FakeHost(files={"/s": SOCKET}, sockets={"/s": LISTENS})
    assert "a: stub unix:/s listens" in one(list(guest_lines(host, "a", guest, relay_runs=False))).what


def test_a_configuration_that_is_wrong_is_a_finding_and_the_rest_is_still_checked() -> None:
    found = examine(FakeHost(), ConfigError("no file", todo="write one"))
    assert found[-1].level is Level.MISSING
    assert "no file" in found[-1].what
    assert len(found) == 5


def test_everything_at_once_on_this_machine(tmp_path: Path) -> None:
    text = f"""
        [relay]
        state_dir = "{tmp_path}/state"
        runtime_dir = "{tmp_path}/run"
        [guests.a]
        console = "unix:{tmp_path}/console"
        qmp = "unix:{tmp_path}/qmp"
    """
    with socket.socket(socket.AF_UNIX) as console, socket.socket(socket.AF_UNIX) as client:
        console.bind(f"{tmp_path}/console")
        console.listen()
        client.connect(f"{tmp_path}/console")
        accepted, _ = console.accept()
        with accepted:
            found = examine(ThisHost(os.environ), config(text))
    texts = {f.what: f.level for f in found}
    assert texts[f"state_dir {tmp_path}/state will be made"] is Level.OK
    assert texts[f"a: qmp unix:{tmp_path}/qmp is not there"] is Level.MISSING
    assert any(what.startswith("a: console") and level is Level.WARN for what, level in texts.items())
    assert any(what.startswith("Python 3.") and level is Level.OK for what, level in texts.items())
    assert all(f.todo for f in found if f.level is not Level.OK)
    assert list(tmp_path.iterdir()) == [tmp_path / "console"]


def test_sockets_and_ports_of_this_machine(tmp_path: Path) -> None:
    host: Host = ThisHost(os.environ)
    path = f"{tmp_path}/s"
    (tmp_path / "link").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        assert host.socket_use(path) == SocketUse(listening=False, clients=0)
        server.listen()
        assert host.socket_use(path) == LISTENS
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            accepted, _ = server.accept()
            with accepted:
                assert host.socket_use(f"{tmp_path}/link/s") == SocketUse(listening=True, clients=1)
    assert host.socket_use(path) == SocketUse(listening=False, clients=0)
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        assert not host.tcp_listens(port)
        tcp.listen()
        assert host.tcp_listens(port)


def test_facts_of_this_machine(tmp_path: Path) -> None:
    host = ThisHost({"PATH": "/nowhere"})
    assert host.which("sh") is None
    assert host.facts(f"{tmp_path}/none") is None
    facts = host.facts(str(tmp_path))
    assert facts is not None
    assert stat.S_ISDIR(facts.mode)
    assert facts.writable
    assert host.head(f"{tmp_path}/none", 4) == b""
    assert host.head(sys.executable, 4) == b"\x7fELF"
    assert host.why_not_open("/dev/null") == ""
    assert host.why_not_open(f"{tmp_path}/none") == "No such file or directory"
    assert host.output("/nowhere/program") is None
    false, echo = shutil.which("false"), shutil.which("echo")
    assert false is not None
    assert echo is not None
    assert host.output(false) is None
    assert host.output(echo, "hello") == "hello\n"
    assert host.python[0] == 3
    assert host.descriptor_limit[0] != 0


def test_who_holds_a_terminal(tmp_path: Path) -> None:
    import pty
    import subprocess

    ours, theirs = pty.openpty()
    name = os.ttyname(theirs)
    host = ThisHost(os.environ)
    try:
        assert host.holders(name) == ()
        with subprocess.Popen(["cat"], stdin=theirs) as process:
            try:
                assert host.holders(name) == (f"cat ({process.pid})",)
                assert host.running("cat")
            finally:
                process.kill()
    finally:
        os.close(ours)
        os.close(theirs)
