"""Files with symbols from debuginfod servers, by build-id, kept in a folder that gdb and ``finders`` can use as it is.

in          a build-id, and which of its files
out         the file's path, None where no server has it, or ``DownloadFailed``
invariant   a file of the folder is whole and of its build-id, or absent, whoever is killed; one file is under way
            once, however many wait for it; no more than ``most_kept_bytes`` are kept, the least recently used go first

Source: elfutils, debuginfod(8), "WEBAPI": ``GET /buildid/ID/debuginfo``, ``/executable`` and ``/section/NAME``; HEAD is
not there (Debian 12's server answers 400).  What a server says of the file is not believed: its build-id is read.

Names in the folder are those of distributions: ``.build-id/xx/yyyy.debug``, ``.build-id/xx/yyyy`` for what runs,
``.build-id/xx/yyyy.section.NAME``.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from kbridge.debuginfo.download import Downloader, DownloadFailed, Limits
from kbridge.debuginfo.mapping import mapped
from symbols import elf
from symbols.errors import SymbolError
from symbols.model import BuildId

MOST_KEPT_BYTES: Final = 8 << 30
ABSENT_SECONDS: Final = 600.0
"""How long it is remembered that no server has a file, as elfutils does (``cache_miss_s``)."""
TRIES: Final = 3
FIRST_PAUSE_SECONDS: Final = 0.5
"""Before the second try of a server; twice as long before each further one."""
_BUILD_ID: Final = re.compile(r"[0-9a-f]{8,128}")
_SECTION: Final = re.compile(r"\.?[A-Za-z0-9_][A-Za-z0-9_.+-]{0,100}")
_ABSENT: Final = ".absent"
_PART: Final = ".part"
_NOT_FOUND: Final = 404
_STALE_SECONDS: Final = 86400.0
"""After which what a killed writer left is removed."""

DEBUGINFO: Final = "debuginfo"
EXECUTABLE: Final = "executable"


@dataclass(frozen=True, slots=True)
class Underway:
    """A file that is being fetched."""

    build_id: BuildId
    kind: str
    got: int
    """Bytes so far."""
    size: int | None
    """Of all; None where the server does not tell."""


@dataclass(slots=True, eq=False)
class _Task:
    """A file that is being fetched, and who waits for it."""

    got: int = 0
    size: int | None = None
    waiting: list[Deferred[Path | None]] = field(default_factory=list)


def place(folder: Path, build_id: BuildId, kind: str) -> Path:
    """Return where a file is kept.  Raises ``ValueError`` for what no server can be asked for."""
    if not _BUILD_ID.fullmatch(build_id):
        raise ValueError(f"{build_id!r} is no build-id")
    base = folder / ".build-id" / build_id[:2]
    match kind.partition("/"):
        case ("debuginfo", "", ""):
            return base / f"{build_id[2:]}.debug"
        case ("executable", "", ""):
            return base / build_id[2:]
        case ("section", "/", name) if _SECTION.fullmatch(name):
            return base / f"{build_id[2:]}.section.{name}"
        case _:
            raise ValueError(f"there is no file {kind!r} of a build-id")


class Debuginfod:
    """Asks servers in their order, and keeps what they have in ``folder``."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        urls: Sequence[str],
        folder: Path,
        *,
        limits: Limits | None = None,
        most_kept_bytes: int = MOST_KEPT_BYTES,
        absent_seconds: float = ABSENT_SECONDS,
        tries: int = TRIES,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self._reactor = reactor
        self._urls = tuple(url.rstrip("/") for url in urls)
        self._folder = folder
        self._most_kept_bytes = most_kept_bytes
        self._absent_seconds = absent_seconds
        self._tries = tries
        self._first_pause_seconds = first_pause_seconds
        self._downloader = Downloader(reactor, limits or Limits())
        self._tasks: dict[tuple[BuildId, str], _Task] = {}
        self._works: dict[_Task, Deferred[Any]] = {}
        """All that goes on, what is being ended too."""
        self._is_stopped = False
        self._stopping: Deferred[None] | None = None

    @property
    def folder(self) -> Path:
        """Where fetched files are: a folder for debug files like any other."""
        return self._folder

    @property
    def underway(self) -> tuple[Underway, ...]:
        """What is being fetched."""
        return tuple(
            Underway(build_id, kind, task.got, task.size) for (build_id, kind), task in self._tasks.items()
        )

    def find(self, build_id: BuildId, kind: str = DEBUGINFO) -> Deferred[Path | None]:
        """Return a file, fetched now if it is not kept; None where no server has it.

        ``kind``: ``debuginfo``, ``executable`` or ``section/NAME``.  Fails with ``DownloadFailed`` where servers could
        not tell or sent another file, with ``OSError`` where it cannot be kept; ``ValueError`` is raised for another
        ``kind``.  Who cancels it no longer waits; the last one ends the download.
        """
        where = place(self._folder, build_id, kind)
        key = build_id, kind
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = _Task()
            # It goes to a thread first, so it is never over at once.
            work = Deferred.fromCoroutine(self._find(task, where, build_id, kind))
            self._works[task] = work
            work.addBoth(partial(self._done, key, task))
        waiting: Deferred[Path | None] = Deferred(partial(self._no_longer, key, task))
        task.waiting.append(waiting)
        return waiting

    def _no_longer(self, key: tuple[BuildId, str], task: _Task, waiting: Deferred[Path | None]) -> None:
        if waiting not in task.waiting:
            return
        task.waiting.remove(waiting)
        if not task.waiting:
            self._forget(key, task)
            self._works[task].cancel()

    def _forget(self, key: tuple[BuildId, str], task: _Task) -> None:
        # Who asks while one is being ended begins another.
        if self._tasks.get(key) is task:
            del self._tasks[key]

    def _done(self, key: tuple[BuildId, str], task: _Task, result: Any) -> None:
        self._forget(key, task)
        del self._works[task]
        for one in task.waiting:
            one.callback(result)
        if self._stopping is not None and not self._works:
            self._stopping.callback(None)

    async def stop(self) -> None:
        """End all downloads; who waits for one is told.  Returns when nothing is connected any more."""
        self._is_stopped = True
        if self._works:
            self._stopping = Deferred()
            for work in list(self._works.values()):
                work.cancel()
            await self._stopping
            self._stopping = None

    # -- one file -------------------------------------------------------------------------------------------

    async def _find(self, task: _Task, where: Path, build_id: BuildId, kind: str) -> Path | None:
        try:
            known = await self._in_thread(partial(_look, where, self._absent_seconds))
            if known is not None:
                return where if known else None
            failed: DownloadFailed | None = None
            for url in self._urls:
                address = f"{url}/buildid/{build_id}/{quote(kind)}"
                try:
                    await self._fetch(task, where, build_id, kind, address)
                except DownloadFailed as error:
                    if error.status != _NOT_FOUND:
                        self._log.info("no debug file: {why}", why=str(error))
                        failed = error
                else:
                    return where
            if failed is not None:
                raise failed
            await self._in_thread(partial(_remember_absent, where))
        except CancelledError:
            if self._is_stopped:
                raise DownloadFailed(
                    f"{build_id}/{kind}", "the relay is being stopped", retry=False
                ) from None
            raise
        return None

    async def _fetch(self, task: _Task, where: Path, build_id: BuildId, kind: str, address: str) -> None:
        """Fetch a file from one server, which is tried several times."""
        pause = self._first_pause_seconds
        for left in reversed(range(self._tries)):
            try:
                await self._fetch_once(task, where, build_id, kind, address)
            except DownloadFailed as error:
                if not left or not error.is_worth_retrying:
                    raise
            else:
                return
            await deferLater(self._reactor, pause)
            pause *= 2

    async def _fetch_once(self, task: _Task, where: Path, build_id: BuildId, kind: str, address: str) -> None:
        def progress(got: int, size: int | None) -> None:
            task.got, task.size = got, size

        where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=_PART, dir=where.parent)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                await self._downloader.get(address, file, progress)
            wanted = None if kind.startswith("section/") else build_id
            await self._in_thread(partial(_keep, part, where, wanted, address))
        finally:
            _remove(part)
        await self._in_thread(partial(prune, self._folder, self._most_kept_bytes, where))

    def _in_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        found: Deferred[Any] = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)
        return found


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _look(where: Path, absent_seconds: float) -> bool | None:
    """Return whether a file is kept, None where it is not known."""
    try:
        os.utime(where)
    except FileNotFoundError:
        pass
    except PermissionError:
        # It is another user's, who lets us read it.
        return True
    else:
        return True
    absent = _absent(where)
    try:
        age = time.time() - absent.stat().st_mtime
    except FileNotFoundError:
        return None
    # A time to come is of a clock that was put back.
    return False if 0 <= age < absent_seconds else None


