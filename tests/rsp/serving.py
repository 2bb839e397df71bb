"""A server half behind a real socket, so that real debuggers can be held against it without a guest.

The target is an x86-64 machine of the simplest kind: it counts its program counter up when it is stepped, and runs
until it is interrupted.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from pathlib import Path
from typing import Any, Self

from gdbstubs.errors import EBUSY, EINVAL, EPERM, LinkFailed, RemoteProtocolError, TargetError
from gdbstubs.rights import Right
from gdbstubs.server import Server
from gdbstubs.target import Action, Halted, Motion, ThreadId
from rsp.target import PlainTarget

_GENERAL = [
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rbp",
    "rsp",
    *(f"r{number}" for number in range(8, 16)),
]
_REGISTERS = [
    *((name, 64, "int64") for name in _GENERAL),
    ("rip", 64, "code_ptr"),
    *((name, 32, "int32") for name in ("eflags", "cs", "ss", "ds", "es", "fs", "gs")),
    *((f"st{number}", 80, "i387_ext") for number in range(8)),
    *((name, 32, "int") for name in ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")),
]
_DESCRIPTION = (
    '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>'
    "<architecture>i386:x86-64</architecture>"
    '<feature name="org.gnu.gdb.i386.core">'
    + "".join(f'<reg name="{name}" bitsize="{bits}" type="{kind}"/>' for name, bits, kind in _REGISTERS)
    + "</feature></target>"
)
_LENGTHS = [bits // 4 for _, bits, _ in _REGISTERS]
_COUNTER = slice(sum(_LENGTHS[:16]), sum(_LENGTHS[:17]))


class TinyMachine(PlainTarget):
    """What a session sees; with `aside`, a guest that runs and is not stopped by who attaches."""

    def __init__(self, right: Right = Right.CONTROLLER, *, aside: bool = False) -> None:
        super().__init__(right, reverses=True)
        self.aside = aside
        self.pc = 0x1000
        if aside:
            self.stop = Halted(0, ThreadId(1))

    def _text(self) -> bytes:
        if self.aside:
            # gdb cannot attach where the program counter is not available.
            text = bytearray(b"x" * sum(_LENGTHS))
            text[_COUNTER] = b"0" * 16
        else:
            text = bytearray(b"0" * sum(_LENGTHS))
            text[_COUNTER] = self.pc.to_bytes(8, "little").hex().encode()
        return bytes(text)

    def read_registers(self, thread: ThreadId, done: Any) -> None:
        self._do(("g", thread), done, self._text())

    def read_register(self, thread: ThreadId, number: int, done: Any) -> None:
        start = sum(_LENGTHS[:number])
        known = number < len(_LENGTHS)
        text = (
            self._text()[start : start + _LENGTHS[number]]
            if known
            else TargetError(EINVAL, "no such register")
        )
        self._do(("p", thread, number), done, text)

    def read_memory(self, thread: ThreadId, address: int, length: int, done: Any) -> None:
        if self.aside:
            self._do(("m", thread, address, length), done, TargetError(EBUSY, "the guest runs"))
        else:
            super().read_memory(thread, address, length, done)

    def pass_read(self, thread: ThreadId, address: int, length: int, packet: bytes, passage: Any) -> bool:
        return False

    def forget_breakpoints(self) -> None:
        pass

    def read_description(self, annex: str, done: Any) -> None:
        self._do(("description", annex), done, _DESCRIPTION.encode() if annex == "target.xml" else None)

    def resume(self, actions: tuple[Action, ...], done: Any) -> None:
        motion = actions[0].motion
        if self.refusal is None and self.right < Right.CONTROLLER and motion is not Motion.CONTINUE:
            done(TargetError(EPERM, "this session observes and may not step"))
            return
        super().resume(actions, done)
        if self.stopped is not None and motion is Motion.STEP:
            self.pc += 1
            self.halt(Halted(5, ThreadId(1)))
        elif self.stopped is not None and motion is Motion.REVERSE_STEP:
            self.pc -= 1
            self.halt(Halted(5, ThreadId(1)))

    def interrupt(self) -> None:
        super().interrupt()
        if self.stopped is not None:
            self.halt(Halted(0 if self.aside else 2, ThreadId(1)))


class Serving:
    """Serves one debugger after the other on a unix socket, in a thread of its own, until the end of the `with`."""

    def __init__(self, target: PlainTarget, path: Path) -> None:
        self.target = target
        self.path = path
        self.received: list[bytes] = []
        self.failed: list[BaseException] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._ends, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._end.close()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._listener.close()
        self._ends.close()
        assert self.failed == []

    def _readable(self, one: socket.socket) -> bool:
        return self._ends not in select.select([one, self._ends], [], [])[0]

    def _serve(self) -> None:
        try:
            while self._readable(self._listener):
                connection, _ = self._listener.accept()
                with connection:
                    self._converse(connection)
        except Exception as error:  # noqa: BLE001 (the test's own thread says so)
            self.failed.append(error)

    def _converse(self, connection: socket.socket) -> None:
        server = Server(self.target, lambda command, done: done(f"a tiny machine: {command}\n"))
        while not server.finished and self._readable(connection):
            try:
                data = connection.recv(1 << 20)
                if not data:
                    return
                self.received.append(data)
                server.now = time.monotonic()
                server.receive(data)
                connection.sendall(server.take_output())
            except (ConnectionError, LinkFailed, RemoteProtocolError):
                return
