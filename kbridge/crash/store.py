"""Bundles on disk: a folder for each crash, whole as soon as it can be seen, and how often each title came.

    crashes/20260102-030405-web1/            report.md, report.json and the files that they name
    crashes/.20260102-030405-web1.partial/   one that is being made
    crashes/counts.json                  for each guest and title: how often, first, last

in          facts, files, limits
out         bundles; the list of them
invariant   a folder without a dot has a report; a file in it is whole, whoever is killed; what a killed relay left is
            finished as incomplete when the next one starts.  The oldest bundles go when a limit is passed, never the
            one that is being made
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from kbridge.crash.report import summary, time_text
from kbridge.errors import RecordError

FOLDER: Final = "crashes"
REPORT: Final = "report.md"
DOCUMENT: Final = "report.json"
COUNTS: Final = "counts.json"
VERSION: Final = 1
MOST_TITLES: Final = 1000
"""Titles of one guest that are counted; the one that was seen longest ago goes first."""
MOST_DOCUMENT: Final = 64 << 20
KILLED: Final = "the relay ended or was killed while the evidence was being taken"
_PARTIAL: Final = ".partial"
_ID: Final = re.compile(r"(\d{8}-\d{6})(?:\.(\d{1,4}))?-([a-z0-9][a-z0-9._-]{0,30})")
_DAY_NS: Final = 86400 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What is kept of one guest's crashes, and how much of the disk is left free."""

    count: int = 20
    days: float = 90.0
    bytes: int = 16 << 30
    free_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Count:
    """How often a title came."""

    count: int
    first_ns: int
    last_ns: int


