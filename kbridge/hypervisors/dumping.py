"""QEMU's dump of a guest's memory into an open file: started, watched, and waited for.

In:         an open file; the monitor's events; the loss of the monitor.
Out:        ``getfd``, ``dump-guest-memory``, ``query-dump``; how many bytes are written, of how many.
Invariant:  it ends: by QEMU's word that the dump is complete or failed, by the loss of the monitor, or when nothing
            was written for ``STALL_SECONDS``; who wants it to end earlier closes the other end of the file, a pipe.

QEMU stops a guest that runs for as long as it takes, and then lets it run again.  Nothing is written to a file of its
choice: it is handed one that is open, so that it needs no right to any folder.

Source: QEMU's ``qapi/dump.json`` (7.2), ``docs/interop/qmp-spec.txt`` (getfd).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.internet.defer import Deferred

from kbridge.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime

    from kbridge.hypervisors.interface import MachineEvent
    from kbridge.hypervisors.qmp_client import QmpClient

LOOK_SECONDS: Final = 0.25
STALL_SECONDS: Final = 30.0
COMPLETED: Final = "DUMP_COMPLETED"
_NAME: Final = "kbridge-dump"


class Dump:
    """One dump; the module's text says how.  ``subscribe`` is the machine's."""

    def __init__(
        self,
        reactor: IReactorTime,
        client: QmpClient,
        subscribe: Callable[[Callable[[MachineEvent], None]], Callable[[], None]],
        progress: Callable[[int, int], None],
    ) -> None:
        self._reactor = reactor
        self._client = client
        self._subscribe = subscribe
        self._progress = progress
        self._why: str | None = None
        """Why the dump failed, empty when it is complete; None while it is under way."""
        self._pause: Deferred[None] | None = None

    async def write_to(self, descriptor: int) -> None:
        """Have memory written as an ELF core file; returns when QEMU has written all.  Raises ``MachineError``."""
        end = self._subscribe(self._happened)
        try:
            await self._client.execute("getfd", {"fdname": _NAME}, descriptor=descriptor)
            arguments = {"paging": False, "protocol": f"fd:{_NAME}", "detach": True}
            try:
                await self._client.execute("dump-guest-memory", arguments)
            except MachineError:
                await self._take_back()
                raise
            why = await self._ended()
        finally:
            end()
        if why:
            raise MachineError("QEMU did not write the guest's memory", why=why)

    async def _take_back(self) -> None:
        """Have QEMU close the file that it did not use: whoever reads from its other end would wait for ever."""
        try:
            await self._client.execute("closefd", {"fdname": _NAME})
        except MachineError:
            # It is used by a dump that began after all, or went with the monitor: then it is closed at their end.
            return

    def _happened(self, event: MachineEvent) -> None:
        if event.name == "machine.lost":
            self._end(f"the machine monitor went away: {event.data.get('why', '')}")
        elif event.data.get("event") == COMPLETED:
            result = event.data.get("result")
            status = result.get("status") if isinstance(result, dict) else None
            self._end("" if status == "completed" else str(event.data.get("error") or f"the dump {status}"))

    def _end(self, why: str) -> None:
        if self._why is None:
            self._why = why
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.callback(None)

    async def _ended(self) -> str:
        written, since = -1, self._reactor.seconds()
        while self._why is None:
            pause: Deferred[None] = Deferred()
            self._pause = pause
            timer = self._reactor.callLater(LOOK_SECONDS, self._look_again)
            try:
                await pause
            finally:
                if timer.active():
                    timer.cancel()
            if self._why is None:
                now = await self._look()
                if now > written:
                    written, since = now, self._reactor.seconds()
                elif self._reactor.seconds() - since > STALL_SECONDS:
                    return f"nothing was written for {STALL_SECONDS:g} s"
        return self._why

    def _look_again(self) -> None:
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.callback(None)

    async def _look(self) -> int:
        """Tell how far it is."""
        said = await self._client.execute("query-dump")
        completed = said.get("completed") if isinstance(said, dict) else None
        total = said.get("total") if isinstance(said, dict) else None
        if not isinstance(completed, int) or not isinstance(total, int):
            return 0
        self._progress(completed, total)
        return completed
