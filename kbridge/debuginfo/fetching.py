"""Asks debuginfod servers for what a guest runs and nobody here has a file of; nobody waits for it.

in          build-ids that are wanted
out         ``came``, for each file that has come
invariant   one is asked for at a time; a build-id that no server has, and a server that does not answer, are asked
            again after ``ABSENT_SECONDS`` only; no more than ``MOST_REMEMBERED`` are remembered
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from kbridge.debuginfo.debuginfod import ABSENT_SECONDS
from kbridge.errors import KbridgeError

if TYPE_CHECKING:
    from pathlib import Path

    from kbridge.debuginfo.debuginfod import Debuginfod
    from symbols.model import BuildId

MOST_REMEMBERED: Final = 1024


class Fetcher:
    """Fetches the files of one guest; the module's text says how."""

    _log = Logger()

    def __init__(
        self, reactor: Any, guest: str, servers: Debuginfod, came: Callable[[BuildId, Path], None]
    ) -> None:
        self._reactor = reactor
        self._guest = guest
        self._servers = servers
        self._came = came
        self._asked: OrderedDict[BuildId, float] = OrderedDict()
        """When each was asked for last."""
        self._queue: deque[BuildId] = deque()
        self._is_busy = False

    def want(self, build_ids: Iterable[BuildId]) -> None:
        """Fetch the files of these build-ids, as far as they were not asked for already."""
        now = self._reactor.seconds()
        for build_id in build_ids:
            before = self._asked.get(build_id)
            if (before is None or now - before >= ABSENT_SECONDS) and len(self._queue) < MOST_REMEMBERED:
                self._asked[build_id] = now
                self._asked.move_to_end(build_id)
                self._queue.append(build_id)
        while len(self._asked) > MOST_REMEMBERED:
            self._asked.popitem(last=False)
        if self._queue and not self._is_busy:
            self._is_busy = True
            Deferred.fromCoroutine(self._work()).addErrback(
                lambda failure: self._log.failure("{guest}: a bug", failure, guest=self._guest)
            )

    async def _work(self) -> None:
        try:
            while self._queue:
                build_id = self._queue.popleft()
                try:
                    path = await self._servers.find(build_id)
                except (KbridgeError, OSError, CancelledError) as error:
                    self._log.info("{guest}: no debug file: {why}", guest=self._guest, why=str(error))
                    # The same would be said of each: the next stop asks again, in its time.
                    self._queue.clear()
                    return
                if path is not None:
                    self._log.info("{guest}: a debug file came: {path}", guest=self._guest, path=str(path))
                    self._came(build_id, path)
        finally:
            self._is_busy = False
