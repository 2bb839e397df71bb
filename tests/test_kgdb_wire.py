"""Real kgdb behind a line of a real one's speed, without a hypervisor: each BREAK that a line has, noise and none."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bridge_lab import wait_for
from debuggers_lab import GDB_13, Gdb, Silent
from sharing_lab import hits, leave, start
from wire_lab import PtyEnd, Rfc2217End, Wired

from kbridge.debuginfo.mapping import mapped
from symbols import elf

pytestmark = [pytest.mark.guest, pytest.mark.gdb]

StartGuest = Callable[..., dict[str, Any]]
OFTEN = "hrtimer_nanosleep"
NOISE = 0.001
"""A byte in a thousand: a bad line. At 115,200 baud it harms ten bytes a second."""


def linked(path: str, *names: str) -> dict[str, int]:
    with mapped(Path(path)) as image:
        return elf.symbol_values(image, names)


@pytest.fixture(scope="module")
def board(shared_kgdb_guest: StartGuest) -> Iterator[Wired]:
    with Wired(shared_kgdb_guest, PtyEnd) as one:
        yield one


def text_of(board: Wired, address: int, length: int) -> bytes:
    """What the kernel's file has at an address of its code."""
    with mapped(Path(board.guest["vmlinux"])) as image:
        section = next(one for one in elf.sections(image) if one.name == ".text")
        place = section.offset + address - section.address
        return bytes(image[place : place + length])


def code_of(board: Wired, gdb: Gdb) -> tuple[bytes, bytes]:
    """What a debugger reads of the kernel's code, and what it is."""
    address = linked(board.guest["vmlinux"], "panic")["panic"]
    said = gdb.run(f"output/x *(unsigned char(*)[64]){address:#x}")
    return bytes(int(one, 16) for one in re.findall(r"0x([0-9a-f]+)[,}]", said)), text_of(board, address, 64)


def test_a_serial_device_alone_has_all_that_a_monitor_gives(board: Wired) -> None:
    often = linked(board.guest["vmlinux"], OFTEN)[OFTEN]
    with socket.socket(socket.AF_UNIX) as keyboard, start(GDB_13, board) as a:
        assert board.listed()["debug"]["break_in"] == {"ways": ["serial-break"], "worked": "serial-break"}
        keyboard.connect(str(board.socket.with_name("console")))
        a.break_at(often)
        for _ in range(5):
            hits(a, often)
            before = a.pc
            a.step()
            assert 0 < a.pc - before < 16
        a.run("delete")
        read, true = code_of(board, a)
        assert read == true
        a.go()
        keyboard.sendall(b"echo \\<$((6*7))\\>\r")
        wait_for(lambda: b"<42>" in board.console(), "the answer")
        a.interrupt()
        a.wait_stop()
        leave(a, "detach")
    board.goes_on()
    ticks = board.ticks()
    assert ticks == list(range(1, len(ticks) + 1))
    console = board.console().replace(b"$3#33 for KDB", b"")
    assert not re.search(rb"\$[^#$\r\n]*#[0-9a-f]{2}", console)


def test_noise_harms_no_answer_and_what_it_stops_goes_on(board: Wired) -> None:
    assert board.wire is not None
    often = linked(board.guest["vmlinux"], OFTEN)[OFTEN]
    board.wire.noise(NOISE)
    with start(GDB_13, board) as a:
        # It waits two seconds for an answer, and is out of step after that.
        a.run("set remotetimeout 30")
        a.break_at(often)
        for _ in range(6):
            a.go()
            stop_of(a)
            assert a.pc == often
            before = a.pc
            a.step()
            assert 0 < a.pc - before < 16
        read, true = code_of(board, a)
        assert read == true
        a.run("delete")
        leave(a, "detach")
    harmed = board.wire.to_guest.harmed + board.wire.to_relay.harmed
    assert harmed >= 10, "not much of a test"
    board.wire.noise(0)
    with start(GDB_13, board) as a:
        read, true = code_of(board, a)
        assert read == true
        leave(a, "detach")
    board.goes_on()
    assert board.breakpoints() == []


def stop_of(gdb: Gdb) -> str:
    """Wait for a stop; one whose packet was harmed is told once somebody asks: Ctrl-C, as a user would."""
    try:
        return gdb.wait_stop(15)
    except Silent:
        gdb.interrupt()
        return gdb.wait_stop()


@pytest.fixture(scope="module")
def server(shared_kgdb_guest: StartGuest) -> Iterator[Wired]:
    """A guest behind a console server that takes RFC 2217's BREAK, and passes over telnet's."""
    with Wired(
        shared_kgdb_guest,
        lambda folder, breaks: Rfc2217End(breaks),
        'break_in = ["telnet-break", "rfc2217-break"]\n',
    ) as one:
        yield one


def attach_and_leave(board: Wired) -> list[str]:
    """Attach once; return the ways of break-in that the time line has of it."""
    before = len(board.events())
    with start(GDB_13, board) as a:
        leave(a, "detach")
    board.goes_on()
    return [one["way"] for one in board.events()[before:] if one["kind"] == "debugger.break_in"]


def test_a_way_that_fails_is_followed_by_the_next_and_what_worked_outlives_the_relay(server: Wired) -> None:
    assert server.wire is not None
    ways = {"ways": ["telnet-break", "rfc2217-break"], "worked": None}
    assert server.listed()["debug"]["break_in"] == ways
    assert attach_and_leave(server) == ["rfc2217-break"]
    assert server.wire.breaks == 1
    ways = {"ways": ["rfc2217-break", "telnet-break"], "worked": "rfc2217-break"}
    assert server.listed()["debug"]["break_in"] == ways
    # A reload that starts the guest anew, and another relay.
    config = server.dir / "kbridge.toml"
    config.write_text(config.read_text() + "stub_timeout_seconds = 12.0\n")
    assert server.run("reload").returncode == 0
    assert server.listed()["debug"]["break_in"] == ways
    server.kill_relay()
    server.start_relay()
    assert server.listed()["debug"]["break_in"] == ways
    assert attach_and_leave(server) == ["rfc2217-break"]
    assert server.wire.breaks == 2
