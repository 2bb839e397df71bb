"""`kbridge boot` and its route on a real relay, with a loader that is not there at the other end of its line."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from loaders_lab import FORCE, PLAIN, Grub, Guest
from relay_lab import SECONDS, RelayProcess, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def shared() -> Iterator[RelayProcess]:
    relay = RelayProcess()
    relay.start()
    yield relay
    relay.close()


@pytest.fixture
def relay(shared: RelayProcess) -> Iterator[RelayProcess]:
    yield shared
    shared.disconnect()
    wait_for(lambda: pen(shared) is None, "the pen's release")


def pen(relay: RelayProcess) -> Any:
    return relay.json("GET", "/guests/web1")[1]["console"]["pen"]


class Behind:
    """A machine behind a line, which somebody restarts as soon as the pen is taken."""

    def __init__(self, relay: RelayProcess, loader: Grub, *, restarts: bool = True) -> None:
        self._relay = relay
        self.loader = loader
        self._restarts = restarts
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Grub:
        self._thread.start()
        return self.loader

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join(SECONDS)

    def _work(self) -> None:
        line = self._relay.far.peer
        if self._restarts:
            wait_for(lambda: pen(self._relay) is not None, "the pen")
            text = "\r\n[  100.000000] reboot: Restarting system\r\n" + self.loader.reset(time.monotonic())
            line.sendall(text.encode())
        while not self._ends.is_set():
            text = self.loader.tick(time.monotonic()) if self._restarts else ""
            if select.select([line], [], [], 0.01)[0]:
                for char in line.recv(4096).decode("latin-1"):
                    text += self.loader.key(char, time.monotonic())
            if text:
                line.sendall(text.encode("latin-1"))


def test_one_command_brings_a_guest_to_a_root_shell(relay: RelayProcess) -> None:
    """On a plain line, without a hypervisor: the states as they come, and status 0."""
    with Behind(relay, Grub()) as loader:
        done = relay.run("boot", "web1", "--single-user", "--no-reset")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert loader.guest.booted == [f"{PLAIN} single {FORCE}"]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[1] for row in rows if row[1:2] == ["kernel"]] == ["kernel"]
    assert "read back: linux /boot/vmlinuz root=/dev/vda1" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("done: a shell of root's answers")
    kinds = [
        json.loads(line)["kind"] for line in relay.ask("GET", "/guests/web1/log?format=json")[1].splitlines()
    ]
    assert {"boot.start", "boot.step", "boot.end"} <= set(kinds)


def test_for_programs_each_entry_is_an_object(relay: RelayProcess) -> None:
    """And a failure has status 1, one line on stderr, and its reason."""
    with Behind(relay, Grub(timeout=0)):
        done = relay.run("boot", "web1", "--init", "/bin/sh", "--no-reset", "--json")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "kbridge: the boot loader cannot be stopped over the serial line: GRUB showed no"
    )
    assert done.stderr.count("\n") == 1
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    assert entries[-1]["kind"] == "end"
    assert (entries[-1]["end"], entries[-1]["reason"]) == ("failed", "loader")
    assert all(entry["time"] for entry in entries)


def test_passwords_come_from_files(relay: RelayProcess, tmp_path: Path) -> None:
    """And are shown nowhere."""
    (tmp_path / "loader").write_text("hunter2\n")
    (tmp_path / "root").write_text("swordfish\n")
    loader = Grub(password=("admin", "hunter2"))
    loader.guest.asks = "swordfish"
    secrets = [f"--secret=loader={tmp_path / 'loader'}", f"--secret=root={tmp_path / 'root'}"]
    with Behind(relay, loader):
        done = relay.run("boot", "web1", "--emergency", "--no-reset", "--loader-user", "admin", *secrets)
    assert done.returncode == 0, done
    recorded = relay.ask("GET", "/guests/web1/log?format=json")[1].decode()
    for secret in ("hunter2", "swordfish"):
        assert secret not in done.stdout + done.stderr
        assert secret not in recorded


class Terminal:
    """`kbridge boot` at a terminal, its transcript elsewhere."""

    def __init__(self, relay: RelayProcess, *options: str) -> None:
        self._terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kbridge", "boot", "web1", "--no-reset", "--json", *options],
            env=relay.env, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def until(self, words: str) -> None:
        deadline = time.monotonic() + SECONDS
        while words not in self.seen:
            assert select.select([self._terminal], [], [], max(deadline - time.monotonic(), 0))[0], self.seen
            self.seen += os.read(self._terminal, 65536).decode()

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._terminal)[3] & termios.ECHO)

    def end(self) -> list[dict[str, Any]]:
        said, _ = self.process.communicate(timeout=SECONDS)
        assert self.echoes, "the terminal is as it was"
        os.close(self._terminal)
        return [json.loads(line) for line in said.splitlines()]


def test_a_person_at_the_terminal_is_asked_for_passwords(relay: RelayProcess) -> None:
    """When the guest asks: they are not echoed, and are shown nowhere."""
    loader = Grub(Guest(asks="swordfish"), password=("admin", "hunter2"))
    with Behind(relay, loader):
        terminal = Terminal(relay, "--single-user", "--loader-user", "admin")
        terminal.until("password of the boot loader's user admin (Ctrl-C ends the boot): ")
        assert not terminal.echoes
        terminal.type("hunter2\r")
        terminal.until("password of root (Ctrl-C ends the boot): ")
        terminal.type("swordfish\r")
        entries = terminal.end()
    assert terminal.process.returncode == 0, terminal.seen
    assert entries[-1]["end"] == "done"
    recorded = relay.ask("GET", "/guests/web1/log?format=json")[1].decode()
    for secret in ("hunter2", "swordfish"):
        assert secret not in terminal.seen + json.dumps(entries) + recorded


def test_who_is_asked_can_let_go(relay: RelayProcess) -> None:
    """By Ctrl-C, which says where the guest is; by no answer; and when another has given it he is asked no longer."""
    asked = "password of root (Ctrl-C ends the boot): "
    with Behind(relay, Grub(Guest(asks="swordfish"))):
        terminal = Terminal(relay, "--single-user")
        terminal.until(asked)
        terminal.type("sw")
        # What a terminal that is theirs makes of Ctrl-C.
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("it goes on as it is, in state login (sulogin)")
        terminal.end()
        assert terminal.process.returncode == 1
    wait_for(lambda: pen(relay) is None, "the pen's release")
    with Behind(relay, Grub(Guest(asks="swordfish"))):
        terminal = Terminal(relay, "--single-user")
        terminal.until(asked)
        terminal.type("\r")
        terminal.until("kbridge: root's password is asked for")
        assert terminal.end()[-1]["reason"] == "asked"
        assert terminal.process.returncode == 1
    with Behind(relay, Grub(Guest(asks="swordfish"))):
        terminal = Terminal(relay, "--single-user")
        terminal.until(asked)
        boot = relay.json("GET", "/guests/web1")[1]["boot"]
        wrong = {"run": boot["run"], "asks": "loader", "secret": "x"}
        assert relay.json("POST", "/guests/web1/boot/secret", wrong)[0] == 409
        # Another may answer as well: the question is withdrawn then.
        given = {**boot, "secret": "swordfish"}
        assert relay.json("POST", "/guests/web1/boot/secret", given)[0] == 200
        assert terminal.end()[-1]["end"] == "done"
        assert terminal.process.returncode == 0


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--single-user", "--emergency"], 2, "--single-user and --emergency exclude each other"),
        (["--init", "sh"], 2, "one path and no arguments"),
        (["--break", "nowhere"], 2, "stages are"),
        (["--stop-at", "nowhere"], 2, "'nowhere' is not one of"),
        (["--secret", "x=/dev/null"], 2, "there is no secret 'x': loader or root"),
        (["--secret", "root"], 2, "no terminal"),
        (["--secret", "root=/nowhere"], 1, "cannot read the secret"),
        (["--single-user"], 1, "web1 cannot be reset: it has no machine monitor"),
        (["--single-user", "--way", "stub", "--no-reset"], 1, "cannot be changed by its debug stub"),
        (["--no-reset", "--patience", "0.0001"], 2, "--patience"),
        (["--no-reset", "--patience", "0.01", "--single-user"], 1, "nobody restarted the machine"),
    ],
)
def test_what_cannot_be_is_said(relay: RelayProcess, options: list[str], status: int, words: str) -> None:
    """With the right status."""
    done = relay.run("boot", "web1", *options)
    assert done.returncode == status, done
    assert words in done.stderr


def test_guests_that_there_are_not(relay: RelayProcess) -> None:
    """Or have no console."""
    assert "there is no guest 'nobody'" in relay.run("boot", "nobody", "--no-reset").stderr
    assert "bare has no console" in relay.run("boot", "bare", "--no-reset").stderr


def test_control_c_lets_go(relay: RelayProcess) -> None:
    """The pen is free again."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kbridge", "boot", "web1", "--single-user", "--no-reset"],
        env=relay.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: pen(relay) == f"{os.environ.get('USER', 'root')} (boot)" or pen(relay), "the pen")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert errors.startswith("kbridge: cancelled by Ctrl-C")
    wait_for(lambda: pen(relay) is None, "the pen's release")


