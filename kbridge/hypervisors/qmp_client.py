"""Keeps one connection to a QMP monitor, and carries commands over it.

In:         commands (``execute``); bytes and the end of the connection.
Out:        replies, within a deadline; ``on_event``, ``on_found``, ``on_lost``.
States:     connecting → greeted → negotiated → ready → (lost) → waiting → connecting …; stopped.
Invariant:  every command ends: by its reply, its deadline, or the end of the connection; one ``on_lost``
            follows each ``on_found``.

QEMU serves one client a monitor socket: with another on it, connecting succeeds and the greeting does not
come. After ``greeting_seconds`` that is said in ``problem``, and the client goes on waiting on the same
connection, which is then the next in QEMU's queue: connecting again and again would fill that queue with dead
connections.

(``ClientService`` does not fit: it keeps a connection whose preparation failed, and does not tell why it
retries.)
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, cast

from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import IUNIXTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from kbridge.errors import CommandRefusedError, MachineError
from kbridge.hypervisors.qmp import (
    Event,
    Greeting,
    QmpConnection,
    QmpProtocolError,
    Refused,
    Returned,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint, ITCPTransport

RETRY_FIRST_SECONDS = 0.1
RETRY_MOST_SECONDS = 2.0
_STARTED_BY = "start it with what starts it (libvirt, systemd or your own script)"


class _Link(Protocol):
    """One connection to the monitor: twisted's glue around ``QmpConnection``."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._codec = QmpConnection()
        self._on_event = on_event
        self._waiting: dict[int, tuple[str, Deferred[Returned | Refused]]] = {}
        self._lent: dict[int, int] = {}
        """Open files that are on their way with a command: ours, so that nobody closes them before."""
        self._end_waiters: list[Deferred[None]] = []
        self.greeted: Deferred[Greeting] = Deferred()
        self.over = False
        self.why = ""

    @property
    def in_flight(self) -> frozenset[str]:
        """The names of the commands that have no reply yet."""
        return frozenset(name for name, _ in self._waiting.values())

    def send(
        self, name: str, arguments: Mapping[str, Any] | None = None, descriptor: int | None = None
    ) -> Deferred[Returned | Refused]:
        """Send a command, and an open file with it; its reply, or ``MachineError`` when the connection ends before."""
        assert self.transport is not None
        if descriptor is not None and not IUNIXTransport.providedBy(self.transport):
            raise CommandRefusedError(
                f"{name} cannot be sent",
                why="a file can only be handed to a machine monitor on a unix socket",
                todo="give QEMU one: -qmp unix:PATH,server=on,wait=off",
            )
        number, data = self._codec.command(name, arguments)
        reply: Deferred[Returned | Refused] = Deferred()
        self._waiting[number] = (name, reply)
        if descriptor is not None:
            # It goes with the next byte that is written; QEMU keeps it until the command asks for it.
            self._lent[number] = lent = os.dup(descriptor)
            cast("IUNIXTransport", self.transport).sendFileDescriptor(lent)
        self.transport.write(data)
        return reply

    def until_over(self) -> Deferred[None]:
        """Fire once the connection is closed."""
        waiter: Deferred[None] = Deferred()
        if self.over:
            waiter.callback(None)
        else:
            self._end_waiters.append(waiter)
        return waiter

    def abort(self, why: str) -> None:
        """Close at once; nothing is delivered after."""
        self.why = self.why or why
        if not self.over:
            # Not loseConnection: that waits until a QEMU that hangs has taken what was written.
            cast("ITCPTransport", self.transport).abortConnection()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Take the monitor's bytes."""
        self._codec.receive(data)
        try:
            for message in self._codec.messages():
                if self.why:
                    return
                match message:
                    case Greeting():
                        self.greeted.callback(message)
                    case Event():
                        self._on_event(message)
                    case Returned() | Refused():
                        self._let_go(message.id)
                        _, reply = self._waiting.pop(message.id)
                        reply.callback(message)
        except QmpProtocolError as error:
            self.abort(str(error))

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # noqa: N802
        """End everything that waits."""
        self.over = True
        self.why = self.why or f"the machine monitor closed the connection ({reason.getErrorMessage()})"
        for number in tuple(self._lent):
            self._let_go(number)
        waiting, self._waiting = self._waiting, {}
        if not self.greeted.called:
            self.greeted.errback(MachineError(self.why))
        for name, reply in waiting.values():
            reply.errback(
                MachineError(
                    f"the machine monitor went away during {name}",
                    why=self.why,
                    todo="see whether the machine still runs, then try again",
                )
            )
        waiters, self._end_waiters = self._end_waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def _let_go(self, number: int) -> None:
        lent = self._lent.pop(number, None)
        if lent is not None:
            os.close(lent)


class _LinkFactory(Factory):
    noisy = False

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event

    def buildProtocol(self, addr: object) -> _Link:  # noqa: N802
        return _Link(self._on_event)


