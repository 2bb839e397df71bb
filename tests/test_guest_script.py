"""scripts/guest as its users meet it: builds listed, guests booted, and none that outlives whoever wanted it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUEST = ROOT / "scripts" / "guest"
PROMPT = b"/root # "
BOOT_SECONDS = 90
END_SECONDS = 15


def until(what: str, condition: Callable[[], bool], seconds: float = END_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        # A process that has ended but is not yet reaped has no command line left.
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


class Line:
    """The guest's console: what came, and what is to be typed."""

    def __init__(self, endpoint: str) -> None:
        kind, _, where = endpoint.partition(":")
        assert kind == "unix"
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(where)
        self.text = b""

    def close(self) -> None:
        self.socket.close()

    def expect(self, pattern: bytes, seconds: float = BOOT_SECONDS) -> re.Match[bytes]:
        """Wait for a pattern and forget everything up to its end."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.text)):
            left = max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self.socket], [], [], left)
            assert readable, f"no {pattern!r} within {seconds} s after {self.text[-2000:]!r}"
            piece = self.socket.recv(65536)
            assert piece, f"the console ended before {pattern!r}: {self.text[-2000:]!r}"
            self.text += piece
        self.text = self.text[match.end() :]
        return match

    def run(self, command: str) -> str:
        """What a command prints in the guest's shell, without the ticks that came between."""
        self.socket.sendall(f'echo BE""GIN; {command}; echo E""ND\r'.encode())
        said = self.expect(rb"BEGIN\r\n(?s:(.*?))END\r\n")[1]
        return re.sub(rb"(?m)^tick \d+\r\n", b"", said).decode()


