"""Four real debuggers are served our own description of x86-64, with kgdb's registers behind it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from debuggers_lab import MAKES, Make, debugger
from rsp.target import PlainTarget

from gdbstubs.registers import Translation
from gdbstubs.server import Server
from gdbstubs.target import ThreadId
from gdbstubs.x86 import KGDB_X86_64, X86_64

pytestmark = pytest.mark.gdb

# 17 registers of 8 bytes, then eflags, cs, ss, ds and es: all that the kernel's `g` has.
VALUES = {one.name: 0x1000 + one.number for one in KGDB_X86_64.registers if one.name not in ("fs", "gs")}
TEXT = b"".join(
    VALUES[one.name].to_bytes(one.size, "little").hex().encode()
    for one in KGDB_X86_64.registers
    if one.name in VALUES
)


class Described(PlainTarget):
    def read_registers(self, thread: ThreadId, done: Any) -> None:
        self._do(("g", thread), done, Translation(KGDB_X86_64, X86_64).translate(TEXT))

    def read_register(self, thread: ThreadId, number: int, done: Any) -> None:
        translation = Translation(KGDB_X86_64, X86_64)
        self._do(("p", thread, number), done, X86_64.numbers[number].of(translation.translate(TEXT)))

    def pass_read(self, thread: ThreadId, address: int, length: int, packet: bytes, passage: Any) -> bool:
        return False

    def forget_breakpoints(self) -> None:
        pass

    def read_description(self, annex: str, done: Any) -> None:
        self._do(("description", annex), done, X86_64.document if annex == "target.xml" else None)


def _serve(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        server = Server(Described(), lambda command, done: done(""))
        while not server.finished and (data := connection.recv(65536)):
            server.receive(data)
            connection.sendall(server.take_output())


@pytest.fixture
def served() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="kb-")
    path = Path(folder) / "gdb"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(60)
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=_serve, args=(listening,))
        thread.start()
        try:
            yield path
        finally:
            thread.join(60)
            shutil.rmtree(folder)
    assert not thread.is_alive()


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.name)
def test_our_description_is_understood(make: Make, served: Path) -> None:
    with debugger(make, os.environ) as one:
        one.attach(served)
        for name in ("rax", "r15", "rsp", "rip", "cs", "es"):
            assert one.register(name) == VALUES[name], name
        if make.is_gdb:
            assert "0x1011" in one.run("info registers eflags")
            assert "[ CF AF" in one.run("print $eflags"), "its bits have names"
            assert one.run("info registers gs_base cr3 xmm0").count("<unavailable>") >= 2
            assert "= 16" in one.run("print sizeof($xmm0)")
        else:
            assert one.register("eflags") == VALUES["eflags"]
            # LLDB fills what is not available with 0xcc.
            assert one.register("gs_base") == 0xCCCCCCCCCCCCCCCC
        assert "too long" not in one.said
        assert "target description" not in one.said, "it complains of nothing in it"
