"""Guest memory at the present stop, through the stub that the relay holds; while the guest runs, by the monitor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout

from gdbstubs.errors import EBUSY, TargetError
from kbridge.errors import GuestError
from kbridge.memory.sources import LiveMemory, MonitorMemory, drive

if TYPE_CHECKING:
    from symbols.reads import Read, Search

ANSWER_SECONDS: Final = 10.0
"""How long one batch may take; 1,000 reads take 30 ms on QEMU's stub, and seconds on a serial line."""

_Result = TypeVar("_Result")
ReadStop = Callable[[int, int, Callable[[bytes | TargetError], None]], None]
"""Asks for memory at the present stop: address, length, and what to call, once."""


class StopMemory:
    """Virtual memory as the processor that stopped sees it; the module's text says how.

    ``read`` asks, ``send`` sends what was asked, ``stands`` tells whether a debugger's stub holds the guest now.
    """

    def __init__(
        self,
        reactor: Any,
        read: ReadStop,
        send: Callable[[], None],
        stands: Callable[[], bool],
        machine: LiveMemory | None,
    ) -> None:
        self._reactor = reactor
        self._read = read
        self._send = send
        self._stands = stands
        self._monitor = None if machine is None else MonitorMemory(machine)

    async def run(self, search: Search[_Result]) -> _Result:
        """Drive a search; raises what it raises, and ``KbridgeError`` where memory cannot be read."""
        if not self._stands():
            if self._monitor is None:
                raise GuestError("the guest runs, and nothing but its debug stub can read its memory")
            return await self._monitor.run(search)
        return await drive(search, self._batch)

    async def _batch(self, reads: tuple[Read, ...]) -> tuple[bytes, ...]:
        found: list[bytes | None] = [None] * len(reads)
        left = len(reads)
        arrived: Deferred[None] = Deferred()

        def told(index: int, result: bytes | TargetError) -> None:
            nonlocal left
            left -= 1
            if not isinstance(result, TargetError):
                found[index] = result
            elif (result.words and result.errno == EBUSY) or not self._stands():
                if not arrived.called:
                    arrived.errback(
                        GuestError("the guest went on while its memory was read", why=str(result))
                    )
            else:
                found[index] = b""
            if not left and not arrived.called:
                arrived.callback(None)

        if not reads:
            return ()
        for index, one in enumerate(reads):
            self._read(one.address, one.length, partial(told, index))
        self._send()
        arrived.addTimeout(ANSWER_SECONDS, self._reactor)
        try:
            await arrived
        except DeferredTimeout:
            raise GuestError(
                "the stub did not answer a read of memory", why=f"within {ANSWER_SECONDS:g} s"
            ) from None
        return tuple(one or b"" for one in found)
