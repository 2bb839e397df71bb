"""A program that is run once, for so long, and of which the end of what it printed is kept.

in          its arguments, a deadline
out         its exit status and its text; ``GuestError`` where it does not end in time
invariant   no process is left behind: one that is late is told to end, and ended ``KILL_SECONDS`` later
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol

from kbridge.errors import GuestError

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

KILL_SECONDS: Final = 5.0


async def run(
    reactor: Any,
    argv: Sequence[str],
    folder: Path,
    seconds: float,
    most_bytes: int,
    env: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run a program in a folder; returns its status (a signal's number below zero) and the end of its text.

    Raises ``GuestError`` where it does not end within ``seconds``.
    """
    ended: Deferred[int] = Deferred()
    program = _Program(ended, most_bytes)
    transport = reactor.spawnProcess(
        program,
        argv[0],
        list(argv),
        env=None if env is None else dict(env),
        path=str(folder),
        childFDs={0: "w", 1: "r", 2: "r"},
    )
    ended.addTimeout(seconds, reactor)
    try:
        status = await ended
    except DeferredTimeout:
        program.end(reactor, transport)
        raise GuestError(f"{argv[0]} did not end within {seconds:g} s", why="it was ended") from None
    except CancelledError:
        program.end(reactor, transport)
        raise
    return status, program.said.decode("utf-8", "replace")


class _Program(ProcessProtocol):
    def __init__(self, ended: Deferred[int], most_bytes: int) -> None:
        self._ended = ended
        self._most = most_bytes
        self._is_gone = False
        self._timer: IDelayedCall | None = None
        self.said = b""

    def connectionMade(self) -> None:  # noqa: N802 (Twisted's name)
        assert self.transport is not None
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:  # noqa: N802 (Twisted's name)
        self.said = (self.said + data)[-self._most :]

    errReceived = outReceived  # noqa: N815 (Twisted's name)

    def processEnded(self, reason: Failure) -> None:  # noqa: N802 (Twisted's name)
        self._is_gone = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._ended.called:
            return
        error = reason.value
        if isinstance(error, ProcessDone):
            self._ended.callback(0)
        else:
            assert isinstance(error, ProcessTerminated)
            self._ended.callback(error.exitCode or -(error.signal or 1))

    def end(self, reactor: Any, transport: Any) -> None:
        """End it, by force if it must be."""
        self._signal(transport, "TERM")
        self._timer = reactor.callLater(KILL_SECONDS, self._signal, transport, "KILL")

    def _signal(self, transport: Any, name: str) -> None:
        if not self._is_gone:
            transport.signalProcess(name)