def _absent(where: Path) -> Path:
    return where.with_name(f".{where.name}{_ABSENT}")


def _remember_absent(where: Path) -> None:
    where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    absent = _absent(where)
    absent.touch()
    os.utime(absent)


def _keep(part: Path, where: Path, build_id: BuildId | None, address: str) -> None:
    """Put a fetched file in its place if it is what was asked for.  Raises ``DownloadFailed``."""
    if build_id is not None:
        check(part, build_id, address)
    part.replace(where)
    _absent(where).unlink(missing_ok=True)


def check(path: Path, build_id: BuildId, address: str) -> None:
    """Raise ``DownloadFailed`` unless a file is a whole one of this build-id; both are told where it is another's."""
    try:
        with mapped(path) as image:
            own = elf.build_id(image)
            for section in elf.sections(image):
                if section.kind != elf.SHT_NOBITS:
                    elf.check_inside(image, section)
    except (SymbolError, ValueError) as error:
        raise DownloadFailed(address, f"what came cannot be used: {error}") from error
    if own != build_id:
        raise DownloadFailed(
            address, f"what came is of build-id {own or 'none'}, not of {build_id}", retry=False
        )


def prune(folder: Path, most_bytes: int, spared: Path | None = None) -> None:
    """Remove the least recently used files beyond ``most_bytes``, and what killed writers left."""
    now = time.time()
    known: list[tuple[float, int, Path]] = []
    for path in (folder / ".build-id").glob("*/*"):
        try:
            status = path.stat()
            if path.name.startswith("."):
                if now - status.st_mtime > _STALE_SECONDS:
                    path.unlink()
            else:
                known.append((status.st_mtime, status.st_size, path))
        except FileNotFoundError:
            # Another process was faster.
            continue
    total = sum(size for _, size, _ in known)
    for _, size, path in sorted(known):
        if total <= most_bytes:
            break
        if path != spared:
            path.unlink(missing_ok=True)
            total -= size
