"""`kbridge expect` and its route on a real relay, whose line a test holds the other end of."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from relay_lab import ROOT, SECONDS, RelayProcess, wait_for

from kbridge.console_client import ConsoleClient
from kbridge.control import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


@pytest.fixture(autouse=True)
def _no_run_is_left() -> Iterator[None]:
    yield
    while Runs.started:
        Runs.started.pop().close()


def pen(relay: RelayProcess) -> Any:
    return relay.json("GET", "/guests/web1")[1]["console"]["pen"]


class Runs:
    """`kbridge expect web1`, while it runs."""

    started: ClassVar[list[Runs]] = []

    def __init__(self, relay: RelayProcess, script: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kbridge", "expect", "web1", str(script), *options],
            env=relay.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.seen = b""
        self.started.append(self)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=SECONDS)

    def until(self, words: str) -> None:
        assert self.process.stdout is not None
        deadline = time.monotonic() + SECONDS
        while words.encode() not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, self.seen
            if select.select([self.process.stdout], [], [], left)[0]:
                piece = os.read(self.process.stdout.fileno(), 65536)
                assert piece, (self.seen, self.process.stderr and self.process.stderr.read())
                self.seen += piece

    def ended(self) -> tuple[int, str, str]:
        out, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, (self.seen + out).decode(), errors.decode()


def written(tmp_path: Path, text: str, name: str = "s.expect") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def events(relay: RelayProcess, run: str) -> list[dict[str, Any]]:
    entries = map(json.loads, relay.ask("GET", "/guests/web1/log?format=json")[1].splitlines())
    return [one for one in entries if one["kind"].startswith("expect.") and one["run"] == run]


def run_id(output: str) -> str:
    found = re.search("run ([0-9a-f]{8}) begins", output)
    assert found, output
    return found[1]


def in_document(name: str) -> str:
    """A script of docs/expect.md."""
    text = (ROOT / "docs" / "expect.md").read_text()
    found = re.search(rf"<!-- {re.escape(name)} -->\n((?:    .*\n|\n)+)", text)
    assert found, name
    return "".join(line[4:] or "\n" for line in found[1].splitlines(keepends=True))


def answering(relay: RelayProcess, *talk: tuple[bytes, bytes]) -> Callable[[], None]:
    """Have the guest hear and say things in turn; the function returned waits for the end of it."""
    wrong: list[BaseException] = []

    def converse() -> None:
        try:
            for heard, said in talk:
                assert relay.far.hear(len(heard)) == heard
                relay.far.say(said)
        except BaseException as error:  # noqa: BLE001 (raised by who waits)
            wrong.append(error)

    thread = threading.Thread(target=converse)
    thread.start()

    def done() -> None:
        thread.join(SECONDS)
        assert not thread.is_alive()
        assert not wrong, wrong

    return done


UNAME = b'uname -r; echo DO""NE\r'


@pytest.mark.parametrize(
    ("talk", "status", "words"),
    [
        (
            [(b"\r", b"\r\n\x1b[1mdebian\x1b[0m login: "), (b"ann\r", b"ann\r\nPassword: "), (b"geheim\r", b"\r\n# "),
             (UNAME, UNAME + b"\n6.1.0-9\r\nDONE\r\n# ")],
            0, "done",
        ),
        ([(b"\r", b"\r\n# "), (UNAME, UNAME + b"\n6.1.0-9\r\nDONE\r\n# ")], 0, "done"),
        (
            [(b"\r", b"\r\ndebian login: "), (b"ann\r", b"ann\r\nPassword: "),
             (b"geheim\r", b"\r\nLogin incorrect\r\ndebian login: ")],
            1, "kbridge: the password of ann is wrong: line 22 (name)",
        ),
    ],
    ids=["a password", "logged in", "a wrong password"],
)  # fmt: skip
def test_the_first_example(
    relay: RelayProcess, tmp_path: Path, talk: list[tuple[bytes, bytes]], status: int, words: str
) -> None:
    path = written(tmp_path, in_document("login.expect"), "login.expect")
    secret = written(tmp_path, "geheim\n", "secret")
    heard = answering(relay, *talk)
    done = relay.run("expect", "web1", str(path), "--set", "USER=ann", "--secret", f"PASSWORD={secret}")
    heard()
    assert done.returncode == status, (done.stdout, done.stderr)
    assert words in done.stdout + done.stderr
    assert "geheim" not in done.stdout + done.stderr
    told = events(relay, run_id(done.stdout))
    assert "geheim" not in json.dumps(told)
    assert [one["kind"] for one in (told[0], told[-1])] == ["expect.start", "expect.end"]
    assert told[0]["script"] == "login.expect"
    assert told[-1]["state"] == ("failed" if status else "done")
    steps = [one for one in told if one["kind"] == "expect.step"]
    assert next(one["keys"] for one in steps if one["did"] == "sent") == '"\\r"'
    assert all(one["time"] and one["line"] and one["step"] for one in steps)


@pytest.mark.parametrize(
    ("said", "talk", "status", "words"),
    [
        (b"debian login: ", [], 0, "it boots"),
        (b"Kernel panic - not syncing: VFS\r\nCPU: 0\r\n", [], 1, "the kernel panicked: "),
        (b"press Control-D to continue): ", [], 1, "it is in emergency mode: "),
        (
            b"\r\n(initramfs) ",
            [(b'cat /proc/cmdline; blkid; echo KBRIDGE""END\r', b"root=x\r\nKBRIDGEEND\r\n")],
            1,
            "it is in the initramfs: ",
        ),
    ],
    ids=["login", "panic", "emergency", "initramfs"],
)
def test_the_second_example(
    relay: RelayProcess, tmp_path: Path, said: bytes, talk: list[tuple[bytes, bytes]], status: int, words: str
) -> None:
    run = Runs(relay, written(tmp_path, in_document("triage.expect")))
    run.until("waits for")
    relay.far.say(b"[    0.1] Linux\r\n" + said)
    heard = answering(relay, *talk)
    found, out, errors = run.ended()
    heard()
    assert found == status, (out, errors)
    assert words in out + errors
    if status:
        assert "; " in errors.rpartition(words)[2]


def test_a_time_out_fails_with_what_came_last(relay: RelayProcess, tmp_path: Path) -> None:
    run = Runs(relay, written(tmp_path, 'ask:\n  wait "login:" 300ms'))
    run.until("waits for")
    relay.far.say(b"\x1b[31mno\x1b[0m root\r\n")
    status, _, errors = run.ended()
    assert status == 1
    assert errors.startswith(
        'kbridge: "login:" did not come within 300 ms: line 2 (ask); last came "no root\\n"; '
    )


def test_a_lost_line_fails_and_one_that_comes_back_can_be_waited_for(
    relay: RelayProcess, tmp_path: Path
) -> None:
    run = Runs(relay, written(tmp_path, 'wait "login:"'))
    run.until("waits for")
    relay.far.hang_up()
    status, _, errors = run.ended()
    assert status == 1
    assert "the line was lost: " in errors
    assert relay.far.peer
    wait_for(lambda: relay.json("GET", "/guests/web1")[1]["console"]["state"] == "open", "the line")

    run = Runs(relay, written(tmp_path, 'wait "a"\n on lost next\nwait "b"\nsend "back"\n'))
    run.until("waits for")
    relay.far.hang_up()
    run.until("the line was lost")
    relay.far.say(b"b")
    assert relay.far.hear(4) == b"back"
    assert run.ended()[0] == 0


def test_a_break_that_cannot_be_sent_is_a_failure(relay: RelayProcess, tmp_path: Path) -> None:
    done = relay.run("expect", "web1", str(written(tmp_path, 'send-break "w"')))
    assert done.returncode == 1
    assert "the keys of line 1 could not be sent: BREAK cannot be sent on unix:" in done.stderr


def test_a_line_that_is_not_there_is_said(relay: RelayProcess, tmp_path: Path) -> None:
    done = relay.run("expect", "bare", str(written(tmp_path, "done")))
    assert done.returncode == 1
    assert "bare has no console" in done.stderr


def test_a_person_who_holds_the_pen_is_named_and_can_be_overruled(
    relay: RelayProcess, tmp_path: Path
) -> None:
    path = written(tmp_path, 'send "x"')
    with ConsoleClient(Control(relay.control), "web1", read_only=False, history=0) as person:
        person.type(b"k")
        assert relay.far.hear(1) == b"k"
        holder = pen(relay)
        done = relay.run("expect", "web1", str(path))
        assert done.returncode == 1
        assert f"{holder} holds the pen of web1; ask them to leave, or take it by --force" in done.stderr
        assert relay.far.is_silent()
        forced = relay.run("expect", "web1", str(path), "--force")
        assert forced.returncode == 0, forced.stderr
        assert relay.far.hear(1) == b"x"
        said = [message for message in person.messages(1) if isinstance(message, dict)]
        assert {"type": "pen", "holder": None, "mine": False} in said
        assert any("(expect s.expect) took the pen" in one.get("text", "") for one in said)


def test_at_a_terminal_it_asks(relay: RelayProcess, tmp_path: Path) -> None:
    path = written(tmp_path, 'secret PW\nsend-secret PW\nsend "x"')
    terminal, far = pty.openpty()
    seen = b""

    def until(words: bytes) -> None:
        nonlocal seen
        while words not in seen:
            assert select.select([terminal], [], [], SECONDS)[0], seen
            seen += os.read(terminal, 4096)

    with ConsoleClient(Control(relay.control), "web1", read_only=False, history=0) as person:
        person.ask({"type": "pen", "action": "take"})
        wait_for(lambda: pen(relay), "the pen")
        process = subprocess.Popen(
            [sys.executable, "-m", "kbridge", "expect", "web1", str(path)],
            env=relay.env,
            stdin=far,
            stdout=far,
            stderr=far,
            start_new_session=True,
        )
        until(b"PW: ")
        os.write(terminal, b"geheim\n")
        until(b"holds the pen of web1: take it? [y/N]: ")
        os.write(terminal, b"y\n")
        assert relay.far.hear(7) == b"geheimx"
        until(b"done")
        assert process.wait(SECONDS) == 0
        assert b"geheim" not in seen
    os.close(terminal)
    os.close(far)


def test_a_person_who_takes_the_pen_ends_the_run(relay: RelayProcess, tmp_path: Path) -> None:
    run = Runs(relay, written(tmp_path, 'wait "never"'))
    run.until("waits for")
    with ConsoleClient(Control(relay.control), "web1", read_only=False, history=0) as person:
        person.type(b"x")
        assert any("(expect s.expect) holds its pen" in str(one) for one in person.messages(1))
        assert relay.far.is_silent()
        person.ask({"type": "pen", "action": "take", "force": True})
        status, _, errors = run.ended()
        assert status == 1
        assert "took the pen: line 1" in errors
        person.type(b"y")
        assert relay.far.hear(1) == b"y"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_a_client_that_goes_ends_the_run(relay: RelayProcess, tmp_path: Path, number: signal.Signals) -> None:
    run = Runs(relay, written(tmp_path, 'wait "never"\n on timeout next'))
    run.until("waits for")
    assert "(expect s.expect)" in pen(relay)
    run.process.send_signal(number)
    status, out, errors = run.ended()
    assert status != 0
    if number == signal.SIGINT:
        assert (status, errors) == (1, "kbridge: cancelled by Ctrl-C: the pen of web1 is free again\n")
    wait_for(lambda: pen(relay) is None, "the pen's release")
    last = events(relay, run_id(out))[-1]
    assert (last["kind"], last["state"], last["what"]) == ("expect.end", "cancelled", "who ran it is gone")


def test_a_bad_script_is_refused_with_all_of_its_mistakes(relay: RelayProcess, tmp_path: Path) -> None:
    path = written(tmp_path, 'sned "x"\nwait /(/\nvar HOST')
    done = relay.run("expect", "web1", str(path))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{path}:{number}" for number in (1, 2, 3)]
    assert "(is it send?)" in lines[0]
    status, problem = relay.json("POST", "/guests/web1/expect", {"script": path.read_text()})
    assert (status, problem["type"]) == (422, "urn:kbridge:problem:invalid-script")
    assert problem["detail"].splitlines()[0].startswith("line 1: there is no command sned")
    assert relay.run("expect", "web1", str(tmp_path / "none")).returncode == 2
    assert relay.run("expect", "web1", str(path), "--set", "HOST").returncode == 2


def test_the_api_streams_the_transcript(relay: RelayProcess) -> None:
    relay.recorded(b"login: ")
    body = {
        "script": 'var A\nsecret B\nsend "${A}"\nsend-secret B\nwait "ok"\ndone "well"',
        "name": "mine",
        "set": {"A": "1"},
        "secrets": {"B": "2"},
    }
    heard = answering(relay, (b"12", b"ok"))
    status, data = relay.ask("POST", "/guests/web1/expect", json.dumps(body).encode())
    heard()
    assert status == 200
    entries = [json.loads(line) for line in data.splitlines()]
    assert [one["kind"] for one in entries] == ["start", "sent", "sent", "waits", "saw", "end"]
    assert [one.get("keys") for one in entries[1:3]] == ['"1"', "***"]
    assert (entries[-1]["state"], entries[-1]["what"]) == ("done", "well")
    times = [one["elapsed"] for one in entries]
    assert times == sorted(times)


@pytest.mark.alone
def test_a_flood_holds_up_neither_the_run_nor_others(relay: RelayProcess, tmp_path: Path) -> None:
    run = Runs(relay, written(tmp_path, 'wait /.*a.{100}never/ 60s\n on "the end" next\nsend "."'))
    run.until("waits for")
    relay.far.say(b"abab bbaa \x1b[1m\xff\r\n" * 50_000)
    began = time.monotonic()
    assert relay.json("GET", "/version")[0] == 200
    assert time.monotonic() - began < 2
    relay.far.say(b"the end")
    assert relay.far.hear(1) == b"."
    assert run.ended()[0] == 0


def test_a_guest_that_leaves_the_configuration_ends_the_run(tmp_path: Path) -> None:
    relay = RelayProcess()
    relay.start()
    try:
        run = Runs(relay, written(tmp_path, 'wait "never"'))
        run.until("waits for")
        relay.write_config("[guests.other]\n")
        assert relay.run("reload").returncode == 0
        status, _, errors = run.ended()
        assert status == 1
        assert "the relay lets web1 go" in errors
    finally:
        relay.close()


def test_the_end_of_the_relay_is_said(tmp_path: Path) -> None:
    relay = RelayProcess()
    relay.start()
    try:
        run = Runs(relay, written(tmp_path, 'wait "never"'))
        run.until("waits for")
        relay.stop()
        status, out, errors = run.ended()
        assert status == 1
        assert "the relay went away" in errors or "the relay lets web1 go" in errors
        log = relay.run("log", "web1", "--json").stdout
        ends = [json.loads(line) for line in log.splitlines() if "expect.end" in line]
        assert [(one["run"], one["state"]) for one in ends] == [(run_id(out), "cancelled")]
    finally:
        relay.close()
