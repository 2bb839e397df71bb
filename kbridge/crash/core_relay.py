"""Debuggers on a core file: a relay with no guest behind it, in the process of whoever opens the file.

```
    debugger ── Listener, Stream ──▶ Server ──▶ CoreTarget ──▶ CoreFile
                                        └─────▶ DebuggerObjects: main file, modules, debug files
```

in          connections and bytes of debuggers
out         replies
invariant   nobody is answered before it is known what is in the file; sessions share nothing but the file, which nobody
            changes
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from gdbstubs.errors import LinkFailed, RemoteProtocolError
from gdbstubs.server import Server
from gdbstubs.target import ThreadId
from kbridge.crash.core_kernel import Beginning, Tasks, begin, read_tasks
from kbridge.crash.core_memory import CoreMemory
from kbridge.crash.core_target import CoreTarget, Threads
from kbridge.debuginfo.kernel import GuestKernel
from kbridge.debuginfo.objects import DebuggerObjects
from kbridge.errors import ImageError
from kbridge.transports.streams import PRIVATE, Listener, Stream

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from kbridge.crash.core_file import CoreFile
    from kbridge.debuginfo.finders import Finder

MOST_SESSIONS: Final = 16
QUIET_SECONDS: Final = 0.1
"""After that gdb is at work itself, with the symbols that it has read."""
HELP: Final = """\
monitor status                 what is in the image, and what is missing
monitor symbols                which kernel it is of, and where its symbols are from
monitor modules                the loaded modules, with their addresses and files
monitor info version           what is behind this stub
"""


class CoreRelay:
    """Serves one core file on a unix socket; the module's text says how.

    ``name`` is what its users call it; ``links``: a folder for debug files as gdb looks for them by build-id; ``kept``:
    one for main files that were made.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, core: CoreFile, name: str, finder: Finder, links: Path, kept: Path
    ) -> None:
        self._reactor = reactor
        self._core = core
        self._name = name
        self._memory = CoreMemory(core)
        self._layouts = finder.layouts
        self._kernel = GuestKernel(self._memory, finder, self._in_thread)
        self._objects = DebuggerObjects(
            reactor, name, self._memory, finder, links, kernel=self._kernel, kept=kept
        )
        self._listener: Listener | None = None
        self._sessions: dict[int, _Session] = {}
        self._last = 0
        self._begun: Beginning | None = None
        self._tasks: Tasks | None = None
        self._threads: Threads | None = None
        self._waiting: list[Callable[[Threads], None]] = []
        self._are_tasks_read = False
        """Whether they are, or are being read."""
        self._quiet: IDelayedCall | None = None

    def start(self, path: Path, listening: socket.socket | None = None) -> None:
        """Serve debuggers at a path, and begin to look at what is in the file.  Raises ``KbridgeError``.

        ``listening``: a socket that listens there already.
        """
        self._listener = Listener(self._reactor, path, self._accepted, PRIVATE, listening)
        self._launch(self._look())

    def stop(self) -> None:
        """Close everything but the file."""
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        if self._listener is not None:
            self._listener.close()
        for session in tuple(self._sessions.values()):
            session.stream.abort("the image is closed")

    async def _look(self) -> None:
        self._begun = begun = await begin(self._memory, self._kernel, self._in_thread)
        first = begun.panicked or 0
        number = ThreadId(first + 1 if first < len(self._core.processors) else 1)
        self._threads = threads = Threads(self._core, number, self._read_tasks)
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one(threads)
        self.is_asked()
        # gdb reads the kernel's symbols meanwhile.
        await self._objects.prepare()

    def is_asked(self) -> None:
        """Take note that a session asks for something: what nobody waits for is done when they are quiet."""
        if self._threads is not None and not self._are_tasks_read:
            if self._quiet is not None:
                self._quiet.cancel()
            self._quiet = self._reactor.callLater(QUIET_SECONDS, self._is_quiet)

    def _is_quiet(self) -> None:
        self._quiet = None
        self._read_tasks()

    def _read_tasks(self) -> None:
        if not self._are_tasks_read:
            self._are_tasks_read = True
            self._launch(self._complete())

    async def _complete(self) -> None:
        assert self._begun is not None
        assert self._threads is not None
        self._tasks = found = await read_tasks(self._memory, self._begun, self._in_thread, self._layouts)
        try:
            self._threads.complete(self._core, found.tasks, self._memory.tables)
        except ImageError as error:
            self._tasks = Tasks((), f"tasks are not shown: {error}")
        # Who waited for them was answered.
        for session in tuple(self._sessions.values()):
            session.flush()

    def _in_thread(self, work: Callable[[], Any]) -> Awaitable[Any]:
        found: Deferred[Any] = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)
        return found

    def _launch(self, work: Coroutine[Any, Any, None]) -> None:
        Deferred.fromCoroutine(work).addErrback(
            lambda failure: self._log.failure("{name}: a bug", failure, name=self._name)
        )

    # -- sessions -------------------------------------------------------------------------------------------

    def _accepted(self, connection: socket.socket) -> None:
        if len(self._sessions) >= MOST_SESSIONS:
            connection.close()
            return
        self._last += 1
        number = self._last
        session = self._sessions[number] = _Session(self, number)
        session.stream = Stream(self._reactor, connection, session.received, partial(self._lost, number))

    def _lost(self, number: int, reason: str) -> None:
        del self._sessions[number]

    # -- what sessions ask for ------------------------------------------------------------------------------

    def open_target(self, done: Callable[[CoreTarget], None]) -> None:
        """Give a session its target, as soon as it is known what is in the file."""

        def known(threads: Threads) -> None:
            done(CoreTarget(self._core, self._name, threads))

        if self._threads is not None:
            known(self._threads)
        else:
            self._waiting.append(known)

    def ask(self, session: str, kind: str, key: str, done: Callable[[bytes | None], None]) -> None:
        """Answer what a debugger reads beside the target."""
        self._objects.ask(session, kind, key, done)

    def monitor(self, command: str, done: Callable[[str], None]) -> None:
        """Answer a ``monitor`` command."""
        match command.split():
            case ["info", "version"]:
                # The kernel's gdb scripts ask this to learn whether they talk to QEMU: any answer will do.
                done("kbridge, behind it a memory image\n")
            case ["status"]:
                assert self._threads is not None, "a session was opened"
                self._threads.when_complete(lambda: done(self._status()))
            case ["symbols"]:
                self._describe(self._objects.describe(), done)
            case ["modules"]:
                self._describe(self._objects.describe_modules(), done)
            case [first, *_] if first != "help":
                done(f"a memory image has no monitor command {first!r}: monitor help\n")
            case _:
                done(HELP)

    def _describe(self, work: Coroutine[Any, Any, str], done: Callable[[str], None]) -> None:
        async def describe() -> None:
            done(await work)

        self._launch(describe())

    def _status(self) -> str:
        assert self._threads is not None
        problem = "" if self._tasks is None else self._tasks.problem
        lines = [
            f"image      {self._core.name}, {self._core.size:,} bytes of memory",
            f"processors {len(self._core.processors)}; thread {self._threads.stopped} is shown first",
            f"tasks      {0 if self._tasks is None else len(self._tasks.tasks)}",
        ]
        return "\n".join([*lines, *([problem] if problem else [])]) + "\n"


