"""Feed every parser and both halves with damaged input, as `scripts/fuzz` does; docs/fuzzing.md says how and why.

A case is a number: with the seed it gives a source of chance, and that gives everything else, so that one case can be
run again alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

from gdbstubs.client import StubClient
from gdbstubs.dialects import PLAIN, QEMU
from gdbstubs.errors import LinkFailed, RemoteProtocolError, TargetError
from gdbstubs.rights import Right
from gdbstubs.server import Server
from gdbstubs.target import Action, Breakpoint, BreakpointKind, Ended, Halted, Motion, ThreadId
from gdbstubs.wire import Framer
from kbridge.config import parse as parse_config
from kbridge.errors import ConfigError, MachineError
from kbridge.hypervisors.qmp import QmpConnection, QmpPhase
from kbridge.transports.endpoints import parse_endpoint
from rsp import fuzzing_crash as crash
from rsp import goldens, grammar
from rsp.framing import Model
from rsp.stub import Machine, packet
from rsp.target import PlainTarget
from rsp.world import World

MOST_GROWTH = 20 << 20
"""Bytes by which resident memory may grow between the warm-up and the end."""

ONE = ThreadId(1)


def _recorded(name: str) -> list[bytes]:
    found = []
    for path in goldens.paths():
        for step in goldens.read(path):
            event, _, text = step.event.partition(" ")
            if event == name:
                found.append(goldens.to_bytes(text.partition(" ")[2] if name == "session_data" else text))
    return [data for data in found if len(data) < 600]


FROM_DEBUGGERS = _recorded("session_data")
FROM_STUBS = _recorded("stub_data")


def _stream(chance: Random, recorded: list[bytes]) -> bytes:
    """Some bytes for one read: recorded ones, damaged ones, made-up ones, or noise."""
    match chance.randrange(4):
        case 0:
            return chance.choice(recorded)
        case 1:
            return grammar.mutated(chance, chance.choice(recorded))
        case 2:
            return packet(grammar.request(chance))
        case _:
            return grammar.garbage(chance)


def _framing(chance: Random) -> None:
    limit, runs = chance.choice((4, 16, 80)), bool(chance.randrange(2))
    framer, model = Framer(limit, runs=runs), Model(limit, runs=runs)
    count = 0
    for _ in range(chance.randrange(1, 4)):
        data = _stream(chance, FROM_DEBUGGERS)[:200]
        cut = chance.randrange(len(data) + 1)
        for piece in (data[:cut], data[cut:]):
            count += len(framer.feed(piece))
            assert len(framer._kept) <= limit + 4
        model.feed(data)
    assert count == len(model.seen)


def _server(chance: Random) -> None:
    target = PlainTarget(chance.choice(list(Right)), slow=bool(chance.randrange(2)))
    server = Server(target, lambda command, done: done(command.upper()), compress=not chance.randrange(4))
    try:
        for _ in range(chance.randrange(1, 8)):
            server.receive(_stream(chance, FROM_DEBUGGERS))
            if target.stopped is not None and chance.randrange(2):
                target.halt(
                    chance.choice((Halted(5, ONE), TargetError(5, "x"), Ended(), Halted(2, words="w")))
                )
            while target.pending and chance.randrange(3):
                target.answer(chance.randrange(len(target.pending)))
            server.take_output()
    except (RemoteProtocolError, LinkFailed):
        pass


_HERE = Breakpoint(BreakpointKind.SOFTWARE, 0x1000, 1)
_OPERATIONS: tuple[Callable[[StubClient, Callable[[object], None]], None], ...] = (
    lambda client, done: client.read_registers(ONE, done),
    lambda client, done: client.read_register(ONE, 3, done),
    lambda client, done: client.read_memory(ONE, 0x1000, 5000, done),
    lambda client, done: client.write_memory(ONE, 0x1000, b"abc", done),
    lambda client, done: client.insert(_HERE, done),
    lambda client, done: client.remove(_HERE, done),
    lambda client, done: client.list_threads(done),
    lambda client, done: client.read_description("target.xml", done),
    lambda client, done: client.resume((Action(Motion.CONTINUE),), done),
    lambda client, done: client.resume((Action(Motion.STEP, ONE),), done),
    lambda client, done: client.detach(done),
)


def _client(chance: Random) -> None:
    asked = 0
    answers: list[object] = []
    client = StubClient(chance.choice((QEMU, PLAIN)), lambda words: None)
    machine = Machine()
    machine.connect()
    asked += 1
    client.connected(answers.append)
    honest = chance.randrange(4)
    try:
        for round_ in range(chance.randrange(2, 9)):
            if round_ > 1:
                asked += 1
                chance.choice(_OPERATIONS)(client, answers.append)
            machine.receive(client.take_output())
            said = bytes(machine.output)
            machine.output.clear()
            if round_ >= honest:
                said = grammar.mutated(chance, said) if chance.randrange(2) else _stream(chance, FROM_STUBS)
            client.receive(said)
            machine.advance()
            client.now += chance.choice((0.0, 1.0, 40.0)) if not chance.randrange(8) else 0.0
            client.expire()
    except (RemoteProtocolError, LinkFailed):
        pass
    except AssertionError:
        # The stub insists on well-formed requests; after a forged acknowledgement it may see half of one.
        if honest > 8:
            raise
    client.closed("lost")
    assert len(answers) <= asked, "answered twice"
    assert client.take_output() == b""


def _debugger(world: World, chance: Random) -> None:
    """Let one of the debuggers do something."""
    sessions = sorted(number for number, one in world.sessions.items() if not one.closing)
    if not sessions or (len(sessions) < 3 and not chance.randrange(6)):
        world.open(no_ack=bool(chance.randrange(2)))
        return
    number = chance.choice(sessions)
    match chance.randrange(8):
        case 0:
            world.sessions[number].clean = False
            world.send(number, _stream(chance, FROM_DEBUGGERS))
        case 1:
            world.send(number, b"\x03")
        case 2:
            world.close(number)
        case 3 | 4:
            world.ask(number, grammar.resume(chance))
        case _:
            world.ask(number, *(grammar.request(chance) for _ in range(chance.randrange(1, 4))))


def _exchange(chance: Random) -> None:
    world = World(resume_on_leave=bool(chance.randrange(4)))
    for _ in range(chance.randrange(4, 30)):
        match chance.randrange(12):
            case 0:
                world.settle()
            case 1:
                world.deliver(chance.choice((3, 40, 1 << 20)))
            case 2:
                chance.choice((world.connect, world.answer, world.notify, world.left))()
            case 3:
                world.machine.advance()
            case 4:
                chance.choice((world.pause, world.resume, world.drop, world.die, world.revive))()
            case 5:
                world.elapse(chance.choice((0.1, 0.5, 2.0, 31.0)))
            case _:
                _debugger(world, chance)
    world.leave()


_QMP = [
    json.dumps(one).encode() + b"\r\n"
    for one in (
        {
            "QMP": {
                "version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""},
                "capabilities": ["oob"],
            }
        },
        {"return": {}, "id": 1},
        {"return": {"status": "running", "running": True}, "id": 2},
        {"error": {"class": "GenericError", "desc": "no"}, "id": 3},
        {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}},
        {
            "event": "GUEST_PANICKED",
            "data": {"action": "pause"},
            "timestamp": {"seconds": 1, "microseconds": 2},
        },
    )
]


def _qmp(chance: Random) -> None:
    connection = QmpConnection(max_line_bytes=2000)
    try:
        for index in range(chance.randrange(1, 10)):
            data = _QMP[index] if index < chance.randrange(4) else chance.choice(_QMP)
            if not chance.randrange(3):
                data = grammar.mutated(chance, data) if chance.randrange(4) else grammar.garbage(chance)
            connection.receive(data)
            for _ in connection.messages():
                if connection.phase is QmpPhase.NEGOTIATING and not connection.outstanding:
                    connection.command("qmp_capabilities")
                elif connection.phase is QmpPhase.READY:
                    connection.command("query-status")
    except MachineError:
        pass


_CONFIG = b"""\
[relay]
state_dir = "/var/lib/kbridge"
runtime_dir = "/run/kbridge"
debug_dirs = ["/usr/lib/debug"]
[guests.web1]
qmp = "unix:/run/vm/web1/qmp.sock"
console = "unix:/run/vm/web1/serial.sock"
stub = "auto"
on_leave = "resume"
[guests.db-2]
console = "serial:/dev/ttyS0:115200"
stub = "tcp:localhost:1234"
on_leave = "stay"
"""
_TOKENS = (
    b"[",
    b"]",
    b"=",
    b'"',
    b"'''",
    b"\n",
    b"[guests.web1]\n",
    b"stub = 1\n",
    b"1e9",
    b"nan",
    b"{",
    b"\\u0000",
)


def _config(chance: Random) -> None:
    data = grammar.mutated(chance, _CONFIG)
    for _ in range(chance.randrange(3)):
        place = chance.randrange(len(data) + 1)
        data = data[:place] + chance.choice(_TOKENS) + data[place:]
    try:
        parse_config(data, Path("kbridge.toml"), {}, uid=0)
    except ConfigError as error:
        if not str(error):
            raise AssertionError("a mistake without words") from error


_ENDPOINTS = (
    "unix:/run/a.sock", "tcp:host:1", "tcp:[::1]:65535", "pty:/dev/pts/3", "serial:/dev/ttyS0:115200",
    "telnet:host:23", "rfc2217:host:2217:9600", "unix:", ":", "tcp:host:", "serial:/dev/x:1e3",
)  # fmt: skip


def _endpoints(chance: Random) -> None:
    text = grammar.mutated(chance, chance.choice(_ENDPOINTS).encode()).decode(
        chance.choice(("latin-1", "utf-16-le")), "replace"
    )
    try:
        endpoint = parse_endpoint(text)
    except ValueError as error:
        if "is no endpoint" not in str(error):
            raise AssertionError("not in the words of an operator") from error
    else:
        assert parse_endpoint(str(endpoint)) == endpoint


TARGETS: dict[str, tuple[Callable[[Random], None], int]] = {
    "framing": (_framing, 28),
    "server": (_server, 25),
    "client": (_client, 12),
    "exchange": (_exchange, 3),
    "qmp": (_qmp, 10),
    "config": (_config, 2),
    "endpoints": (_endpoints, 12),
    "console": (crash.console, 1),
    "screen": (crash.screen, 2),
    "image": (crash.image, 1),
    "log": (crash.log, 1),
    "tasks": (crash.sleepers, 2),
    "reports": (crash.reports, 1),
}
"""Each target and its share of the cases, in hundredths."""


def chance_of(seed: int, case: int) -> Random:
    return Random((seed << 40) + case)


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run(name: str, cases: int, seed: int, *, first: int = 0) -> str | None:
    """Run cases of one target; give what went wrong, or None."""
    target = TARGETS[name][0]
    case = first
    try:
        for case in range(first, first + cases):
            target(chance_of(seed, case))
    except Exception:  # noqa: BLE001 (whatever it is, it is what we look for)
        return f"scripts/fuzz --target {name} --seed {seed} --case {case}\n{traceback.format_exc()}"
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=__doc__.partition("\n")[0] if __doc__ else ""
    )
    parser.add_argument("--cases", type=int, default=1_000_000, help="how many, over all targets (1000000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases (0)")
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--case", type=int, help="run only this case of one target, to see it fail again")
    chosen = parser.parse_args(arguments)
    if chosen.case is not None:
        if chosen.target == "all":
            parser.error("--case needs --target")
        TARGETS[chosen.target][0](chance_of(chosen.seed, chosen.case))
        print(f"case {chosen.case} of {chosen.target} passes")
        return 0
    names = list(TARGETS) if chosen.target == "all" else [chosen.target]
    whole = sum(TARGETS[name][1] for name in names)
    shares = {name: chosen.cases * TARGETS[name][1] // whole for name in names}
    for name in names:  # warm-up: what is allocated once
        if (wrong := run(name, min(500, shares[name]), chosen.seed)) is not None:
            print(wrong, file=sys.stderr)
            return 1
    before, begin, done = resident(), time.monotonic(), 0
    for name in names:
        start = time.monotonic()
        if (wrong := run(name, shares[name], chosen.seed)) is not None:
            print(wrong, file=sys.stderr)
            return 1
        seconds = time.monotonic() - start
        done += shares[name]
        growth = (resident() - before) / (1 << 20)
        print(
            f"{name:10} {shares[name]:8} cases {seconds:7.1f} s {shares[name] / max(seconds, 1e-9):9.0f} cases/s"
            f"   memory {growth:+.1f} MB",
            flush=True,
        )
    seconds = time.monotonic() - begin
    grown = resident() - before
    print(
        f"{'all':10} {done:8} cases {seconds:7.1f} s {done / max(seconds, 1e-9):9.0f} cases/s"
        f"   memory {grown / (1 << 20):+.1f} MB   seed {chosen.seed}"
    )
    if grown > MOST_GROWTH:
        print(f"memory grew by more than {MOST_GROWTH >> 20} MB: seed {chosen.seed}", file=sys.stderr)
        return 1
    return 0