class Monitor:
    """The machine monitor, one command at a time; events are kept."""

    def __init__(self, endpoint: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(BOOT_SECONDS)
        self.socket.connect(endpoint.removeprefix("unix:"))
        self.stream = self.socket.makefile("rwb")
        self.events: list[str] = []
        assert "QMP" in json.loads(self.stream.readline())
        self.execute("qmp_capabilities")

    def close(self) -> None:
        self.stream.close()
        self.socket.close()

    def _message(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.stream.readline())
        if "event" in message:
            self.events.append(message["event"])
        return message

    def execute(self, command: str, **arguments: Any) -> Any:
        self.stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self.stream.flush()
        while "return" not in (message := self._message()):
            assert "error" not in message, message
        return message["return"]

    def event(self, name: str) -> None:
        while name not in self.events:
            self._message()


def guest(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(GUEST), *arguments], env=os.environ | environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# ── without a kernel ──────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_cache_is_listed_and_told_what_to_do(tmp_path: Path) -> None:
    done = guest("list", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0
    assert "cloud  not built yet: scripts/guest build cloud\n" in done.stdout
    rows = json.loads(guest("list", "--json", XDG_CACHE_HOME=str(tmp_path)).stdout)
    assert rows == [{"name": name, "built": False} for name in ("cloud", "kgdb", "disk", "debian", "arm64")]

    done = guest("run", "kgdb", XDG_CACHE_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "guest: kgdb is not built yet; run: scripts/guest build kgdb\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("run",),
        ("run", "windows"),
        ("run", "cloud", "--smp", "0"),
        ("run", "cloud", "-m", "x"),
        ("build", "x"),
        ("run", "kgdb", "--kgdb-port", "--second-serial"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    done = guest(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: scripts/guest" in done.stderr


def test_it_needs_no_installed_package() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, sys.argv[1]); import lab.commands",
         str(GUEST.parent)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.guest
def test_a_kernel_without_kgdb_gets_no_port_for_it(cloud_built: str) -> None:
    done = guest("run", cloud_built, "--kgdb-port")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cloud has no kgdb" in done.stderr
    assert "scripts/guest run kgdb" in done.stderr


# ── with the kernels ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.guest
def test_built_guests_are_listed_with_their_files(cloud_built: str, kgdb_built: str) -> None:
    rows = [
        row for row in json.loads(guest("list", "--json").stdout) if row["name"] in (cloud_built, kgdb_built)
    ]
    assert [(row["name"], row["built"]) for row in rows] == [(cloud_built, True), (kgdb_built, True)]
    for row in rows:
        for part in ("kernel", "vmlinux", "initrd"):
            assert Path(row[part]).is_file(), part
        assert list(Path(row["modules"]).glob("*.ko"))
        assert list(Path(row["debug_dir"], ".build-id").glob("??/*.debug"))
        assert row["size_bytes"] > Path(row["vmlinux"]).stat().st_size / 2


@pytest.mark.guest
def test_nothing_in_the_kgdb_kernel_names_where_it_was_built(kgdb_built: str) -> None:
    (row,) = [row for row in json.loads(guest("list", "--json").stdout) if row["name"] == kgdb_built]
    image = Path(row["vmlinux"]).read_bytes()
    assert b"/usr/src/linux-source-6.1" in image
    assert b".making-" not in image
    assert os.fsencode(Path.home()) + b"/." not in image


@pytest.mark.guest
def test_cloud_boots_to_a_shell_with_its_modules_and_devices(cloud_guest: Any) -> None:
    said = cloud_guest("--append", "kbridge.tick=2 kbridge.modules=all")
    with closing(Line(said["console"])) as console:
        ready = console.expect(rb"kbridge-guest: ready \((\S+), (\S+)\)")
        assert ready.groups() == (b"cloud", said["release"].encode())
        # In this order: the prompt comes once, and may come before the first tick.
        console.expect(PROMPT)
        console.expect(rb"tick \d+")
        loaded = {line.split()[0] for line in console.run("cat /proc/modules").splitlines() if "0x" in line}
        assert {path.stem.replace("-", "_") for path in Path(said["modules"]).glob("*.ko")} == loaded
        assert len(loaded) > 50
        assert console.run("cat /proc/sys/kernel/sysrq").split()[0] == "1"
        assert "/dev/vda" in console.run("ls /dev/vda")
        assert "vmcoreinfo" in console.run("ls /sys/firmware/qemu_fw_cfg/by_name/etc")
        # Job control works, so the shell has a controlling terminal.
        console.socket.sendall(b'echo O""N; sleep 1000\r')
        console.expect(rb"ON\r\n")
        # A ^C that comes while the shell still forks reaches the shell alone: try again.
        for attempt in range(10):
            console.socket.sendall(b"\x03")
            try:
                console.expect(PROMPT, seconds=3)
                break
            except AssertionError:
                assert attempt < 9
    assert Path(said["dir"]).stat().st_mode & 0o777 == 0o700


def text_address(console: Line) -> int:
    console.expect(PROMPT)
    found = re.search(r"([0-9a-f]{16}) T _text\b", console.run("grep ' _text$' /proc/kallsyms"))
    assert found
    return int(found[1], 16)


@pytest.mark.guest
def test_each_boot_has_the_kernel_elsewhere_unless_told_otherwise(kgdb_guest: Any) -> None:
    addresses = []
    for arguments in ((), (), (), ("--no-kaslr",)):
        said = kgdb_guest(*arguments)
        with closing(Line(said["console"])) as console:
            addresses.append(text_address(console))
        os.kill(said["pid"], signal.SIGKILL)
    # One in 500 boots lands where another did.
    assert len(set(addresses[:3])) > 1
    assert addresses[3] == 0xFFFFFFFF81000000


@pytest.mark.guest
def test_kgdb_breaks_into_its_own_debugger_and_has_faults_on_request(kgdb_guest: Any) -> None:
    said = kgdb_guest("--append", "kgdboc=ttyS0")
    with closing(Line(said["console"])) as console:
        console.expect(PROMPT)
        assert "SOFTLOCKUP" in console.run("cat /sys/kernel/debug/provoke-crash/DIRECT")
        assert "vmlinux" in console.run("ls /sys/kernel/btf")
        assert console.run("cat /proc/sys/kernel/watchdog_thresh").strip() == "4"
        console.socket.sendall(b"echo g > /proc/sysrq-trigger\r")
        console.expect(rb"\[\d+\]kdb> ")
        console.socket.sendall(b"go\r")
        console.expect(PROMPT)
        assert console.run("uname -r").strip() == said["release"]


@pytest.mark.guest
def test_kgdb_on_the_second_port_leaves_the_console_alone(kgdb_guest: Any) -> None:
    said = kgdb_guest("--append", "kgdboc=ttyS1", "--second-serial")
    with closing(Line(said["console"])) as console, closing(Line(said["console2"])) as second:
        console.expect(PROMPT)
        console.socket.sendall(b"echo g > /proc/sysrq-trigger\r")
        second.expect(rb"\[\d+\]kdb> ")
        second.socket.sendall(b"go\r")
        console.expect(PROMPT)


@pytest.mark.guest
def test_kgdb_on_a_port_of_its_own_is_broken_into_through_the_console(kgdb_guest: Any) -> None:
    said = kgdb_guest("--kgdb-port")
    assert said["kgdb"] == f"unix:{said['dir']}/kgdb.sock"
    assert "kgdboc=ttyS1,115200" in said["append"].split()
    with (
        closing(Monitor(said["qmp"])) as monitor,
        closing(Line(said["console"])) as console,
        closing(Line(said["kgdb"])) as port,
    ):
        console.expect(PROMPT)
        monitor.execute("chardev-send-break", id=said["console_id"])
        console.socket.sendall(b"g")
        # kdb speaks on both lines, and hands over to the first packet that asks for the stop's reason.
        port.expect(rb"\[\d+\]kdb> ")
        port.socket.sendall(b"$?#3f")
        port.expect(rb"\$S05#b8")
        # The machine's monitor knows nothing of such a stop.
        assert monitor.execute("query-status")["status"] == "running"
        port.socket.sendall(b"+$D#44")
        port.expect(rb"\$OK#9a")
        port.socket.sendall(b"+")
        assert said["release"] in console.run("uname -r").splitlines()


@pytest.mark.guest
@pytest.mark.slow
def test_faults_on_request_are_noticed(kgdb_guest: Any) -> None:
    said = kgdb_guest()
    with closing(Line(said["console"])) as console:
        console.expect(PROMPT)
        # In this order, because the kernel looks for hung tasks no more after its first oops.
        for fault, report in (
            ("ARRAY_BOUNDS", rb"UBSAN: array-index-out-of-bounds in \S*drivers/misc/lkdtm/bugs\.c"),
            ("HUNG_TASK", rb"INFO: task sh:\d+ blocked for more than 10 seconds"),
            ("CORRUPT_LIST_ADD", rb"list_add corruption"),
            ("SOFTLOCKUP", rb"watchdog: BUG: soft lockup - CPU#\d stuck for (8|9|10|11|12)s"),
        ):
            console.socket.sendall(f"(echo {fault} > /sys/kernel/debug/provoke-crash/DIRECT) &\r".encode())
            console.expect(b"lkdtm: Performing direct entry " + fault.encode())
            console.expect(report)


@pytest.mark.guest
@pytest.mark.parametrize(
    ("fault", "report"),
    [
        ("EXHAUST_STACK", b"BUG: TASK stack guard page was hit"),
        ("CORRUPT_STACK_STRONG", b"Kernel panic - not syncing: stack-protector: Kernel stack is corrupted"),
    ],
)
def test_faults_of_the_stack_are_noticed(kgdb_guest: Any, fault: str, report: bytes) -> None:
    with closing(Line(kgdb_guest()["console"])) as console:
        console.expect(PROMPT)
        console.socket.sendall(f"(echo {fault} > /sys/kernel/debug/provoke-crash/DIRECT)\r".encode())
        console.expect(report)


@pytest.mark.guest
@pytest.mark.parametrize("kernel", ["cloud", "kgdb"])
def test_a_panic_is_an_event_and_a_pause(kernel: str, request: pytest.FixtureRequest) -> None:
    said = request.getfixturevalue(f"{kernel}_guest")()
    with closing(Monitor(said["qmp"])) as monitor, closing(Line(said["console"])) as console:
        console.expect(PROMPT)
        console.socket.sendall(b"echo c > /proc/sysrq-trigger\r")
        console.expect(rb"Kernel panic - not syncing: sysrq triggered crash")
        monitor.event("GUEST_PANICKED")
        assert monitor.execute("query-status")["status"] == "guest-panicked"


@pytest.mark.guest
@pytest.mark.gdb
@pytest.mark.slow
def test_gdb_finds_the_kernels_scripts_and_the_modules_debug_files(kgdb_guest: Any, cloud_built: str) -> None:
    said = kgdb_guest("--no-kaslr", "--stub")
    with closing(Line(said["console"])) as console:
        console.expect(PROMPT)
        done = subprocess.run(
            ["gdb", "-nx", "-batch", "-ex", f"add-auto-load-safe-path {Path(said['vmlinux']).parent}",
             "-ex", f"file {said['vmlinux']}", "-ex", f"target remote {said['stub'].removeprefix('unix:')}",
             "-ex", "lx-version", "-ex", "detach"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert f"Linux version {said['release']} (kbridge@guest)" in done.stdout, done.stdout + done.stderr
    for row in json.loads(guest("list", "--json").stdout):
        if row["name"] not in (cloud_built, said["name"]):
            continue
        module = Path(row["modules"]) / "isofs.ko"
        done = subprocess.run(
            ["gdb", "-nx", "-batch", "-ex", f"set debug-file-directory {row['debug_dir']}", "-ex", f"file {module}",
             "-ex", "info line init_iso9660_fs"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert 'of "fs/isofs/inode.c"' in done.stdout, (row["name"], done.stdout, done.stderr)


@pytest.mark.guest
def test_a_stopped_guest_runs_nothing_until_the_monitor_says_so(cloud_guest: Any) -> None:
    said = cloud_guest("--stopped")
    with closing(Monitor(said["qmp"])) as monitor, closing(Line(said["console"])) as console:
        assert monitor.execute("query-status")["status"] == "prelaunch"
        monitor.execute("cont")
        # From the first line on, so nothing was lost.
        console.expect(rb"Linux version 6\.")


@pytest.mark.guest
def test_the_console_on_a_pty_or_telnet_is_where_it_says(cloud_guest: Any) -> None:
    kind, _, device = cloud_guest("--console-backend", "pty")["console"].partition(":")
    assert kind == "pty"
    assert Path(device).is_char_device()
    kind, host, port = cloud_guest("--console-backend", "telnet")["console"].split(":")
    assert kind == "telnet"
    with socket.create_connection((host, int(port)), timeout=END_SECONDS) as connection:
        # QEMU's telnet opens with IAC WILL ECHO and more.
        assert connection.recv(3) == b"\xff\xfb\x01"


# ── beginning and end ─────────────────────────────────────────────────────────────────────────────────────────


def started(*arguments: str, starter: str = "") -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """A starter process, and what its guest says; the guest's command line comes after the Python text `starter`."""
    command = [str(GUEST), "run", "cloud", *arguments]
    if starter:
        command = [sys.executable, "-c", starter, *command]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def release(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    process.wait(END_SECONDS)


@pytest.mark.guest
def test_a_guest_dies_with_a_starter_that_is_killed(cloud_built: str) -> None:
    # The starter gives its guest no pipe, so that only its death can tell.
    text = "import subprocess, sys; subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL)"
    process, said = started(starter=text)
    assert alive(said["pid"])
    process.kill()
    until("QEMU is gone", lambda: not alive(said["pid"]))
    until("its folder is gone", lambda: not Path(said["dir"]).exists())
    release(process)


@pytest.mark.guest
def test_a_guest_dies_with_the_script_even_if_that_is_killed(cloud_built: str) -> None:
    process, said = started()
    process.kill()
    until("QEMU is gone", lambda: not alive(said["pid"]))
    release(process)


@pytest.mark.guest
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_leaves_nothing(cloud_built: str, number: signal.Signals) -> None:
    process, said = started()
    process.send_signal(number)
    assert process.wait(END_SECONDS) == 0
    assert not alive(said["pid"])
    assert not Path(said["dir"]).exists()
    release(process)


@pytest.mark.guest
def test_the_end_of_its_input_ends_it(cloud_built: str) -> None:
    process, said = started()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(END_SECONDS) == 0
    assert not alive(said["pid"])
    release(process)


@pytest.mark.guest
def test_a_detached_guest_stays(cloud_built: str, tmp_path: Path) -> None:
    process, said = started("--detach")
    try:
        release(process)
        assert process.returncode == 0
        with closing(Line(said["console"])) as console:
            console.expect(PROMPT)
        assert alive(said["pid"])
    finally:
        os.kill(said["pid"], signal.SIGKILL)
    until("QEMU is gone", lambda: not alive(said["pid"]))
    for path in Path(said["dir"]).iterdir():
        path.unlink()
    Path(said["dir"]).rmdir()


@pytest.mark.guest
def test_a_killed_guest_starts_again_on_the_same_sockets(cloud_built: str, tmp_path: Path) -> None:
    folder = tmp_path / "vm"
    process, said = started("--dir", str(folder))
    os.kill(said["pid"], signal.SIGKILL)
    assert process.wait(END_SECONDS) == 1
    release(process)
    assert (folder / "qmp.sock").is_socket()

    process, again = started("--dir", str(folder))
    assert again["pid"] != said["pid"]
    assert (again["qmp"], again["console"]) == (said["qmp"], said["console"])
    with closing(Monitor(again["qmp"])) as monitor:
        assert monitor.execute("query-status")["running"]

    # While it runs nobody else gets its folder.
    other = guest("run", "cloud", "--dir", str(folder))
    assert other.returncode == 1
    assert "in use by a running guest" in other.stderr
    process.terminate()
    release(process)
    assert folder.exists()


@pytest.mark.guest
def test_what_qemu_says_against_its_arguments_is_passed_on(cloud_built: str, tmp_path: Path) -> None:
    done = guest("run", "cloud", "--", "-device", "no-such-device")
    assert (done.returncode, done.stdout) == (1, "")
    assert "QEMU did not start" in done.stderr
    assert "no-such-device" in done.stderr


@pytest.mark.guest
def test_a_guest_that_powers_off_ends_the_script_without_complaint(cloud_built: str) -> None:
    process, said = started()
    with closing(Line(said["console"])) as console:
        console.expect(PROMPT)
        console.socket.sendall(b"poweroff -f\r")
        assert process.wait(END_SECONDS) == 0
    release(process)
