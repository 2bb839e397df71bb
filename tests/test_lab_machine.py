"""What the guest's virtual machine consists of, as QEMU is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import monitor
from lab.errors import LabError
from lab.machine import ConsoleBackend, Machine, Places, command_line


def machine(**changes: object) -> list[str]:
    values = {
        "name": "cloud", "kernel": Path("/k"), "initrd": Path("/i"), "append": "console=ttyS0",
        "places": Places(Path("/tmp/x")),
    }  # fmt: skip
    return Machine(**(values | changes)).command()  # type: ignore[arg-type]


def following(command: list[str], option: str) -> list[str]:
    return [command[place + 1] for place, word in enumerate(command) if word == option]


def test_a_guest_has_no_stub_unless_asked_and_runs_at_once() -> None:
    assert "-gdb" not in machine()
    assert "-S" not in machine()
    assert following(machine(stub=True), "-gdb") == ["unix:/tmp/x/gdb.sock,server=on,wait=off"]
    assert "-S" in machine(stopped=True)


@pytest.mark.parametrize(
    ("backend", "chardev"),
    [
        (ConsoleBackend.UNIX, "socket,id=console,path=/tmp/x/serial.sock,server=on,wait=off"),
        (ConsoleBackend.PTY, "pty,id=console"),
        (ConsoleBackend.TELNET, "socket,id=console,host=127.0.0.1,port=0,server=on,wait=off,telnet=on"),
    ],
)
def test_the_console_has_one_id_on_every_backend(backend: ConsoleBackend, chardev: str) -> None:
    command = machine(console=backend)
    assert chardev in following(command, "-chardev")
    assert following(command, "-serial") == ["chardev:console"]


def test_the_kernel_tells_qemu_its_vmcoreinfo_unless_asked_otherwise() -> None:
    assert "vmcoreinfo" in following(machine(), "-device")
    assert "vmcoreinfo" not in following(machine(vmcoreinfo=False), "-device")


def test_the_second_serial_port_comes_second() -> None:
    assert following(machine(second_serial=True), "-serial") == ["chardev:console", "chardev:serial2"]


def test_kgdbs_port_comes_second_too() -> None:
    assert following(machine(kgdb_port=True), "-serial") == ["chardev:console", "chardev:kgdb"]
    assert "socket,id=kgdb,path=/tmp/x/kgdb.sock,server=on,wait=off" in following(
        machine(kgdb_port=True), "-chardev"
    )


def test_arguments_for_qemu_come_last() -> None:
    assert machine(extra=("-icount", "shift=auto"))[-2:] == ["-icount", "shift=auto"]


def test_a_folder_that_a_socket_cannot_be_in_is_refused() -> None:
    with pytest.raises(LabError, match="too long for a socket"):
        Places(Path("/" + "d" * 100))
    with pytest.raises(LabError, match="comma"):
        Places(Path("/tmp/a,b"))
    longest = "d" * (107 - len("//serial2.sock"))
    assert len(bytes(Places(Path("/" + longest)).serial2)) == 107


def test_the_command_line_of_the_kernel() -> None:
    assert command_line("", "nokaslr", "kbridge.tick=1 quiet") == "console=ttyS0 nokaslr kbridge.tick=1 quiet"


@pytest.mark.parametrize(
    ("backend", "said", "endpoint"),
    [
        (ConsoleBackend.UNIX, "disconnected:unix:/tmp/x/serial.sock,server=on", "unix:/s"),
        (ConsoleBackend.PTY, "pty:/dev/pts/4", "pty:/dev/pts/4"),
        (ConsoleBackend.TELNET, "disconnected:telnet:127.0.0.1:4321,server=on", "telnet:127.0.0.1:4321"),
    ],
)
def test_an_endpoint_is_spelled_as_in_the_configuration(
    backend: ConsoleBackend, said: str, endpoint: str
) -> None:
    assert monitor.console_endpoint(backend, said, Path("/s")) == endpoint


def test_words_of_qemu_that_name_no_port_are_refused() -> None:
    with pytest.raises(LabError, match="cannot tell"):
        monitor.console_endpoint(ConsoleBackend.TELNET, "null", Path("/s"))