def test_at_a_terminal_it_goes_to_the_console(relay: RelayProcess) -> None:
    """Where it stopped: what is typed there reaches the shell."""
    mine, theirs = pty.openpty()
    loader = Grub()
    with Behind(relay, loader):
        process = subprocess.Popen(
            [sys.executable, "-m", "kbridge", "boot", "web1", "--single-user", "--no-reset"],
            env=relay.env, stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        seen = b""

        def until(words: bytes) -> None:
            nonlocal seen
            deadline = time.monotonic() + SECONDS
            while words not in seen:
                assert select.select([mine], [], [], max(deadline - time.monotonic(), 0))[0], seen
                seen += os.read(mine, 65536)

        until(b"[kbridge: web1: ~. leaves")
        assert b"a shell of root's answers" in seen
        os.write(mine, b'echo he""llo\r')
        until(b"hello")
        os.write(mine, b"\r~.")
        until(b"[kbridge: left web1]")
        assert process.wait(SECONDS) == 0
    os.close(mine)


def test_the_api_refuses_what_cannot_be(relay: RelayProcess) -> None:
    """As problem documents."""
    for body, kind in (
        ({"single_user": True, "emergency": True}, "refused"),
        ({"nonsense": 1}, "bad-request"),
        ({"single_user": True}, "not-capable"),
    ):
        status, problem = relay.json("POST", "/guests/web1/boot", body)
        assert status in (400, 409)
        assert problem["type"] == f"urn:kbridge:problem:{kind}"
