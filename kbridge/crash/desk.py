"""Where crashes of all guests arrive: who is captured now, who waits, what is only counted.

in          crashes as watches notice them, what people ask for
out         captures, each guest's one after the other and ``MOST_AT_ONCE`` guests' at a time; what followers are told
invariant   what was noticed is counted, whatever becomes of its capture; what comes while a guest's evidence is being
            taken is part of that crash, and what comes after it waits its turn
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from kbridge.crash.capture import Capture, carry_out
from kbridge.crash.facts import How
from kbridge.crash.hooks import Hook, run_command, send
from kbridge.crash.policy import Loops
from kbridge.crash.store import DOCUMENT, KILLED, Limits, Store
from kbridge.crash.sweep import Sweep
from kbridge.errors import GuestError, KbridgeError, RecordError
from kbridge.hypervisors.interface import RunState

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from twisted.python.failure import Failure

    from kbridge.crash.facts import Noticed
    from kbridge.crash.knowledge import Library
    from kbridge.guest import Guest

MOST_AT_ONCE: Final = 4
MOST_WAITING: Final = 16
"""Crashes of one guest that wait; more of them are counted only."""
STOP_SECONDS: Final = 5.0
DEBT_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.1

Follower = Callable[[str, Mapping[str, Any]], None]
"""Told of each crash: ``noticed``, ``published`` or ``finished``, and what the list shows of it."""


class _Queue:
    """One guest's crashes."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.loops = Loops(guest.config.crash_full)
        self.waiting: list[tuple[Noticed, Deferred[str]]] = []
        self.running: Capture | None = None
        self.under_way: Deferred[Any] | None = None
        self.hooks: tuple[Hook, ...] = ()