class QmpClient:
    """A connection to the monitor at ``endpoint`` (``where`` in texts) that comes back when it is lost."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        endpoint: IStreamClientEndpoint,
        where: str,
        *,
        prepare: Callable[[], Awaitable[None]],
        on_found: Callable[[Greeting], None],
        on_event: Callable[[Event], None],
        on_lost: Callable[[str], None],
        command_seconds: float,
        greeting_seconds: float,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._where = where
        self._make_ready = prepare
        self._on_found = on_found
        self._on_lost = on_lost
        self._command_seconds = command_seconds
        self._greeting_seconds = greeting_seconds
        self._factory = _LinkFactory(on_event)
        self._link: _Link | None = None
        self._ready = False
        self._problem = "it was not yet asked"
        self._running: Deferred[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether commands can be sent."""
        return self._ready

    @property
    def problem(self) -> str:
        """Why the monitor cannot be reached; empty while it can."""
        return "" if self._ready else self._problem

    @property
    def in_flight(self) -> frozenset[str]:
        """The names of the commands that have no reply yet."""
        return frozenset() if self._link is None else self._link.in_flight

    def start(self) -> None:
        """Connect, now and whenever the connection is lost."""
        if self._running is None:
            self._running = Deferred.fromCoroutine(self._keep_connected())
            self._running.addErrback(self._ended)

    async def stop(self) -> None:
        """Close the connection and do not connect again."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await running

    async def execute(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        seconds: float | None = None,
        descriptor: int | None = None,
    ) -> Any:  # the reply is whatever JSON the command returns
        """Carry out a QMP command; its ``return`` value.

        ``descriptor``: an open file that QEMU is given with it, for ``getfd`` or ``add-fd``; one at a time.
        ``MachineError`` when it is refused, or not answered within ``seconds`` (the command may still be
        carried out then), or the monitor cannot be reached.
        """
        link = self._link
        if link is None:
            raise MachineError(f"the machine monitor at {self._where} cannot be reached", why=self._problem)
        return await self._over(link, name, arguments, seconds or self._command_seconds, descriptor)

    async def _over(
        self,
        link: _Link,
        name: str,
        arguments: Mapping[str, Any] | None,
        seconds: float,
        descriptor: int | None = None,
    ) -> Any:  # as above
        reply = link.send(name, arguments, descriptor)
        try:
            answer = await reply.addTimeout(seconds, self._reactor)
        except defer.TimeoutError:
            raise MachineError(
                f"the machine monitor did not answer {name} within {seconds:g} s",
                why="QEMU is very busy or hangs; it may still carry it out",
                todo="look at the QEMU process, then ask for the state again",
            ) from None
        if isinstance(answer, Refused):
            raise CommandRefusedError(f"QEMU refused {name}", why=answer.description)
        return answer.value

    def _ended(self, failure: Failure) -> None:
        # A connection that is being made is cancelled by a name of its own.
        if failure.check(CancelledError, ConnectingCancelledError) is None:
            self._log.failure(
                "The connection to the machine monitor at {where} is given up", failure, where=self._where
            )

    async def _keep_connected(self) -> None:
        delay = RETRY_FIRST_SECONDS
        while True:
            was_ready = await self._one_connection()
            delay = RETRY_FIRST_SECONDS if was_ready else min(delay * 1.6, RETRY_MOST_SECONDS)
            await deferLater(self._reactor, delay)

    async def _one_connection(self) -> bool:
        """Connect and stay until the connection ends; returns whether it had become ready."""
        try:
            link: _Link = await self._endpoint.connect(self._factory)  # type: ignore[assignment]
        except (ConnectError, DNSLookupError, OSError) as error:
            self._report(_connect_problem(error))
            return False
        was_ready = False
        try:
            greeting = await self._prepare(link)
            was_ready = self._ready = True
            self._on_found(greeting)
            await link.until_over()
        except MachineError as error:
            link.abort(str(error))
        finally:
            link.abort("kbridge let go of it")
            self._link, self._ready = None, False
            await link.until_over()
            if was_ready:
                self._problem = link.why
                self._on_lost(link.why)
        self._report(link.why)
        return was_ready

    async def _prepare(self, link: _Link) -> Greeting:
        late = self._reactor.callLater(
            self._greeting_seconds,
            self._report,
            f"it took the connection but did not greet within {self._greeting_seconds:g} s: another program "
            "(libvirt, or another kbridge) holds this monitor, which serves one client at a time, or QEMU "
            "hangs; give QEMU a second monitor: -qmp unix:PATH,server=on,wait=off",
        )
        try:
            greeting = await link.greeted
        finally:
            if late.active():
                late.cancel()
        await self._over(link, "qmp_capabilities", None, self._command_seconds)
        self._link = link
        await self._make_ready()
        return greeting

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._log.warn("No machine monitor at {where}: {problem}", where=self._where, problem=problem)


def _connect_problem(error: Exception) -> str:
    number = getattr(error, "osError", None) or getattr(error, "errno", None)
    match number or next(iter(error.args), None):
        case errno.ENOENT:
            return f"there is no such socket: the machine was not started; {_STARTED_BY}"
        case errno.ECONNREFUSED:
            return f"nothing listens there: the machine has ended; {_STARTED_BY}"
        case errno.EACCES | errno.EPERM:
            return (
                "permission denied: give the user that runs kbridge write access to the socket and its folder"
            )
        case Failure():
            # A unix socket whose queue is full answers EAGAIN, which Twisted takes for "still connecting"
            # until the descriptor hangs up.
            return "its queue is full: another program holds this monitor, which serves one client at a time"
        case int() as number:
            return os.strerror(number)
        case _:
            return str(error) or type(error).__name__