class Bundle:
    """One crash's folder."""

    def __init__(self, store: Store, id_: str, path: Path) -> None:
        self._store = store
        self.id = id_
        self.path = path

    @property
    def is_out(self) -> bool:
        """Whether it can be seen."""
        return not self.path.name.startswith(".")

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all.  Raises ``OSError``, the old one being there still."""
        self._store.check_room(len(data))
        _write(self.path / name, data)

    def publish(self) -> None:
        """Let it be seen.  Raises ``OSError``."""
        if not self.is_out:
            place = self._store.folder / self.id
            self.path.replace(place)
            self.path = place


class Store:
    """All bundles of a relay, under ``folder``.

    ``free`` tells how much of the disk is free; ``now_ns`` the time.
    """

    def __init__(
        self, folder: Path, now_ns: Callable[[], int], free: Callable[[Path], int] | None = None
    ) -> None:
        self.folder = folder
        self._now_ns = now_ns
        self._free = free or (lambda path: shutil.disk_usage(path).free)
        self._counts: dict[str, dict[str, Count]] = {}
        self._summaries: dict[str, dict[str, Any]] = {}
        self._least_free = 0
        self.owed: set[str] = set()
        """Guests that a killed relay had paused, and that would go on by themselves."""

    # -- what was there before ------------------------------------------------------------------------------

    def open(self) -> list[str]:
        """Read what is there, after finishing what a killed relay left; returns the names of what was finished.

        Raises ``RecordError`` where the folder cannot be made or read.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            finished = [one for path in sorted(self.folder.iterdir()) if (one := self._finish(path))]
        except OSError as error:
            raise RecordError(
                f"crashes cannot be kept in {self.folder}", why=error.strerror or str(error)
            ) from error
        self.look()
        return finished

    def look(self) -> None:
        """Read what is there, and change nothing."""
        self._counts = _read_counts(self.folder / COUNTS)
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            document = read_document(path) if _ID.fullmatch(path.name) else None
            if document is not None and document["id"] == path.name:
                self.note(document)

    def _finish(self, path: Path) -> str:
        """Finish a bundle that is not; returns its name, nothing for one that needs none of that."""
        name = path.name
        partial = name.startswith(".") and name.endswith(_PARTIAL)
        id_ = name.removeprefix(".").removesuffix(_PARTIAL) if partial else name
        if not path.is_dir() or not _ID.fullmatch(id_):
            return ""
        for left in path.glob(".*.new"):
            left.unlink(missing_ok=True)
        document = read_document(path)
        if document is None or document["id"] != id_:
            if partial and not any(path.iterdir()):
                path.rmdir()
                return ""
            document = _bare(id_, path)
        machine = document.get("machine")
        paused = isinstance(machine, dict) and bool(machine.get("paused"))
        if document.get("state") != "pending" and not partial and not paused:
            return ""
        if isinstance(machine, dict) and paused:
            machine["paused"] = False
            if not document.get("fatal"):
                self.owed.add(_guest_of(id_))
        document["state"] = "incomplete"
        document["interrupted"] = KILLED
        for part in document["parts"].values():
            if part.get("state") == "pending":
                part.update(state="missing", why=KILLED)
        _write(path / DOCUMENT, encoded(document))
        text = (
            (path / REPORT).read_text("utf-8", "replace")
            if (path / REPORT).is_file()
            else f"# {document['title']}\n"
        )
        note = f"**Incomplete**: {KILLED}; report.json says which parts are missing.\n"
        head, _, rest = text.partition("\n")
        _write(path / REPORT, f"{head}\n\n{note}{rest}".encode("utf-8", "replace"))
        if partial:
            path.replace(self.folder / id_)
        return id_

    # -- bundles --------------------------------------------------------------------------------------------

    def begin(self, guest: str, wall_ns: int, limits: Limits) -> Bundle:
        """Make the folder of a crash; older ones make room.  Raises ``OSError``."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._least_free = 0
        stamp = f"{datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC):%Y%m%d-%H%M%S}"
        number = 1
        while True:
            id_ = f"{stamp}-{guest}" if number == 1 else f"{stamp}.{number}-{guest}"
            path = self.folder / f".{id_}{_PARTIAL}"
            if not (self.folder / id_).exists():
                try:
                    path.mkdir(mode=0o700)
                    break
                except FileExistsError:
                    pass
            number += 1
        self.make_room(guest, limits, spared=id_)
        return Bundle(self, id_, path)

    def check_room(self, size: int) -> None:
        """Raise ``OSError`` where so many bytes more would fill the disk."""
        if self.free_bytes() < size:
            raise OSError(28, "No space left on device")

    def free_bytes(self) -> int:
        """Return how much of the disk is free."""
        return self._free(self.folder)

    def make_room(self, guest: str, limits: Limits, spared: str) -> list[str]:
        """Remove the oldest bundles of a guest beyond its limits; returns their names.  Raises ``OSError``."""
        mine = sorted(
            (
                path
                for path in self.folder.iterdir()
                if _ID.fullmatch(path.name) and _guest_of(path.name) == guest
            ),
            key=lambda path: _key(path.name),
        )
        mine = [path for path in mine if path.name != spared]
        sizes = {path: _size(path) for path in mine}
        oldest_ns = self._now_ns() - int(limits.days * _DAY_NS)
        removed = []
        for path in mine:
            rest = [one for one in mine if one.name not in removed]
            full = (
                len(rest) >= limits.count
                or sum(sizes[one] for one in rest) > limits.bytes
                or _time_ns(path.name) < oldest_ns
                or self.free_bytes() < limits.free_bytes
            )
            if not full:
                break
            shutil.rmtree(path, ignore_errors=True)
            self._summaries.pop(path.name, None)
            removed.append(path.name)
        return removed

    # -- what came how often --------------------------------------------------------------------------------

    def count(self, guest: str, title: str, wall_ns: int) -> Count:
        """Count one more crash of a title; returns the count with it."""
        titles = self._counts.setdefault(guest, {})
        before = titles.pop(title, None)
        found = (
            Count(1, wall_ns, wall_ns)
            if before is None
            else Count(before.count + 1, before.first_ns, wall_ns)
        )
        # At the end: the first is the one that was seen longest ago.
        titles[title] = found
        while len(titles) > MOST_TITLES:
            del titles[next(iter(titles))]
        # A disk that takes no counts takes no bundle either, which is said there: they are kept in memory.
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(self.folder / COUNTS, encoded(_counts_document(self._counts)))
        return found

    def recount(self, guest: str, old: str, new: str, wall_ns: int) -> Count:
        """Count a crash under another title than it was counted under; returns that one's count."""
        titles = self._counts.get(guest, {})
        before = titles.get(old)
        if before is not None and before.count > 1:
            titles[old] = Count(before.count - 1, before.first_ns, before.last_ns)
        else:
            titles.pop(old, None)
        return self.count(guest, new, wall_ns)

    def counted(self, guest: str, title: str) -> Count | None:
        """Return how often a title came."""
        return self._counts.get(guest, {}).get(title)

    def note(self, document: Mapping[str, Any]) -> None:
        """Remember what the list shows of a bundle."""
        try:
            found = summary(document)
        except KeyError:
            return
        self._summaries[str(found["id"])] = found

    def listed(self, guest: str | None = None) -> list[dict[str, Any]]:
        """Return all bundles, the newest first, each with how often its title has come by now."""
        found = []
        for id_ in sorted(self._summaries, key=_key, reverse=True):
            one = self._summaries[id_]
            if guest is not None and one["guest"] != guest:
                continue
            counted = self.counted(one["guest"], one["title"])
            more = {} if counted is None else {
                "count": counted.count, "first": time_text(counted.first_ns), "last": time_text(counted.last_ns)
            }  # fmt: skip
            found.append({**one, **more, "path": str(self.folder / id_)})
        return found

    def find(self, id_: str) -> Path | None:
        """Return the folder of a bundle, by its name or the only one that begins so."""
        if _ID.fullmatch(id_) and (self.folder / id_).is_dir():
            return self.folder / id_
        alike = [one for one in self._summaries if one.startswith(id_)] if id_ else []
        return self.folder / alike[0] if len(alike) == 1 else None


