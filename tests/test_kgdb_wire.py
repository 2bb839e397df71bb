"""Real kgdb behind a line of a real one's speed, without a hypervisor: each BREAK that a line has, noise and none."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bridge_lab import wait_for
from debuggers_lab import GDB_13
from sharing_lab import hits, leave, start
from wire_lab import PtyEnd, Wired

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
        code = linked(board.guest["vmlinux"], "panic")["panic"]
        said = a.run(f"output/x *(unsigned char(*)[32]){code:#x}")
        assert bytes(int(one, 16) for one in re.findall(r"0x([0-9a-f]+)[,}]", said)) == text_of(
            board, code, 32
        )
        a.go()
        keyboard.sendall(b"echo \\<$((6*7))\\>\r")
        wait_for(lambda: b"<42>\r\n" in board.console(), "the answer")
        a.interrupt()
        a.wait_stop()
        leave(a, "detach")
    board.goes_on()
    ticks = board.ticks()
    assert ticks == list(range(1, len(ticks) + 1))
    console = board.console().replace(b"$3#33 for KDB", b"")
    assert not re.search(rb"\$[^#$\r\n]*#[0-9a-f]{2}", console)
