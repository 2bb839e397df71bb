"""A real gdb, driven over its machine interface (GDB manual, "GDB/MI"): commands in, what it printed out.

    gdb = await start(reactor, "/usr/bin/gdb", ["-nx"])
    try:
        print(await gdb.run("thread apply all bt", 60.0))
    finally:
        await gdb.end()

in          commands, gdb's lines
out         the text of each command, or ``GuestError`` with gdb's own words
states      a command under way or none; ended
invariant   each command ends: with gdb's result, with gdb, or at its deadline, after which gdb is of no more use and is
            ended; no process is left behind

pygdbmi reads the lines; its own input and output block, so the process is Twisted's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pygdbmi import gdbmiparser
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import ProcessProtocol

from kbridge.errors import GuestError

if TYPE_CHECKING:
    from twisted.python.failure import Failure

START_SECONDS: Final = 20.0
END_SECONDS: Final = 3.0
MOST_TEXT: Final = 8 << 20
"""Bytes that one command may print; the rest is left out."""
MOST_LINE: Final = 1 << 20


class Gdb(ProcessProtocol):
    """One gdb; the module's text says how.  ``start`` makes it."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._rest = b""
        self._token = 0
        self._result: Deferred[Mapping[str, Any]] | None = None
        self._text: list[str] = []
        self._size = 0
        self._gone: Deferred[None] = Deferred()
        self._ending = ""
        """How it ended; empty while it has not."""

    @property
    def ended(self) -> str:
        """How it ended, in words; empty while it has not."""
        return self._ending

    async def run(self, command: str, seconds: float) -> str:
        """Give gdb a command as a person would; returns what it printed.

        Raises ``GuestError`` for what gdb refuses, where it has ended, and after ``seconds``: it is ended then.
        """
        if self._ending:
            raise GuestError("gdb has ended", why=self._ending)
        assert self.transport is not None
        assert self._result is None, "one command at a time"
        self._token += 1
        self._text, self._size = [], 0
        # MI's strings are C's: of JSON's escapes all are.
        line = f"{self._token}-interpreter-exec console {json.dumps(command)}\n"
        result = self._result = Deferred()
        self.transport.write(line.encode("utf-8"))
        result.addTimeout(seconds, self._reactor)
        try:
            found = await result
        except DeferredTimeout:
            self._kill()
            raise GuestError(f"gdb did not answer within {seconds:g} s", why=f"to {command!r}") from None
        finally:
            self._result = None
        text = "".join(self._text)
        if found["message"] == "error":
            payload = found["payload"] or {}
            raise GuestError(f"gdb refused {command!r}", why=str(payload.get("msg", text.strip())))
        return text

    async def end(self) -> None:
        """Have gdb leave its target and end; by force where it does not within ``END_SECONDS``."""
        if self._ending:
            return
        assert self.transport is not None
        self.transport.write(b"-gdb-exit\n")
        self.transport.closeStdin()
        timer = self._reactor.callLater(END_SECONDS, self._kill)
        await self._gone
        if timer.active():
            timer.cancel()

    def _kill(self) -> None:
        if not self._ending:
            assert self.transport is not None
            self.transport.signalProcess("KILL")

    # What the process says.

    def outReceived(self, data: bytes) -> None:  # noqa: N802 (Twisted's name)
        """Take lines."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line.decode("utf-8", "replace").rstrip("\r"))
        if len(self._rest) > MOST_LINE:
            self._rest = b""

    def errReceived(self, data: bytes) -> None:  # noqa: N802 (Twisted's name)
        """Leave out what it says beside its interface."""

    def _line(self, line: str) -> None:
        if not line or line.startswith("(gdb)"):
            return
        found = gdbmiparser.parse_response(line)
        match found["type"]:
            case "console" | "target" if isinstance(found["payload"], str):
                self._size += len(found["payload"])
                if self._size <= MOST_TEXT:
                    self._text.append(found["payload"])
            case "result" if found["token"] == self._token:
                if self._result is not None and not self._result.called:
                    self._result.callback(found)
            case _:
                pass

    def processEnded(self, reason: Failure) -> None:  # noqa: N802 (Twisted's name)
        """Take note that it has ended."""
        self._ending = reason.getErrorMessage()
        if self._result is not None and not self._result.called:
            self._result.errback(GuestError("gdb has ended", why=self._ending))
        self._gone.callback(None)


async def start(reactor: Any, program: str, arguments: Sequence[str] = ()) -> Gdb:
    """Start a gdb; raises ``GuestError`` where it does not come up."""
    gdb = Gdb(reactor)
    argv = [program, "--interpreter=mi3", "-q", *arguments]
    try:
        reactor.spawnProcess(gdb, program, argv, env=None)
    except OSError as error:
        raise GuestError(f"{program} cannot be run", why=error.strerror or str(error)) from error
    try:
        for command in ("set pagination off", "set confirm off", "set width 0", "set style enabled off"):
            await gdb.run(command, START_SECONDS)
    except GuestError:
        await gdb.end()
        raise
    return gdb
