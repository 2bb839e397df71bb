"""The connection to a monitor, against a monitor that misbehaves in ways that no QEMU does."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from kbridge.errors import MachineError
from kbridge.hypervisors.interface import MachineEvent
from kbridge.hypervisors.qemu import QemuMachine
from kbridge.transports.endpoints import Unix

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 9}}, "capabilities": []}}\r\n'


class FakeMonitor(Protocol):
    """Greets, and answers each command with the next of the script's answers; nothing after its end."""

    def connectionMade(self) -> None:  # noqa: N802
        self.buffer = b""
        self.transport.write(self.factory.greeting)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for _ in lines:
            self.number = getattr(self, "number", 0) + 1
            if self.number <= len(self.factory.answers):
                self.transport.write(
                    self.factory.answers[self.number - 1].replace(b"ID", b"%d" % self.number)
                )


OK = b'{"return": {}, "id": ID}\r\n'
RUNS = b'{"return": {"status": "running", "running": true}, "id": ID}\r\n'
STOP = b'{"event": "STOP"}\r\n'
RESUME = b'{"event": "RESUME"}\r\n'


class MisbehaviourTests(TestCase):
    async def serve(self, greeting: bytes, *answers: bytes) -> Factory:
        folder = tempfile.mkdtemp(prefix="kbridge-qmp-")
        self.addCleanup(shutil.rmtree, folder)
        factory = Factory.forProtocol(FakeMonitor)
        factory.noisy = False
        factory.greeting, factory.answers = greeting, answers
        port = await UNIXServerEndpoint(reactor, f"{folder}/qmp").listen(factory)
        self.addCleanup(port.stopListening)
        self.endpoint = Unix(f"{folder}/qmp")
        self.machine = QemuMachine(reactor, self.endpoint, command_seconds=0.3, greeting_seconds=0.1)
        self.events: list[MachineEvent] = []
        self.machine.subscribe(self.events.append)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.machine.stop()))
        self.machine.start()
        return factory

    async def until(self, condition: Any) -> None:
        for _ in range(500):
            if condition():
                return
            await deferLater(reactor, 0.02)
        raise AssertionError(f"did not come; the problem is {self.machine.problem!r}, events {self.events}")

    async def test_a_socket_that_speaks_another_protocol_is_named_and_tried_again(self) -> None:
        factory = await self.serve(b"QEMU 7.2.22 monitor - type 'help' for more information\r\n")
        await self.until(lambda: "not JSON" in self.machine.problem)
        assert self.events == []
        factory.greeting, factory.answers = GREETING, (OK, RUNS)
        await self.until(lambda: self.machine.connected)

    async def test_capabilities_refused_or_never_answered_is_no_connection(self) -> None:
        refusal = b'{"error": {"class": "GenericError", "desc": "not today"}, "id": ID}\r\n'
        factory = await self.serve(GREETING, refusal)
        await self.until(lambda: "not today" in self.machine.problem)
        factory.answers = ()
        await self.until(lambda: "did not answer qmp_capabilities" in self.machine.problem)
        factory.answers = (OK,)
        await self.until(lambda: "did not answer query-status" in self.machine.problem)
        assert self.events == []

    async def test_events_before_the_state_is_known_come_after_the_finding_in_order(self) -> None:
        await self.serve(GREETING, OK + STOP, RESUME + RUNS + STOP, RUNS)
        await self.until(lambda: len(self.events) >= 5)
        names = [event.name for event in self.events]
        assert names == ["machine.found", "machine.stop", "machine.resume", "machine.stop", "machine.state"]
        assert self.machine.state.run.executes

    async def test_events_before_a_malformed_line_are_delivered_and_then_the_monitor_is_lost(self) -> None:
        await self.serve(GREETING, OK, RUNS, STOP + b"}{\r\n" + RESUME)
        await self.until(lambda: self.machine.connected)
        with pytest.raises(MachineError, match=r"went away during query-status: .*broke its protocol"):
            await self.machine.query()
        await self.until(lambda: len(self.events) >= 3)
        names = [event.name for event in self.events]
        assert names[:3] == ["machine.found", "machine.stop", "machine.lost"]
        assert "not JSON" in self.events[2].data["why"]

    async def test_a_reset_that_never_happens_meets_its_deadline_and_the_next_is_not_taken_for_it(
        self,
    ) -> None:
        by_qmp = b'{"event": "RESET", "data": {"guest": false, "reason": "host-qmp-system-reset"}}\r\n'
        await self.serve(GREETING, OK, RUNS, OK, by_qmp + RUNS)
        await self.until(lambda: self.machine.connected)
        with pytest.raises(MachineError, match=r"was not reset within 0.3 s"):
            await self.machine.reset()
        await self.machine.query()
        assert [event.data.get("ours") for event in self.events if event.name == "machine.reset"] == [False]

    async def test_a_monitor_that_is_let_go_while_it_connects_is_no_bug(self) -> None:
        await self.serve(GREETING, OK, RUNS)
        await self.until(lambda: self.machine.connected)
        other = QemuMachine(reactor, self.endpoint)
        other.start()
        # No turn of the reactor in between: the connection is not made yet.
        await other.stop()
        assert not other.connected
        assert self.flushLoggedErrors() == []

    async def test_quit_that_ends_nothing_meets_its_deadline(self) -> None:
        await self.serve(GREETING, OK, RUNS, OK)
        await self.until(lambda: self.machine.connected)
        with pytest.raises(MachineError, match=r"did not end within 0.3 s"):
            await self.machine.power_off(force=True)

    async def test_a_late_reply_is_taken_for_no_other_command(self) -> None:
        late = b'{"return": {"status": "running", "running": true}, "id": 3}\r\n'
        await self.serve(GREETING, OK, RUNS, b"", late + b'{"return": "text\\r\\n", "id": 4}\r\n')
        await self.until(lambda: self.machine.connected)
        with pytest.raises(MachineError, match="did not answer query-status"):
            await self.machine.query()
        assert await self.machine.human_monitor("info version") == "text\n"
        assert self.machine.connected
