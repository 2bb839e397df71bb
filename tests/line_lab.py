"""What the tests of lines share: a sink in memory, waiting for a condition with a deadline, a poller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from kbridge.console.ring import Ring
from kbridge.transports.lines import LineState
from kbridge.transports.opening import open_line
from kbridge.transports.poller import LinePoller

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kbridge.transports.endpoints import Endpoint
    from kbridge.transports.lines import ConsoleLine

DEADLINE_SECONDS = 20.0
reactor: Any = installed_reactor


class MemorySink:
    """A ring in memory that notes the line's coming and going."""

    def __init__(self, ring_bytes: int = 1 << 20) -> None:
        self.ring = Ring.anonymous(ring_bytes)
        self.receive = self.ring.receive
        self.notes: list[str] = []

    def line_opened(self, detail: str) -> None:
        self.notes.append("open")

    def line_lost(self, detail: str, reason: str) -> None:
        self.notes.append(f"lost: {reason}")

    @property
    def data(self) -> bytes:
        return self.ring.read(self.ring.oldest, 1 << 30) or b""


async def until(condition: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> None:
    """Return when ``condition()`` is true; fail after ``seconds``."""
    end = reactor.seconds() + seconds
    while not condition():
        if reactor.seconds() > end:
            raise AssertionError("what was waited for did not come about")
        tick: Deferred[None] = Deferred()
        reactor.callLater(0.002, tick.callback, None)
        await tick


class LineTestCase(TestCase):
    """Makes lines on a poller of its own and closes them."""

    def setUp(self) -> None:
        self.poller = LinePoller(reactor)
        self.lines: list[ConsoleLine] = []

    async def tearDown(self) -> None:
        for line in self.lines:
            await line.close()
        self.poller.close()

    def open_line(self, endpoint: Endpoint, sink: MemorySink) -> ConsoleLine:
        line = open_line(reactor, self.poller, endpoint, sink)
        self.lines.append(line)
        return line

    async def is_open(self, line: ConsoleLine) -> None:
        await until(lambda: line.state is LineState.OPEN)