class _Session:
    """One debugger."""

    stream: Stream

    def __init__(self, relay: CoreRelay, number: int) -> None:
        self._relay = relay
        self._name = str(number)
        self._server: Server | None = None
        self._early = b""
        relay.open_target(self._opened)

    def _opened(self, target: CoreTarget) -> None:
        self._server = Server(target, self._monitor, library=self._library)
        early, self._early = self._early, b""
        if early:
            self.received(early)

    def received(self, data: bytes) -> None:
        """Take bytes of the debugger."""
        self._relay.is_asked()
        if self._server is None:
            # It asks for features, and waits.
            self._early += data
            return
        try:
            self._server.receive(data)
        except (RemoteProtocolError, LinkFailed) as error:
            self.stream.abort(str(error))
            return
        self.flush()

    def flush(self) -> None:
        """Send what there is for the debugger."""
        if self._server is None:
            return
        data = self._server.take_output()
        if data:
            self.stream.send(data)
        if self._server.finished:
            self.stream.close()

    def _library(self, kind: str, key: str, done: Callable[[bytes | None], None]) -> None:
        def answer(contents: bytes | None) -> None:
            done(contents)
            self.flush()

        self._relay.ask(self._name, kind, key, answer)

    def _monitor(self, command: str, done: Callable[[str], None]) -> None:
        def answer(text: str) -> None:
            done(text)
            self.flush()

        self._relay.monitor(command, answer)
