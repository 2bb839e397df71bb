"""Who is told of crashes from outside: a program that is run, an address that is sent to.

in          ``report.json`` of a finished bundle
out         one run of the program, one delivery to the address; what became of them, for the time line
states      a queue for each guest and hook: waiting, being told
invariant   a crash never waits for a hook: more than ``MOST_WAITING`` are dropped, which is said; a program has
            ``COMMAND_SECONDS``, an address is tried ``len(PAUSES) + 1`` times

What is sent is signed with the configured key: ``X-Kbridge-Signature: sha256=`` and the HMAC of the body, in
hexadecimal, as GitHub's webhooks have it; ``X-Kbridge-Delivery`` is the crash's name, the same for each try.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.error import Error as WebError
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from kbridge.crash.running import run
from kbridge.errors import GuestError
from kbridge.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from twisted.internet.interfaces import IConsumer
    from twisted.python.failure import Failure

COMMAND_SECONDS: Final = 60.0
SEND_SECONDS: Final = 20.0
PAUSES: Final = (1.0, 5.0, 30.0, 120.0, 600.0)
"""Seconds between tries."""
MOST_WAITING: Final = 100
MOST_BODY: Final = 4 << 20
MOST_SAID: Final = 1 << 12
MOST_KEY: Final = 4096
MOST_LAST: Final = 200
SIGNATURE: Final = "X-Kbridge-Signature"
DELIVERY: Final = "X-Kbridge-Delivery"

Sink = Callable[..., None]
"""Takes an event for the time line."""


class Hook:
    """Does one thing for each crash, one after the other.

    ``do`` is told the crash's name and the path of its ``report.json``; what it raises is put on the time line.
    """

    _log = Logger()

    def __init__(self, what: str, do: Callable[[str, Path], Coroutine[Any, Any, str]], sink: Sink) -> None:
        self._what = what
        self._do = do
        self._sink = sink
        self._waiting: deque[tuple[str, Path]] = deque()
        self._under_way: Deferred[None] | None = None

    def tell(self, crash: str, report: Path) -> None:
        """Tell of a crash, now or when those before it were told."""
        if len(self._waiting) >= MOST_WAITING:
            self._sink("crash.hook", what=self._what, id=crash, error=f"{MOST_WAITING} wait already")
            return
        self._waiting.append((crash, report))
        if self._under_way is None:
            self._next()

    def stop(self) -> None:
        """Give up."""
        self._waiting.clear()
        if self._under_way is not None:
            self._under_way.cancel()

    def _next(self) -> None:
        if not self._waiting:
            self._under_way = None
            return
        crash, report = self._waiting.popleft()
        self._under_way = Deferred.fromCoroutine(self._one(crash, report))
        self._under_way.addErrback(self._failed)
        self._under_way.addCallback(lambda _: self._next())

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("a bug in a hook for crashes", failure)

    async def _one(self, crash: str, report: Path) -> None:
        try:
            said = await self._do(crash, report)
        except (GuestError, OSError) as error:
            self._sink("crash.hook", what=self._what, id=crash, error=str(error))
        else:
            self._sink("crash.hook", what=self._what, id=crash, said=said)


# ── a program ───────────────────────────────────────────────────────────────────────────────────────────────────


async def run_command(reactor: Any, argv: Sequence[str], crash: str, report: Path) -> str:
    """Run a program with the report's path behind its arguments; returns the last line that it printed.

    Raises ``GuestError`` where it cannot be run, fails, or takes longer than ``COMMAND_SECONDS``.
    """
    status, text = await run(reactor, [*argv, str(report)], report.parent, COMMAND_SECONDS, MOST_SAID)
    last = next((line for line in reversed(text.split("\n")) if line.strip()), "")[:MOST_LAST]
    if status:
        raise GuestError(f"{argv[0]} ended with status {status}", why=last)
    return last


# ── an address ──────────────────────────────────────────────────────────────────────────────────────────────────


async def send(
    reactor: Any, url: str, key: Path | None, crash: str, report: Path, pauses: Sequence[float] = PAUSES
) -> str:
    """Send a report to an address; returns what became of it.  Raises ``GuestError`` after the last try."""
    body = await _in_thread(reactor, partial(_read, report, MOST_BODY))
    secret = None if key is None else (await _in_thread(reactor, partial(_read, key, MOST_KEY))).strip()
    headers = {
        "User-Agent": [f"kbridge/{VERSION}"],
        "Content-Type": ["application/json"],
        DELIVERY: [crash],
    }
    if secret is not None:
        headers[SIGNATURE] = [f"sha256={hmac.new(secret, body, 'sha256').hexdigest()}"]
    why = ""
    for number, pause in enumerate((0.0, *pauses)):
        if pause:
            await deferLater(reactor, pause)
        try:
            status = await _post(reactor, url, headers, body)
        except (OSError, WebError, DeferredTimeout, GuestError) as error:
            why = str(error) or type(error).__name__
            continue
        except Exception as error:  # noqa: BLE001 (connections fail with many kinds; each is worth another try)
            why = f"{type(error).__name__}: {error}"
            continue
        if status < 300:
            return f"status {status}, try {number + 1}"
        why = f"status {status}"
        if status < 500 and status not in (408, 425, 429):
            break
    raise GuestError(f"the report could not be sent to {url}", why=why)


async def _post(reactor: Any, url: str, headers: dict[str, list[str]], body: bytes) -> int:
    agent = Agent(reactor, connectTimeout=SEND_SECONDS, pool=HTTPConnectionPool(reactor, persistent=False))
    asked = agent.request(b"POST", url.encode("ascii"), Headers(headers), _Body(body))
    asked.addTimeout(SEND_SECONDS, reactor)
    response = await asked
    # Its text is of no use; it is taken so that the connection ends in order.
    drain = _Drain()
    response.deliverBody(drain)
    drain.ended.addTimeout(SEND_SECONDS, reactor)
    await drain.ended
    return int(response.code)


class _Drain(Protocol):
    """Takes an answer's text and keeps nothing of it."""

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802 (Twisted's name)
        """The text has ended, in order or not: its status was told."""
        if not self.ended.called:
            self.ended.callback(None)


@implementer(IBodyProducer)
class _Body:
    """Bytes that are sent."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:  # noqa: N802 (Twisted's name)
        """Hand them over at once."""
        consumer.write(self._data)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def pauseProducing(self) -> None:  # noqa: N802 (Twisted's name)
        """Do nothing: all was handed over."""

    def resumeProducing(self) -> None:  # noqa: N802 (Twisted's name)
        """Do nothing."""

    def stopProducing(self) -> None:  # noqa: N802 (Twisted's name)
        """Do nothing."""


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise GuestError(f"{path} is larger than {most} bytes")
    return data


def _in_thread(reactor: Any, work: Callable[[], bytes]) -> Deferred[bytes]:
    return deferToThreadPool(reactor, reactor.getThreadPool(), work)
