"""`kbridge trace` and the API's packets, of a real relay: a debugger speaks, and people read along."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from relay_lab import ROOT, RelayProcess, wait_for

from gdbstubs.wire import frame
from kbridge.frontends.websockets import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    # Nobody is at this stub: what a debugger asks for first needs none.
    relay = RelayProcess(
        'stub = "unix:/nonexistent/stub"\n[guests.off]\nstub = "unix:/nonexistent/s2"\npackets_ring_bytes = 0\n'
    )
    relay.start()
    yield relay
    relay.close()


@pytest.fixture(autouse=True)
def _disconnected(relay: RelayProcess) -> Iterator[None]:
    yield
    relay.disconnect()


@contextmanager
def debugger(relay: RelayProcess) -> Iterator[socket.socket]:
    with relay.connect(relay.runtime / "bare" / "gdb") as connection:
        yield connection


def ask(connection: socket.socket, payload: bytes = b"vMustReplyEmpty") -> None:
    """Send a packet and wait for the acknowledgement and reply."""
    connection.sendall(frame(payload))
    heard = b""
    while not re.fullmatch(rb"\+?\$[^#]*#..", heard, re.DOTALL):
        piece = connection.recv(4096)
        assert piece, heard
        heard += piece
    connection.sendall(b"+")


def traced(relay: RelayProcess, *arguments: str) -> list[dict[str, Any]]:
    done = relay.run("trace", "bare", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_session_in_words(relay: RelayProcess) -> None:
    with debugger(relay) as connection:
        ask(connection)
    done = relay.run("trace", "bare", "--last", "2")
    assert done.returncode == 0, done.stderr
    time = r"\d\d:\d\d:\d\d\.\d{6}"
    lines = done.stdout.splitlines()
    assert re.fullmatch(rf"{time} {ME} +-> vMustReplyEmpty +how are unknown packets answered\?", lines[0]), (
        lines
    )
    assert re.fullmatch(rf"{time} {ME} +<- +not known here", lines[1]), lines
    assert "\x1b" not in done.stdout


def test_objects_and_bytes(relay: RelayProcess) -> None:
    with debugger(relay) as connection:
        ask(connection)
    one, two = traced(relay, "-n2", "--session", ME)
    assert (one["session"], one["from"], one["kind"], one["packet"]) == (
        ME,
        "debugger",
        "packet",
        "vMustReplyEmpty",
    )
    assert (two["from"], two["packet"], two["length"]) == ("stub", "", 0)
    raw = wait_for(
        lambda: (
            [one["packet"] for one in traced(relay, "-n3", "--raw")][-1:] == ["+"]
            and traced(relay, "-n3", "--raw")
        ),
        "the acknowledgement",
    )
    assert [one["kind"] for one in raw] == ["bytes"] * 3
    assert raw[0]["packet"] == "$vMustReplyEmpty#3a"
    assert [one for one in traced(relay, "--session", "nobody") if one["session"] is not None] == []
    assert traced(relay, "--since", "2999-01-01") == []


def test_following_shows_what_comes_and_ends_with_an_interrupt(relay: RelayProcess) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kbridge", "trace", "bare", "--follow", "--json"],
        env={**relay.env, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    try:
        with debugger(relay) as connection:

            def shown() -> bytes | None:
                ask(connection)
                return process.stdout.read()  # type: ignore[union-attr]

            said = wait_for(shown, "a packet")
        assert json.loads(said.splitlines()[0])["packet"] in ("vMustReplyEmpty", "")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, b"")
    finally:
        process.kill()
        process.communicate()


def test_a_reader_that_has_enough_is_no_error(relay: RelayProcess) -> None:
    with debugger(relay) as connection:
        for _ in range(200):
            ask(connection)
    done = subprocess.run(
        f"{sys.executable} -m kbridge trace bare | head -n 1", shell=True, env=relay.env, capture_output=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nope"], 1, "no packets of 'nope' were recorded"),
        (["../x"], 1, "that is no guest's name"),
        (["off"], 1, "packets_ring_bytes is 0"),
        (["web1"], 1, "it has no debug stub"),
        (["bare", "--last", "-1"], 2, "--last"),
        (["bare", "--since", "yesterday"], 2, "is no time"),
    ],
)
def test_mistakes_are_told(relay: RelayProcess, arguments: list[str], status: int, words: str) -> None:
    done = relay.run("trace", *arguments)
    assert done.returncode == status
    assert words in done.stderr
    assert done.stdout == ""


def test_the_api_has_it_as_text_and_over_a_websocket(relay: RelayProcess) -> None:
    from wsproto import ConnectionType, WSConnection
    from wsproto.events import AcceptConnection, CloseConnection, Request, TextMessage

    with debugger(relay) as connection:
        ask(connection)
        status, text = relay.ask("GET", "/guests/bare/packets?last=2&format=text")
        assert status == 200
        assert text.count(b"\n") == 2
        assert b"not known here" in text
        assert relay.ask("GET", "/guests/bare/packets?session=")[0] == 400
        assert relay.ask("GET", "/guests/off/packets")[0] == 409
        protocol, far = WSConnection(ConnectionType.CLIENT), relay.connect()
        far.sendall(protocol.send(Request(host="localhost", target="/guests/bare/packets?last=1")))
        said: list[Any] = []

        def heard(wanted: int) -> list[Any]:
            while len(said) < wanted:
                protocol.receive_data(far.recv(65536))
                said.extend(protocol.events())
            return said

        heard(2)
        ask(connection, b"vMustReplyEmpty")
        accepted, *messages = heard(4)
        assert isinstance(accepted, AcceptConnection)
        assert [json.loads(one.data)["from"] for one in messages] == ["stub", "debugger", "stub"]
        assert all(isinstance(one, TextMessage) for one in messages)
        far.sendall(protocol.send(TextMessage("hello")))
        (closed,) = heard(5)[4:]
        assert isinstance(closed, CloseConnection)
        assert closed.reason == "a trace takes no messages"


def test_the_longest_line_fits_a_message(relay: RelayProcess) -> None:
    with debugger(relay) as connection:
        connection.sendall(frame(b"M0,1:" + b"\x7f" * 20000))
        wait_for(lambda: any(one["kind"] != "packet" for one in traced(relay, "-n3")), "the long packet")
    assert all(len(json.dumps(one)) < MAX_MESSAGE_BYTES for one in traced(relay, "-n4"))


def test_the_record_outlives_a_killed_relay(relay: RelayProcess) -> None:
    with debugger(relay) as connection:
        ask(connection)
    before = wait_for(lambda: traced(relay)[-1]["packet"] == "" and traced(relay), "the reply")
    assert relay.process is not None
    relay.process.kill()
    relay.process.wait()
    assert traced(relay) == before
    done = relay.run("trace", "bare", "--follow")
    assert done.returncode == 1
    assert "cannot be followed" in done.stderr
    relay.start()
    with debugger(relay) as connection:
        ask(connection)
    after = traced(relay)
    assert after[: len(before)] == before
    assert "killed" in after[len(before)]["words"]
    assert after[-1]["words"] == "not known here"


# -- a real gdb and a real stub ------------------------------------------------------------------------------


@pytest.fixture
def machine() -> Iterator[RelayProcess]:
    """A relay with `vm`, a QEMU without a kernel, before its first instruction."""
    relay = RelayProcess()
    qmp = relay.dir / "qmp"
    relay.write_config(f'[guests.vm]\nqmp = "unix:{qmp}"\n')
    qemu = subprocess.Popen(
        ["qemu-system-x86_64", "-S", "-M", "pc,accel=tcg", "-m", "32", "-nodefaults", "-display", "none",
         "-qmp", f"unix:{qmp},server=on,wait=off"],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(qmp.exists, "QEMU's monitor")
        relay.start(line=False)
        wait_for(lambda: relay.json("GET", "/guests/vm")[1]["state"] == "paused", "the machine's state")
        yield relay
    finally:
        relay.stop()
        qemu.kill()
        qemu.wait(20)
    relay.close()


@pytest.mark.qemu
@pytest.mark.gdb
def test_what_gdb_and_qemu_say_is_all_understood(machine: RelayProcess) -> None:
    commands = [
        f"target remote {machine.runtime / 'vm' / 'gdb'}", "info registers", "x/16x 0xffff0", "stepi",
        "info threads", "hbreak *0x7c00", "set *(char *) 0x1000 = 1", "monitor help", "detach",
    ]  # fmt: skip
    arguments = [word for each in commands for word in ("-ex", each)]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert "detached" in done.stdout, done.stdout + done.stderr
    shown = machine.run("trace", "vm", "--json")
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    packets = [line for line in lines if line["kind"] == "packet"]
    assert {line["session"] for line in packets} == {ME, "stub"}
    # Each has words, but for a reply of QEMU's own to a question of QEMU's own.
    assert {line["packet"] for line in packets if not line["words"]} <= {"0x7"}
    # Nothing was lost on the way: only words about the record stand between the packets.
    assert {line["kind"] for line in lines} - {"packet"} <= {"record"}
    for session in (ME, "stub"):
        said = [(line["from"], line["words"]) for line in packets if line["session"] == session]
        assert ("stub", "stopped: SIGTRAP, thread 1") in said
    own = [line["words"] for line in packets if line["session"] == ME]
    assert own[-2:] == ["detach", "done"]
    assert "read all registers" in own
    assert "monitor help" in own
    assert any(words.startswith("write 1 byte at 1000") for words in own)
    assert any(words.startswith('says "') for words in own)