class Desk:
    """All crashes of a relay; the module's text says how."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        store: Store,
        library: Library,
        debug_dirs: Callable[[], Sequence[Path]] = tuple,
    ) -> None:
        self.reactor = reactor
        self.store = store
        self.library = library
        self.debug_dirs = debug_dirs
        self.sweep = Sweep(reactor)
        self._turn = DeferredSemaphore(MOST_AT_ONCE)
        self._tools = DeferredSemaphore(1)
        """Of programs that look at images, which take much memory."""
        self._queues: dict[str, _Queue] = {}
        self._followers: list[Follower] = []
        self._running = 0
        self._idle: Deferred[None] | None = None
        self._is_stopping = False

    # -- the service ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read what is kept, and finish what a killed relay left."""
        try:
            finished = self.store.open()
        except RecordError as error:
            self._log.warn("{error}", error=str(error))
            return
        for one in finished:
            self._log.info("crash {id}: {why}", id=one, why="the relay was killed while it was being kept")

    async def stop(self) -> None:
        """Wait for the captures that go on, for a while."""
        self._is_stopping = True
        self.sweep.stop()
        if self._running:
            self._idle = Deferred()
            self._idle.addTimeout(STOP_SECONDS, self.reactor, onTimeoutCancel=lambda *_: None)
            await self._idle
        for queue in self._queues.values():
            running = queue.running
            if queue.under_way is not None:
                queue.under_way.cancel()
            if running is not None:
                await self._let_go(running)

    async def _let_go(self, capture: Capture) -> None:
        """Let a capture's guest go; QEMU refuses while it ends the image that was being taken."""
        end = self.reactor.seconds() + STOP_SECONDS
        while True:
            try:
                await capture.let_go()
            except KbridgeError as error:
                if self.reactor.seconds() >= end:
                    self._log.warn("{guest}: {error}", guest=capture.guest.name, error=str(error))
                    return
                await deferLater(self.reactor, LOOK_SECONDS)
            else:
                return

    async def settle_debt(self, guest: Guest) -> None:
        """Let a guest go that a killed relay had paused for a capture; raises ``KbridgeError``."""
        machine = guest.machine
        if machine is None or guest.name not in self.store.owed:
            return
        self.store.owed.discard(guest.name)
        # What the killed relay left in the stub is removed first, for which the guest stands.
        end = self.reactor.seconds() + DEBT_SECONDS
        while guest.relay is not None and not guest.relay.is_away and self.reactor.seconds() < end:
            await deferLater(self.reactor, LOOK_SECONDS)
        controlled = guest.relay is not None and any(one.controls for one in guest.relay.sessions)
        state = await machine.query()
        if state.run is RunState.PAUSED and state.detail != "prelaunch" and not controlled:
            await machine.resume()
            guest.recorder.record("crash.let_go", why=KILLED)

    @property
    def busy(self) -> bool:
        """Whether a capture goes on, or waits for its turn."""
        return self._running > 0

    def follow(self, follower: Follower) -> Callable[[], None]:
        """Tell ``follower`` of each crash, until the function returned is called."""
        self._followers.append(follower)

        def stop() -> None:
            if follower in self._followers:
                self._followers.remove(follower)

        return stop

    def limits(self, guest: Guest) -> Limits:
        """Return what of a guest's crashes is kept."""
        config = guest.config
        return Limits(
            config.crash_keep, config.crash_keep_days, config.crash_keep_bytes, config.crash_free_bytes
        )

    def in_thread(self, work: Callable[[], Any]) -> Awaitable[Any]:
        """Call what blocks, in a thread."""
        found: Deferred[Any] = deferToThreadPool(self.reactor, self.reactor.getThreadPool(), work)
        return found

    # -- crashes --------------------------------------------------------------------------------------------

    def noticed(self, guest: Guest, crash: Noticed) -> Deferred[str]:
        """Take a crash; the bundle's name comes when its report can be read, empty where it is not kept by itself."""
        queue = self._queue(guest)
        count = self.store.count(guest.name, crash.title, crash.wall_ns)
        guest.recorder.record("crash.noticed", title=crash.title, by=crash.how.value, count=count.count)
        self._tell("noticed", {"guest": guest.name, "title": crash.title, "count": count.count})
        ended: Deferred[str] = Deferred()
        running = queue.running
        if running is not None and running.is_open:
            running.followed_by(crash)
            ended.callback(running.id)
            return ended
        if self._is_stopping or len(queue.waiting) >= MOST_WAITING:
            ended.callback("")
            return ended
        queue.waiting.append((crash, ended))
        if running is None:
            self._next(guest, queue)
        return ended

    def _next(self, guest: Guest, queue: _Queue) -> None:
        if not queue.waiting or self._is_stopping:
            return
        crash, ended = queue.waiting.pop(0)
        capture = queue.running = Capture(self, guest, crash)
        capture.told.chainDeferred(ended)
        self._running += 1

        def done(_: object) -> None:
            queue.running = None
            if not capture.told.called:
                capture.told.callback("")
            self._next(guest, queue)
            self._ended()

        full = crash.how is How.HAND or queue.loops.is_full(crash.title, crash.wall_ns)
        work = self._turn.run(
            lambda: Deferred.fromCoroutine(capture.run() if full else self._count_only(guest, crash, capture))
        )
        queue.under_way = work
        work.addErrback(self._failed, guest)
        work.addBoth(done)
        if full:
            # What is done with the image alone keeps nobody's next crash from its turn.
            self._running += 1
            rest = work.addCallback(
                lambda _: self._tools.run(lambda: Deferred.fromCoroutine(capture.finish()))
            )
            rest.addErrback(self._failed, guest)
            rest.addCallback(lambda _: self._ended())

    def _failed(self, failure: Failure, guest: Guest) -> None:
        if not failure.check(CancelledError):
            self._log.failure("{guest}: a bug", failure, guest=guest.name)

    def _ended(self) -> None:
        self._running -= 1
        if not self._running and self._idle is not None and not self._idle.called:
            self._idle.callback(None)

    async def _count_only(self, guest: Guest, crash: Noticed, capture: Capture) -> None:
        """Do with a guest in a loop what is configured, and keep nothing of it."""
        capture.close()
        outcome = await carry_out(guest, crash, paused=False)
        guest.recorder.record("crash.counted", title=crash.title, outcome=outcome)

    def published(self, capture: Capture, seconds: float) -> None:
        """Take note that a report can be seen."""
        guest = capture.guest
        guest.recorder.record(
            "crash.report", id=capture.id, title=capture.facts.noticed.title, seconds=round(seconds, 3)
        )
        capture.told.callback(capture.id)
        self._log.info(
            "{guest}: {title}: `kbridge crash show {id}`", guest=guest.name, title=capture.facts.noticed.title,
            id=capture.id,
        )  # fmt: skip
        self._tell("published", self._listed(capture))

    def finished(self, capture: Capture) -> None:
        """Take note that a bundle is finished."""
        facts = capture.facts
        capture.guest.recorder.record("crash.kept", id=capture.id, state=facts.state, outcome=facts.outcome)
        if capture.id:
            self._tell("finished", self._listed(capture))
            for one in self._queue(capture.guest).hooks:
                one.tell(capture.id, self.store.folder / capture.id / DOCUMENT)

    def _queue(self, guest: Guest) -> _Queue:
        """Return a guest's crashes; a guest of the same name that is another now has other hooks."""
        queue = self._queues.get(guest.name)
        if queue is None or queue.guest is not guest:
            old, queue = queue, _Queue(guest)
            if old is not None:
                queue.loops = old.loops
            queue.hooks = self._hooks(guest)
            self._queues[guest.name] = queue
        return queue

    def _hooks(self, guest: Guest) -> tuple[Hook, ...]:
        config, found = guest.config, []
        if config.crash_command:
            run = partial(run_command, self.reactor, config.crash_command)
            found.append(Hook(config.crash_command[0], run, guest.recorder.record))
        if config.crash_url is not None:
            sent = partial(send, self.reactor, config.crash_url, config.crash_url_key)
            found.append(Hook(config.crash_url, sent, guest.recorder.record))
        return tuple(found)

    def forget(self, guest: Guest) -> None:
        """Let go of a guest that leaves the configuration: nobody is told of its crashes any more."""
        queue = self._queues.get(guest.name)
        if queue is not None and queue.guest is guest:
            for one in queue.hooks:
                one.stop()

    def _listed(self, capture: Capture) -> dict[str, Any]:
        path = self.store.folder / capture.id
        return {
            "id": capture.id, "guest": capture.guest.name, "title": capture.facts.noticed.title,
            "count": capture.facts.count, "state": capture.facts.state, "path": str(path),
            "report": str(path / DOCUMENT),
        }  # fmt: skip

    def _tell(self, what: str, listed: Mapping[str, Any]) -> None:
        for one in tuple(self._followers):
            one(what, listed)

    # -- by hand --------------------------------------------------------------------------------------------

    async def by_hand(self, guest: Guest, crash: Noticed) -> str:
        """Capture a guest that nobody says has crashed; returns the bundle's name.  Raises ``GuestError``."""
        queue = self._queues.get(guest.name)
        if queue is not None and queue.running is not None:
            raise GuestError(
                f"the evidence of {guest.name} is being taken already", todo=f"see {queue.running.id or 'it'}"
            )
        id_ = await self.noticed(guest, crash)
        if not id_:
            raise GuestError(f"nothing of {guest.name} was kept", why="see the relay's log")
        return id_
