"""One guest shared by several real debuggers: the relay's view of them, the machine's own word, and our own client."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge_lab import Bridge, Monitor, wait_for
from debuggers_lab import Debugger, Gdb, Make, debugger

from gdbstubs.debugger import Debugger as OwnDebugger
from gdbstubs.errors import TargetError


class Shared(Bridge):
    """A guest with its symbols configured, asked through the API: a command for each question takes too long."""

    def start_guest(self) -> None:
        super().start_guest()
        config = self.dir / "kbridge.toml"
        more = f'vmlinux = "{self.guest["vmlinux"]}"\ndebug_dirs = ["{self.guest["debug_dir"]}"]\n'
        config.write_text(config.read_text() + more)

    def listed(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.ask("/guests/web1")
        except OSError:  # not up yet
            return {}
        return found

    @property
    def observe_socket(self) -> Path:
        return self.socket.with_name("gdb-observe")

    def session(self, name: str) -> dict[str, Any]:
        return next(one for one in self.sessions() if one["name"] == name)

    def owners(self) -> dict[int, set[str]]:
        return {int(one["address"], 16): set(one["owners"]) for one in self.breakpoints()}

    def stop_number(self) -> int:
        return int(self.listed()["debug"]["stop"])

    def count(self, kind: str) -> int:
        return [event["kind"] for event in self.events()].count(kind)


class OneLine(Shared):
    """A guest whose stub is kgdb, on the console's line."""

    def __init__(self, start_guest: Callable[..., dict[str, Any]]) -> None:
        super().__init__(start_guest, "--append", "kbridge.tick=0.2 kgdboc=ttyS0", more='stub = "kgdb"\n')


def is_left_clean(shared: Shared, monitor: Monitor) -> None:
    wait_for(lambda: not shared.sessions(), "sessions that ended")
    wait_for(lambda: not shared.breakpoints(), "a stub without breakpoints")
    wait_for(lambda: shared.state() == "running", "a guest that runs", 10)
    wait_for(lambda: not (shared.dir / "state/guests/web1/journal").exists(), "a relay without a journal")
    # Through every place where a breakpoint stood, without a stop.
    before = shared.stop_number(), shared.count("machine.stop")
    shared.goes_on()
    assert (shared.stop_number(), shared.count("machine.stop")) == before
    assert monitor.status() == "running"


def name_of(one: Debugger) -> str:
    """The name under which the relay knows this session."""
    match = re.search(r"(?m)^ +(\S+) .*\(you\)", one.monitor("status"))
    assert match, one.said
    return match[1]


def truth(monitor: Monitor, name: str, processor: int = 0) -> int:
    said = monitor.command(
        "human-monitor-command", **{"command-line": "info registers", "cpu-index": processor}
    )
    match = re.search(rf"\b{name} *=([0-9a-f]{{16}})", said)
    assert match, said
    return int(match[1], 16)


def program_counters(monitor: Monitor) -> set[int]:
    """Of both processors: which one stopped is not always the first."""
    return {truth(monitor, "RIP", processor) for processor in (0, 1)}


def true_memory(monitor: Monitor, address: int, length: int) -> bytes:
    said = monitor.command("human-monitor-command", **{"command-line": f"x /{length}xb {address:#x}"})
    return bytes(int(one, 16) for one in re.findall(r"\b0x([0-9a-f]{2})\b", said))


def is_waiting(shared: Shared, name: str) -> None:
    wait_for(lambda: shared.session(name)["waits"], f"{name} waiting for a stop", 10)


def leave(one: Debugger, how: str) -> None:
    match how:
        case "detach":
            assert "detached" in one.detach()
        case "quit":
            one.quit()
        case "SIGKILL":
            one.kill()


def start(make: Make, shared: Shared, path: Path | None = None) -> Any:
    one = debugger(make, shared.env)
    one.attach(path or shared.socket)
    return one


def hits(one: Gdb, address: int) -> None:
    """Continue to a breakpoint of one's own."""
    one.go()
    said = one.wait_stop()
    assert "Breakpoint " in said, said
    assert one.pc == address


class Own:
    """Our own debugger without its I/O, on a blocking socket."""

    def __init__(self, path: Path) -> None:
        self.words: list[str] = []
        self.debugger = OwnDebugger(on_words=self.words.append)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self.stop = self.ask(lambda done: self.debugger.connected(done, time.monotonic()))

    def ask(self, operation: Callable[[Callable[[Any], None]], None]) -> Any:
        return self.answer(self.begin(operation))

    def begin(self, operation: Callable[[Callable[[Any], None]], None]) -> list[Any]:
        answers: list[Any] = []
        operation(answers.append)
        self._flush()
        return answers

    def answer(self, answers: list[Any]) -> Any:
        while not answers:
            data = self._socket.recv(65536)
            assert data, f"the relay closed the connection: {self.words}"
            self.debugger.receive(data, time.monotonic())
            self._flush()
        assert not isinstance(answers[0], TargetError), answers[0]
        return answers[0]

    def _flush(self) -> None:
        # Even no bytes cannot be sent to a relay that has closed, as it does after its answer to a detach.
        if data := self.debugger.take_output():
            self._socket.sendall(data)

    @property
    def pc(self) -> int:
        return int(self.ask(lambda done: self.debugger.registers(None, done))["rip"])

    def monitor(self, command: str) -> str:
        return str(self.ask(lambda done: self.debugger.monitor(command, done)))

    def close(self) -> None:
        self._socket.close()