def read_document(path: Path) -> dict[str, Any] | None:
    """Return the ``report.json`` of a bundle; None where there is none that can be read and is of its form."""
    try:
        with (path / DOCUMENT).open("rb") as file:
            found = json.loads(file.read(MOST_DOCUMENT))
    except (OSError, ValueError, RecursionError):
        # Brackets in brackets are no report either.
        return None
    return found if _is_of_form(found) else None


def _is_of_form(found: object) -> bool:
    """Whether what is relied on of a report is there: a disk that was full, or a hand, may have left anything."""
    if not isinstance(found, dict):
        return False
    parts = found.get("parts")
    return (
        all(isinstance(found.get(one), str) for one in ("id", "guest", "title", "time", "kind", "state"))
        and type(found.get("count")) is int
        and isinstance(found.get("fatal"), bool)
        and isinstance(parts, dict)
        and all(isinstance(one, dict) for one in parts.values())
    )


def read_report(path: Path) -> tuple[str, dict[str, Any]] | None:
    """Return the ``report.md`` and the ``report.json`` of a bundle; None where they cannot be read."""
    document = read_document(path)
    try:
        return None if document is None else ((path / REPORT).read_text("utf-8", "replace"), document)
    except OSError:
        return None


def _bare(id_: str, path: Path) -> dict[str, Any]:
    """Return a document for a bundle of which nothing was written but files."""
    return {
        "version": 1,
        "id": id_,
        "guest": _guest_of(id_),
        "title": "a crash whose report was not written",
        "kind": "unknown",
        "time": time_text(_time_ns(id_)),
        "count": 1,
        "fatal": True,
        "state": "incomplete",
        "parts": {
            one.stem: {"state": "done", "why": None, "file": one.name} for one in sorted(path.iterdir())
        },
    }


def _key(id_: str) -> tuple[str, int, str]:
    """Return by what names are in the order of time."""
    stamp, number, guest = _split(id_)
    return stamp, number, guest


def _split(id_: str) -> tuple[str, int, str]:
    found = _ID.fullmatch(id_)
    assert found is not None, id_
    return found[1], int(found[2] or 1), found[3]


def _guest_of(id_: str) -> str:
    return _split(id_)[2]


def _time_ns(id_: str) -> int:
    try:
        moment = datetime.strptime(_split(id_)[0], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return 0
    return int(moment.timestamp()) * 1_000_000_000


def _size(path: Path) -> int:
    total = 0
    for one in path.rglob("*"):
        try:
            total += one.lstat().st_size
        except OSError:  # it went meanwhile
            continue
    return total


def encoded(document: Mapping[str, Any]) -> bytes:
    """Return a document as it is written."""
    return json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _write(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all.  Raises ``OSError``."""
    new = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _counts_document(counts: Mapping[str, Mapping[str, Count]]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "guests": {
            guest: [
                {"title": title, "count": one.count, "first_ns": one.first_ns, "last_ns": one.last_ns}
                for title, one in titles.items()
            ]
            for guest, titles in counts.items()
        },
    }


def _read_counts(path: Path) -> dict[str, dict[str, Count]]:
    """Return what was counted; nothing where the file is not there or cannot be understood."""
    try:
        found = json.loads(path.read_bytes())
        guests: Mapping[str, Iterable[Mapping[str, Any]]] = found["guests"]
        return {
            guest: {
                str(one["title"]): Count(int(one["count"]), int(one["first_ns"]), int(one["last_ns"]))
                for one in titles
            }
            for guest, titles in guests.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
