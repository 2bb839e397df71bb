"""The commands, run as a user runs them, on a real relay with a line that the test holds."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from relay_lab import SECONDS, RelayProcess, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    relay = RelayProcess()
    relay.start()
    yield relay
    relay.close()


@pytest.fixture
def own_relay() -> Iterator[RelayProcess]:
    relay = RelayProcess()
    yield relay
    relay.close()


def one_line(text: str) -> str:
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text


def test_help_and_version_need_nothing(relay: RelayProcess) -> None:
    done = relay.run("--help")
    assert done.returncode == 0
    assert "KBRIDGE_CONTROL" in done.stdout
    assert relay.run("--version").stdout.startswith("kbridge ")


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "reload",
        "ls",
        "console",
        "log",
        "triage",
        "gdb",
        "attach",
        "power",
        "expect",
        "break",
        "config",
        "doctor",
    ],
)
def test_every_command_has_help(relay: RelayProcess, command: str) -> None:
    done = relay.run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["ls", "--colour"],
        ["power", "web1"],
        ["power", "web1", "explode"],
        ["power", "web1", "reset", "--force"],
        ["log", "web1", "--since", "soon"],
        ["log", "web1", "--cast", "x", "--raw"],
        ["log", "web1", "--vmlinux", "x"],
    ],
)
def test_usage_errors_end_with_2(relay: RelayProcess, arguments: list[str]) -> None:
    done = relay.run(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr


def test_nothing_slow_is_loaded_for_help_and_ls() -> None:
    script = (
        "import sys; import kbridge.cli, kbridge.commands.ls_command, kbridge.control;"
        "print([name for name in ('twisted', 'pydantic', 'wsproto') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "[]\n"


def test_what_boots_and_what_goes_to_the_console_are_not_loaded_before_a_boot_begins() -> None:
    script = (
        "import sys; import kbridge.cli, kbridge.commands.boot_command;"
        "names = ('kbridge.boot.control', 'kbridge.boot.states', 'kbridge.expect.script', 'wsproto', 'twisted');"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "[]\n"


def test_gdb_on_an_image_waits_for_nothing_that_it_does_not_use() -> None:
    script = (
        "import sys; import kbridge.commands.crash_command; from kbridge.commands.crash_gdb import bare_reactor;"
        "early = 'twisted' in sys.modules; bare_reactor(); import kbridge.crash.core_relay;"
        "slow = ('OpenSSL', 'cryptography', 'kbridge.control', 'kbridge.commands.crash_reports');"
        "print(early, [name for name in slow if name in sys.modules]);"
        # What somebody else needs is there all the same.
        "from twisted.internet.ssl import optionsForClientTLS"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "False []\n"


def test_ls_is_a_table(relay: RelayProcess) -> None:
    done = relay.run("ls")
    assert done.returncode == 0
    head, bare, web1 = done.stdout.splitlines()
    assert head.split() == ["GUEST", "STATE", "CONSOLE", "DEBUG", "STOP", "BREAKPOINTS", "SESSIONS"]
    assert bare.split() == ["bare", "unknown", "-", "-", "-", "-", "-"]
    assert web1.split() == ["web1", "unknown", "open", "-", "-", "-", "-"]
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(("variable", "coloured"), [("", True), ("1", False)])
def test_colour_is_for_terminals_that_want_it(relay: RelayProcess, variable: str, coloured: bool) -> None:
    terminal, far = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-m", "kbridge", "ls"],
            env={**relay.env, "NO_COLOR": variable},
            stdin=far,
            stdout=far,
            timeout=30,
            check=True,
        )
        shown = os.read(terminal, 65536)
    finally:
        os.close(terminal)
        os.close(far)
    assert b"web1" in shown
    assert (b"\x1b[" in shown) is coloured


def test_ls_as_json_is_a_list(relay: RelayProcess) -> None:
    guests = json.loads(relay.run("ls", "--json").stdout)
    assert [guest["name"] for guest in guests] == ["bare", "web1"]


def test_the_control_socket_may_be_named(relay: RelayProcess) -> None:
    env = {**relay.env, "KBRIDGE_CONFIG": "/nonexistent", "KBRIDGE_CONTROL": f"unix:{relay.control}"}
    done = subprocess.run(
        [sys.executable, "-m", "kbridge", "ls"],
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "web1" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"],
        ["reload"],
        ["console", "web1"],
        ["power", "web1", "reset"],
        ["attach", "web1"],
        ["gdb", "web1"],
        ["break", "web1"],
    ],
)
def test_without_a_relay_a_line_says_so(own_relay: RelayProcess, arguments: list[str]) -> None:
    done = own_relay.run(*arguments)
    assert done.returncode == 1
    assert "no relay answers at" in one_line(done.stderr)
    assert "kbridge up" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["console"], ["power", "reset"], ["attach"], ["gdb"], ["break"]],
)
def test_an_unknown_guest_is_said_so(relay: RelayProcess, arguments: list[str]) -> None:
    done = relay.run(arguments[0], "nobody", *arguments[1:])
    assert done.returncode == 1
    assert one_line(done.stderr).startswith("kbridge: there is no guest 'nobody'; ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["power", "web1", "reset"],
        ["gdb", "web1"],
        ["attach", "web1"],
        ["console", "bare"],
        ["break", "web1"],
        ["break", "bare"],
    ],
)
def test_what_a_guest_cannot_do_is_said_in_a_line(relay: RelayProcess, arguments: list[str]) -> None:
    done = relay.run(*arguments)
    assert done.returncode == 1
    assert "configure" in one_line(done.stderr)


# ── the log ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_log_in_its_forms(relay: RelayProcess, tmp_path: Path) -> None:
    relay.recorded(b"before\r\n\x1b[7mhello\x1b[0m\r\nworld\r\n")
    assert relay.run("log", "web1", "--lines", "2").stdout == "hello\nworld\n"
    raw = subprocess.run(
        [sys.executable, "-m", "kbridge", "log", "web1", "--raw", "-n", "2"],
        env=relay.env, capture_output=True, timeout=30, check=True,
    )  # fmt: skip
    assert raw.stdout == b"\x1b[7mhello\x1b[0m\r\nworld\r\n"
    entries = [
        json.loads(line) for line in relay.run("log", "web1", "--json", "--since", "1h").stdout.splitlines()
    ]
    assert {"relay.start", "line.open", "console.text"} <= {entry["kind"] for entry in entries}
    assert relay.run("log", "web1", "--since", "1h").stdout.endswith("before\nhello\nworld\n")
    cast = tmp_path / "x.cast"
    done = relay.run("log", "web1", "--cast", str(cast))
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads(cast.read_text().splitlines()[0])["version"] == 2


def test_the_log_of_nobody_leaves_no_file(relay: RelayProcess, tmp_path: Path) -> None:
    for name in ("nobody", "../../etc", "web1/.."):
        done = relay.run("log", name, "--cast", str(tmp_path / "x"))
        assert done.returncode == 1
        assert "nothing was recorded" in one_line(done.stderr)
    assert not (tmp_path / "x").exists()


def test_following_ends_with_ctrl_c(relay: RelayProcess) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kbridge", "log", "web1", "--follow", "--raw", "-n", "0"],
        env=relay.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    seen = b""
    deadline = time.monotonic() + SECONDS
    os.set_blocking(process.stdout.fileno(), False)
    while b"tick" not in seen and time.monotonic() < deadline:
        relay.far.say(b"tick\r\n")
        time.sleep(0.05)
        seen += process.stdout.read() or b""
    assert b"tick" in seen
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, b"")


def test_following_says_when_the_relay_dies(own_relay: RelayProcess) -> None:
    own_relay.start()
    process = subprocess.Popen(
        [sys.executable, "-m", "kbridge", "log", "web1", "--follow", "--raw"],
        env=own_relay.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    own_relay.far.say(b"the last line\n")
    assert process.stdout.readline() == "the last line\n"
    assert own_relay.process is not None
    own_relay.process.kill()
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "went away before the end" in one_line(err)


def test_a_log_needs_no_relay_and_no_configuration_of_its_guest(own_relay: RelayProcess) -> None:
    own_relay.start()
    own_relay.recorded(b"first words\r\nlast words\r\n")
    assert own_relay.process is not None
    own_relay.process.send_signal(signal.SIGKILL)
    own_relay.process.wait(SECONDS)
    before = {path: path.stat().st_mtime_ns for path in own_relay.state.rglob("*")}
    done = own_relay.run("log", "web1", "-n", "1")
    assert (done.returncode, done.stdout) == (0, "last words\n")
    assert "line.open" in own_relay.run("log", "web1", "--json").stdout
    own_relay.write_config("[guests.other]\n")
    assert own_relay.run("log", "web1", "-n", "1").stdout == "last words\n"
    assert before == {path: path.stat().st_mtime_ns for path in own_relay.state.rglob("*")}
    following = own_relay.run("log", "web1", "--follow")
    assert following.returncode == 1
    assert "cannot be followed" in one_line(following.stderr)
    own_relay.start(line=False)
    assert own_relay.run("log", "web1", "-n", "1").stdout == "last words\n"


# ── up ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_up_names_its_sockets_and_removes_them_at_its_end(own_relay: RelayProcess) -> None:
    notify = own_relay.dir / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(notify))
        systemd.settimeout(SECONDS)
        own_relay.env["NOTIFY_SOCKET"] = str(notify)
        own_relay.start()
        assert systemd.recv(100) == b"READY=1"
        said = own_relay.errors.read_text()
        assert str(own_relay.control) in said
        assert str(own_relay.runtime / "web1" / "console") in said
        own_relay.stop()
        assert systemd.recv(100) == b"STOPPING=1"
    assert own_relay.process is not None
    assert own_relay.process.returncode == 0
    assert [path for path in own_relay.runtime.rglob("*") if path.is_socket()] == []


def test_up_reloads_on_sighup(own_relay: RelayProcess) -> None:
    own_relay.start()
    assert own_relay.process is not None
    old = own_relay.config.read_text()
    own_relay.config.write_text(old + "[guests.extra]\n")
    own_relay.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "reloaded; added: extra" in own_relay.errors.read_text(), "the words of the reload")
    assert "extra" in own_relay.run("ls").stdout
    own_relay.config.write_text(old + "[guests.extra]\ncolour = 1\n")
    own_relay.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "not reloaded" in own_relay.errors.read_text(), "the words of the refusal")
    assert "extra" in own_relay.run("ls").stdout


def test_reload_says_what_it_changed(own_relay: RelayProcess) -> None:
    own_relay.start()
    assert own_relay.run("reload").stdout == "nothing changed\n"
    own_relay.config.write_text(own_relay.config.read_text() + "[guests.extra]\n")
    assert own_relay.run("reload").stdout == "appeared: extra\n"


def test_a_second_relay_does_not_start(own_relay: RelayProcess) -> None:
    own_relay.start()
    done = own_relay.run("up")
    assert done.returncode == 1
    assert "is in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert own_relay.run("ls").returncode == 0


def test_a_configuration_with_mistakes_starts_nothing(own_relay: RelayProcess) -> None:
    own_relay.write_config('[guests.a]\nqmp = "nowhere"\n[guests.b]\ncolor = "x"\n')
    for arguments in (["up"], ["config", "check"]):
        done = own_relay.run(*arguments)
        assert done.returncode == 1
        assert "guests.a.qmp" in done.stderr
        assert "guests.b.color" in done.stderr
    assert not own_relay.runtime.exists()
    assert not own_relay.state.exists()


def test_config_explain_prints_a_file_that_is_valid(own_relay: RelayProcess) -> None:
    own_relay.config.write_text(own_relay.run("config", "explain").stdout)
    done = own_relay.run("config", "check")
    assert done.returncode == 0, done.stderr
    assert "is valid, with 1 guest" in done.stdout


def test_doctor_looks_and_reports(relay: RelayProcess) -> None:
    done = relay.run("doctor")
    missing = re.findall("^missing", done.stdout, re.MULTILINE)
    assert done.returncode == (1 if missing else 0), done.stderr
    assert "ok" in done.stdout
    assert "\x1b" not in done.stdout
