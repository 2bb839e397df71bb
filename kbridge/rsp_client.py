"""A debugger of our own on a socket: coroutines round ``gdbstubs.debugger``.

    client = await connect(reactor, parse_endpoint("unix:/run/kbridge/web1/gdb"))
    try:
        print(hex((await client.registers())["rip"]))
    finally:
        await client.close()

in:      calls of coroutines, bytes of the stub
out:     bytes for the stub, results; ``KbridgeError`` for what the stub refused, or did not answer in time
invariant: every coroutine ends: with its result, with an error, or when its deadline has passed
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall

from gdbstubs.client import State
from gdbstubs.debugger import Debugger
from gdbstubs.dialects import RELAY, Dialect
from gdbstubs.errors import EAGAIN, EBUSY, LinkFailed, RemoteProtocolError, TargetError
from gdbstubs.target import Breakpoint, Reply, Stop, Thread, ThreadId
from kbridge.errors import GuestError
from kbridge.transports.endpoints import Endpoint
from kbridge.transports.streams import Stream
from kbridge.transports.streams import connect as connect_stream

ATTACH_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 30.0
LEAVE_SECONDS: Final = 20.0
"""A relay that lets a guest go stops it first, which software emulation under load takes its time for."""

T = TypeVar("T")


class RspClient:
    """One debugger's connection; ``stop`` is the last stop that it was told of.

    A ``thread`` of None is the one that stopped last.  Everything raises ``GuestError`` where the stub refuses,
    with its words; after a lost connection every call does.
    """

    def __init__(self, reactor: Any, name: str, debugger: Debugger) -> None:
        self._reactor = reactor
        self._name = name
        self._debugger = debugger
        self._stream: Stream | None = None
        self._timer: IDelayedCall | None = None
        self._ended: list[Deferred[None]] = []
        self.stop: Stop | None = None

    async def attach(self, endpoint: Endpoint, seconds: float = ATTACH_SECONDS) -> Stop:
        """Connect and greet; ``connect`` does it."""
        return await self.attach_over(await connect_stream(self._reactor, endpoint), seconds)

    async def attach_over(self, connection: socket.socket, seconds: float = ATTACH_SECONDS) -> Stop:
        """Greet over a connection that is there already; ``over`` does it."""
        self._stream = Stream(self._reactor, connection, self._received, self._lost)
        try:
            return await self._ask(
                lambda done: self._debugger.connected(self._noting(done), self._now()), seconds
            )
        except GuestError:
            self._stream.abort("it was not attached")
            raise

    # -- operations -----------------------------------------------------------------------------------------

    async def registers(self, thread: ThreadId | None = None) -> dict[str, int | None]:
        """Read all general registers by name; None for one that is not available."""
        return await self._ask(lambda done: self._debugger.registers(thread, done))

    async def write_register(self, name: str, value: int, thread: ThreadId | None = None) -> None:
        """Write one register."""
        await self._do(lambda done: self._debugger.write_register(thread, name, value, done))

    async def read_memory(self, address: int, length: int, thread: ThreadId | None = None) -> bytes:
        """Read virtual memory; fewer bytes where the rest is not mapped."""
        return await self._ask(lambda done: self._debugger.read_memory(address, length, done, thread))

    async def read_all(
        self, places: Sequence[tuple[int, int]], thread: ThreadId | None = None
    ) -> list[bytes]:
        """Read many places of address and length, all under way together; of each what is mapped, which may be nothing.

        Raises ``GuestError`` where the target no longer stands.
        """
        if not places:
            return []
        found: list[bytes] = [b""] * len(places)

        def read(done: Callable[[TargetError | None], None]) -> None:
            left = len(places)

            def told(index: int, result: bytes | TargetError) -> None:
                nonlocal left
                left -= 1
                if not isinstance(result, TargetError):
                    found[index] = result
                elif result.words or result.errno in (EAGAIN, EBUSY):
                    done(result)
                if not left:
                    done(None)

            for index, (address, length) in enumerate(places):
                self._debugger.read_memory(address, length, partial(told, index), thread)

        await self._ask(read)
        return found

    async def write_memory(self, address: int, data: bytes, thread: ThreadId | None = None) -> None:
        """Write virtual memory."""
        await self._do(lambda done: self._debugger.write_memory(address, data, done, thread))

    async def insert(self, breakpoint_: Breakpoint) -> None:
        """Insert a breakpoint or watchpoint."""
        await self._do(lambda done: self._debugger.insert(breakpoint_, done))

    async def remove(self, breakpoint_: Breakpoint) -> None:
        """Remove a breakpoint or watchpoint."""
        await self._do(lambda done: self._debugger.remove(breakpoint_, done))

    async def threads(self) -> tuple[Thread, ...]:
        """List all threads."""
        return await self._ask(self._debugger.threads)

    async def monitor(self, command: str) -> str:
        """Give the relay a command and return what it printed."""
        return await self._ask(lambda done: self._debugger.monitor(command, done))

    def resume(self) -> None:
        """Let the target run; ``wait`` tells its next stop."""
        self._debugger.resume(self._noting(_ignored))
        self._flush()

    async def wait(self, seconds: float) -> Stop:
        """Wait for the next stop, or tell the last one where the target stands.

        The target runs on when that takes longer than ``seconds``: ``GuestError`` says so.
        """
        return await self._ask(self._debugger.wait, seconds)

    async def step(self, thread: ThreadId | None = None) -> Stop:
        """Let one thread take one instruction."""
        return await self._ask(lambda done: self._debugger.step(thread, self._noting(done)))

    async def step_range(
        self, start: int, end: int, thread: ThreadId | None = None, seconds: float = ANSWER_SECONDS
    ) -> Stop:
        """Step one thread until it leaves ``[start, end)``."""
        return await self._ask(
            lambda done: self._debugger.step_range(thread, start, end, self._noting(done)), seconds
        )

    async def step_back(self) -> Stop:
        """Take one step backwards in a recording."""
        return await self._ask(lambda done: self._debugger.step_back(self._noting(done)))

    async def interrupt(self, seconds: float = ANSWER_SECONDS) -> Stop:
        """Stop a running target."""
        self._debugger.interrupt()
        return await self._ask(self._debugger.wait, seconds)

    async def close(self) -> None:
        """Detach, if the target stands, and close; safe to call twice."""
        if self._stream is None:
            return
        if self._debugger.state is State.STOPPED:
            try:
                await self._ask(self._debugger.detach, LEAVE_SECONDS)
            except GuestError:
                # The connection is closed all the same, which is leaving too.
                pass
        stream, self._stream = self._stream, None
        if stream is not None:
            ended: Deferred[None] = Deferred()
            self._ended.append(ended)
            stream.close()
            await ended

    # -- bytes, time and answers ----------------------------------------------------------------------------

    def _now(self) -> float:
        return float(self._reactor.seconds())

    def _noting(self, done: Callable[[Stop | TargetError], None]) -> Callable[[Stop | TargetError], None]:
        def told(stop: Stop | TargetError) -> None:
            if not isinstance(stop, TargetError):
                self.stop = stop
            done(stop)

        return told

    async def _do(self, operation: Callable[[Reply[None]], None]) -> None:
        await self._ask(operation)

    async def _ask(
        self, operation: Callable[[Callable[[T | TargetError], None]], None], seconds: float = ANSWER_SECONDS
    ) -> T:
        waiting: Deferred[T] = Deferred()

        def done(result: T | TargetError) -> None:
            # An answer that comes after its deadline has nobody to tell.
            if waiting.called:
                return
            if isinstance(result, TargetError):
                waiting.errback(GuestError(f"{self._name} refused", why=str(result)))
            else:
                waiting.callback(result)

        operation(done)
        self._flush()
        waiting.addTimeout(seconds, self._reactor)
        try:
            return await waiting
        except DeferredTimeout:
            raise GuestError(f"{self._name} did not answer within {seconds:g} s") from None

    def _received(self, data: bytes) -> None:
        try:
            self._debugger.receive(data, self._now())
        except (RemoteProtocolError, LinkFailed) as error:
            self._abort(f"the stub broke the protocol: {error}")
        self._flush()

    def _lost(self, reason: str) -> None:
        self._stream = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._debugger.closed(reason)
        ended, self._ended = self._ended, []
        for one in ended:
            one.callback(None)

    def _abort(self, why: str) -> None:
        if self._stream is not None:
            self._stream.abort(why)

    def _flush(self) -> None:
        data = self._debugger.take_output()
        if data and self._stream is not None:
            self._stream.send(data)
        deadline = self._debugger.deadline
        if deadline is None or self._stream is None:
            return
        if self._timer is None or not self._timer.active():
            self._timer = self._reactor.callLater(max(0.0, deadline - self._now()), self._expired)

    def _expired(self) -> None:
        deadline = self._debugger.deadline
        if deadline is not None and deadline <= self._now():
            try:
                self._debugger.expire(self._now())
            except (RemoteProtocolError, LinkFailed) as error:
                self._abort(str(error))
                return
        self._flush()


async def connect(
    reactor: Any,
    endpoint: Endpoint,
    *,
    dialect: Dialect = RELAY,
    on_words: Callable[[str], None] | None = None,
    break_in: Callable[[], None] | None = None,
    seconds: float = ATTACH_SECONDS,
) -> RspClient:
    """Connect to a relay's debug socket, or to any stub, and attach.

    ``on_words`` gets what the relay tells its user; ``break_in`` stops a kernel whose own stub this is.  Raises
    ``KbridgeError`` where that cannot be reached or refuses.
    """
    debugger = Debugger(on_words=on_words or _ignored, dialect=dialect, break_in=break_in)
    client = RspClient(reactor, str(endpoint), debugger)
    await client.attach(endpoint, seconds)
    return client


async def over(
    reactor: Any,
    name: str,
    connection: socket.socket,
    *,
    on_words: Callable[[str], None] | None = None,
    seconds: float = ATTACH_SECONDS,
) -> RspClient:
    """Attach over a connection to a relay that is there already, such as ``Relay.open_session`` gives."""
    client = RspClient(reactor, name, Debugger(on_words=on_words or _ignored, dialect=RELAY))
    await client.attach_over(connection, seconds)
    return client


def _ignored(result: object) -> None:
    """Take no note."""
