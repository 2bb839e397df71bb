"""A target that is nothing but memory and registers: what a server half is tested on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gdbstubs.errors import EFAULT, TargetError
from gdbstubs.rights import Right
from gdbstubs.target import Action, Breakpoint, Halted, Stop, Thread, ThreadId
from rsp.stub import memory_at

REGISTERS = bytes(range(64))
DESCRIPTION = b'<?xml version="1.0"?><target><architecture>i386:x86-64</architecture></target>'
MAPPED = range(0x1000, 0x100000)


class PlainTarget:
    """Answers at once, or, when `slow`, in the order in which `answer` is told."""

    def __init__(
        self, right: Right = Right.CONTROLLER, *, slow: bool = False, reverses: bool = False
    ) -> None:
        self.right = right
        self.reverses = reverses
        self.slow = slow
        self.calls: list[tuple[Any, ...]] = []
        self.pending: list[Callable[[], None]] = []
        self.stopped: Callable[[Stop | TargetError], None] | None = None
        self.stop: Stop | TargetError = Halted(5, ThreadId(1))
        self.refusal: TargetError | None = None
        self.spared: set[str] = set()
        """What is answered in spite of a refusal."""
        self.interrupts = 0
        self.threads = (Thread(ThreadId(1), "CPU#0 [running]"), Thread(ThreadId(2), "CPU#1 [halted <&>]"))

    def answer(self, index: int = 0) -> None:
        self.pending.pop(index)()

    def _do(self, call: tuple[Any, ...], done: Callable[[Any], None], result: Any) -> None:
        self.calls.append(call)
        if self.refusal is not None and call[0] not in self.spared:
            result = self.refusal
        if self.slow:
            self.pending.append(lambda: done(result))
        else:
            done(result)

    def attach(self, done: Any) -> None:
        self._do(("attach",), done, None)

    def why_stopped(self, done: Any) -> None:
        self._do(("why",), done, self.stop)

    def read_registers(self, thread: ThreadId, done: Any) -> None:
        self._do(("g", thread), done, REGISTERS.hex().encode())

    def write_registers(self, thread: ThreadId, data: bytes, done: Any) -> None:
        self._do(("G", thread, data), done, None)

    def read_register(self, thread: ThreadId, number: int, done: Any) -> None:
        self._do(("p", thread, number), done, REGISTERS[number : number + 8].hex().encode())

    def write_register(self, thread: ThreadId, number: int, value: bytes, done: Any) -> None:
        self._do(("P", thread, number, value), done, None)

    def read_memory(self, thread: ThreadId, address: int, length: int, done: Any) -> None:
        length = min(length, MAPPED.stop - address)
        found = memory_at(address, length) if address in MAPPED else TargetError(EFAULT, "nothing there")
        self._do(("m", thread, address, length), done, found)

    def write_memory(self, thread: ThreadId, address: int, data: bytes, done: Any) -> None:
        found = None if address in MAPPED else TargetError(EFAULT, "nothing there")
        self._do(("M", thread, address, data), done, found)

    def insert(self, breakpoint_: Breakpoint, done: Any) -> None:
        self._do(("Z", breakpoint_), done, None)

    def remove(self, breakpoint_: Breakpoint, done: Any) -> None:
        self._do(("z", breakpoint_), done, None)

    def resume(self, actions: tuple[Action, ...], done: Any) -> None:
        self.calls.append(("resume", actions))
        assert self.stopped is None, "resumed twice"
        if self.refusal is not None:
            done(self.refusal)
            return
        self.stopped = done

    def halt(self, stop: Stop | TargetError) -> None:
        stopped, self.stopped = self.stopped, None
        assert stopped is not None
        stopped(stop)

    def interrupt(self) -> None:
        self.interrupts += 1

    def list_threads(self, done: Any) -> None:
        self._do(("threads",), done, self.threads)

    def is_alive(self, thread: ThreadId, done: Any) -> None:
        self._do(("T", thread), done, any(one.id == thread for one in self.threads))

    def pass_read(self, thread: ThreadId, address: int, length: int, packet: bytes, passage: Any) -> bool:
        return False

    def forget_breakpoints(self) -> None:
        pass

    def read_description(self, annex: str, done: Any) -> None:
        self._do(("description", annex), done, DESCRIPTION if annex == "target.xml" else None)

    def detach(self, done: Any) -> None:
        self._do(("detach",), done, None)
