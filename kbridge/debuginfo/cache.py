"""Indexes of files with symbols on disk, by build-id: mapped at the next start, made anew where they are damaged.

in          a file with symbols
out         its ``Index``
invariant   a file of the cache is whole or absent, whoever is killed; one that proves to be damaged is made anew, while
            it answers too; no more than ``MOST_BYTES`` are kept, the least recently used ones go first
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from kbridge.debuginfo.mapping import mapped
from kbridge.errors import KbridgeError
from symbols import elf
from symbols.errors import IndexDamaged, SymbolError
from symbols.index import Index
from symbols.model import BuildId

MOST_BYTES: Final = 2 << 30
_SUFFIX: Final = ".index"

Build = Callable[[Path, BuildId], Iterable[bytes]]
"""Makes the parts of an index out of a file."""
Separate = Callable[[Path, BuildId], Path | None]
"""Gives the file with the lines of one that is stripped of them."""


def folder() -> Path:
    """Return where indexes are kept: ``$XDG_CACHE_HOME/kbridge/symbols``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "kbridge" / "symbols"


def index_of(
    path: Path,
    build: Build,
    kept: Path,
    begin: Callable[[], None] = lambda: None,
    separate: Separate = lambda path, build_id: None,
) -> Index:
    """Return the index of a file, made now if there is none; ``begin`` is called before that.

    ``separate`` gives the file with the lines of one that has none.  Raises ``KbridgeError`` for a file that cannot be
    read or has no build-id, and when the disk is full.
    """
    try:
        with mapped(path) as image:
            build_id = elf.build_id(image)
            has_lines = build_id is not None and elf.has_lines(image)
    except (OSError, ValueError, SymbolError) as error:
        raise KbridgeError(
            f"{path} cannot be read", why=str(error), todo="give a vmlinux with symbols"
        ) from error
    if build_id is None:
        raise KbridgeError(f"{path} has no build-id", todo="give a vmlinux as its build left it")
    place = kept / f"{build_id}{_SUFFIX}"
    source = path

    def renew() -> memoryview:
        begin()
        try:
            write(place, build(source, build_id))
            prune(kept, place)
            return _mapped(place)
        except (OSError, SymbolError) as error:
            raise KbridgeError(f"{source} cannot be indexed", why=str(error)) from error

    known = _opened(place, build_id, renew)
    if known is not None and known.has_lines:
        return known
    if not has_lines:
        # It is looked for each time: it may have come since.
        other = separate(path, build_id)
        has_lines = other is not None
        source = other or path
    # A stripped file has the build-id of the one with DWARF: what was made of it is not enough then.
    if known is not None and not has_lines:
        return known
    try:
        return Index(renew(), build_id)
    except IndexDamaged as error:
        raise KbridgeError(f"{source} cannot be indexed", why=str(error)) from error


def index_by_id(
    build_id: BuildId,
    find: Callable[[], Path | None],
    index: Callable[[Path], Index],
    kept: Path,
) -> Index:
    """Return the index of a build-id: the one that is kept, else made by ``index`` of the file that ``find`` gives.

    Raises ``KbridgeError`` where there is neither.
    """

    def file() -> Path:
        path = find()
        if path is None:
            raise KbridgeError(
                f"there is no file of build-id {build_id}",
                why="neither an index of it is kept nor is it in the folders for debug files",
                todo="give its folder with --debug-dir, or the file with --vmlinux",
            )
        return path

    def renew() -> memoryview:
        place.unlink(missing_ok=True)
        index(file())
        return _mapped(place)

    place = kept / f"{build_id}{_SUFFIX}"
    known = _opened(place, build_id, renew)
    if known is not None and (known.has_lines or find() is None):
        return known
    return index(file())


def _opened(place: Path, build_id: BuildId, renew: Callable[[], memoryview]) -> Index | None:
    """Return an index that is kept, None where there is none that can be used."""
    try:
        index = Index(_mapped(place), build_id, renew)
    except (FileNotFoundError, IndexDamaged):
        return None
    os.utime(place)
    return index


def _mapped(place: Path) -> memoryview:
    """Map a file; the map lives as long as what it returns."""
    with place.open("rb") as file:
        try:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError as error:
            raise IndexDamaged("the index is empty") from error


def write(place: Path, parts: Iterable[bytes]) -> None:
    """Write a file whole or not at all.  Raises ``OSError``."""
    import tempfile  # noqa: PLC0415 (what reads a warm cache loads little)

    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=_SUFFIX, dir=place.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
        Path(name).replace(place)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def prune(kept: Path, spared: Path) -> None:
    """Remove the least recently used indexes beyond ``MOST_BYTES``, and what a killed writer left."""
    others = [(one.stat(), one) for one in kept.glob(f"*{_SUFFIX}") if one != spared]
    known = sorted(others, key=lambda item: item[0].st_mtime)
    total = spared.stat().st_size + sum(status.st_size for status, _ in known)
    for status, one in known:
        if total <= MOST_BYTES:
            break
        one.unlink(missing_ok=True)
        total -= status.st_size
