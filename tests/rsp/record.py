"""Record what real debuggers and a real stub say to each other through the relay, as golden transcripts.

    scripts/guest run cloud --append kbridge.tick=0.2 > GUEST.json &
    python tests/rsp/record.py GUEST.json [NAME…]

GUEST.json is what the guest's start printed; the files in `golden/` with these names, or all, are written anew.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from twisted.internet import reactor as chosen  # noqa: E402
from twisted.internet.defer import Deferred, ensureDeferred  # noqa: E402
from twisted.internet.utils import getProcessOutputAndValue  # noqa: E402

from gdbstubs import effects, exchange  # noqa: E402
from kbridge import relay as relays  # noqa: E402
from kbridge.hypervisors.qemu import QemuMachine  # noqa: E402
from kbridge.transports.endpoints import Unix, parse_endpoint  # noqa: E402
from kbridge.transports.streams import PRIVATE  # noqa: E402
from rsp.goldens import FOLDER, to_text  # noqa: E402

NEWER = ROOT / ".venv" / "debuggers" / "bin"
IDT = "0xfffffe0000000000"
"""4096 bytes that are always mapped."""


def _gdb(program: str, *commands: str) -> tuple[str, ...]:
    """Return a gdb's command line; SOCKET stands for the relay's socket."""
    given = ("target remote SOCKET", *commands)
    return (program, "-nx", "-batch", *(word for command in given for word in ("-ex", command)))


RECORDINGS = {
    "gdb-13-steps": (
        "gdb 13.1 on QEMU 7.2: attach, threads, backtrace, two steps, detach",
        _gdb("gdb", "info threads", "bt", "stepi", "stepi", "detach"),
    ),
    "gdb-13-breakpoints": (
        "gdb 13.1 on QEMU 7.2: a breakpoint hit twice, a watchpoint, then gdb is killed while it waits",
        (
            *("sh", "-c", '"$@"; true', "sh", "timeout", "-s", "KILL", "8"),
            *_gdb("gdb", "break *$pc", "c", "c", "delete", "watch *(long *)($sp - 64)", "c", "delete", "c"),
        ),
    ),
    "gdb-18-breakpoints": (
        "gdb 18.1 on QEMU 7.2: threads, a breakpoint hit, a step, large reads, a register and memory written, detach",
        _gdb(
            str(NEWER / "gdb"),
            *("info threads", "break *$pc", "c", "delete", "stepi", f"x/256xg {IDT}"),
            *(f"dump memory /dev/null {IDT} {IDT}+4096", "set $rax=$rax"),
            *("set {char}($sp-8)={char}($sp-8)", "detach"),
        ),
    ),
    "lldb-23-attach": (
        "LLDB 23.1 on QEMU 7.2: attach, a register, a step, detach",
        (
            *(str(NEWER / "lldb"), "-X", "-b", "-o", "settings set auto-confirm true"),
            *("-o", "process connect --plugin gdb-remote unix-connect://SOCKET", "-o", "register read rip"),
            *("-o", "thread step-inst", "-o", "process detach"),
        ),
    ),
}

reactor: Any = chosen
LINES: list[str] = []


_PIECE = re.compile(rb"\$([ml])([^#]*)#..", re.DOTALL)


def _without_documents(data: bytes) -> bytes:
    """Blank the stub's register descriptions, which are long and another project's.

    The relay never sees them either, and serves its own: what was recorded can then be played back.
    """

    def blank(match: re.Match[bytes]) -> bytes:
        kind, text = match.groups()
        if len(text) < 400 or b"<thread" in text:
            return match.group()
        payload = kind + re.sub(rb"[^}](?<!}.)", b".", text, flags=re.DOTALL)
        return b"$%s#%02x" % (payload, sum(payload) % 256)

    return _PIECE.sub(blank, data)


def _outcome(effect: effects.Effect) -> str | None:
    match effect:
        case effects.ToStub(data):
            return f"stub {to_text(data)}"
        case effects.ToSession(number, data):
            return f"session {number} {to_text(data)}"
        case effects.CloseSession(number):
            return f"close session {number}"
        case effects.ConnectStub():
            return "connect"
        case effects.CloseStub(run):
            return "close run" if run else "close rest"
        case effects.QueryMachine():
            return "query"
        case _:
            return None


class Recorded(exchange.Exchange):
    """An exchange that writes down what goes in and what comes out."""

    begin = 0.0

    def note(self, text: str, call: Any) -> Any:
        before = len(self.effects)
        result = call()
        outcome = [line for effect in self.effects[before:] if (line := _outcome(effect)) is not None]
        if outcome or not text.startswith("expire"):
            LINES.append(f"in {text}".rstrip())
            LINES.extend(f"out {line}" for line in outcome)
        return result

    def session_opened(self, number: Any, name: str, now: float, **more: bool) -> bool:
        parent = super().session_opened
        return bool(self.note(f"session_opened {number} {name}", lambda: parent(number, name, now, **more)))

    def session_data(self, number: Any, data: bytes, now: float) -> None:
        parent = super().session_data
        self.note(f"session_data {number} {to_text(data)}", lambda: parent(number, data, now))

    def session_closed(self, number: Any, now: float) -> None:
        parent = super().session_closed
        self.note(f"session_closed {number}", lambda: parent(number, now))

    def stub_connected(self, now: float, *, running: bool | None) -> None:
        parent = super().stub_connected
        self.note(
            f"stub_connected {'running' if running else 'paused'}", lambda: parent(now, running=running)
        )

    def stub_data(self, data: bytes, now: float) -> None:
        parent = super().stub_data
        data = _without_documents(data)
        self.note(f"stub_data {to_text(data)}", lambda: parent(data, now))

    def stub_closed(self, reason: str, now: float) -> None:
        parent = super().stub_closed
        self.note("stub_closed", lambda: parent(reason, now))

    def stub_left(self, now: float) -> None:
        parent = super().stub_left
        self.note("stub_left", lambda: parent(now))

    def machine_runs(self, now: float, *, runs: bool) -> None:
        parent = super().machine_runs
        self.note(f"machine_runs {'yes' if runs else 'no'}", lambda: parent(now, runs=runs))

    def machine_status(self, status: Any, now: float) -> None:
        parent = super().machine_status
        runs = "yes" if status.runs else "no"
        self.note(f"machine_status {runs} {status.detail}", lambda: parent(status, now))

    def expire(self, now: float) -> None:
        parent = super().expire
        self.note(f"expire {now - self.begin:.3f}", lambda: parent(now))


async def _session(guest: dict[str, Any], arguments: tuple[str, ...]) -> None:
    relays.Exchange = Recorded  # type: ignore[misc]
    Recorded.begin = reactor.seconds()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        machine = QemuMachine(reactor, parse_endpoint(guest["qmp"]))  # type: ignore[arg-type]
        relay = relays.Relay(
            reactor,
            "web1",
            Unix(str(place / "stub")),
            machine,
            lambda kind, fields: None,
            lambda session, command, done: done(f"you said {command}\n"),
            journal_path=place / "journal",
            start_stub=True,
            resume_on_leave=True,
            stub_timeout_seconds=30.0,
        )
        machine.start()
        relay.start(place / "gdb", place / "gdb-observe", PRIVATE)
        while not machine.connected:
            pause: Deferred[None] = Deferred()
            reactor.callLater(0.02, pause.callback, None)
            await pause
        command = [one.replace("SOCKET", str(place / "gdb")) for one in arguments]
        out, err, code = await getProcessOutputAndValue(command[0], command[1:], env=None, reactor=reactor)
        sys.stderr.write(f"{out.decode()}{err.decode()}\nstatus {code}\n")
        await relay.stop()
        await machine.stop()


async def _record(guest: dict[str, Any], names: list[str]) -> None:
    for name in names or RECORDINGS:
        remark, arguments = RECORDINGS[name]
        LINES.clear()
        await _session(guest, arguments)
        text = f"# {remark}\n" + "".join(f"{line}\n" for line in LINES)
        (FOLDER / f"{name}.txt").write_text(text, encoding="ascii")


def main() -> None:
    guest = json.loads(Path(sys.argv[1]).read_text())

    def ended(result: object) -> None:
        if result is not None:
            sys.stderr.write(f"{result}\n")
        reactor.stop()

    reactor.callWhenRunning(lambda: ensureDeferred(_record(guest, sys.argv[2:])).addBoth(ended))
    reactor.run()


if __name__ == "__main__":
    main()
