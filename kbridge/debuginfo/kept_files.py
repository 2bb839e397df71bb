"""Files that were made for debuggers, kept on disk for the next process that serves the same.

in          a name that tells all that the contents are made of
out         those contents, or that they are not there
invariant   what is returned is what was kept, whoever was killed or wrote over it; ``MOST_FILES`` at most, the least
            recently used go first.  What cannot be kept is made anew
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kbridge.debuginfo import cache

if TYPE_CHECKING:
    from collections.abc import Callable

    from symbols.model import BuildId

MOST_FILES: Final = 32
"""Of 4 MB, most of them."""
MADE: Final = 1
"""Goes up whenever a main file is made differently."""
_DIGEST_BYTES: Final = 16
_SUFFIX: Final = ".served"


def folder() -> Path:
    """Return where they are: beside the indexes of symbols."""
    return cache.folder().with_name("served")


def main_file(build_id: BuildId, slide: int, size: int) -> str:
    """Return the name of the main file of a kernel at its place, which is made of a file of so many bytes."""
    return f"vmlinux-{build_id}@{slide:x}-{size}-{MADE}"


def known(place: Path, name: str) -> bytes | None:
    """Return the contents called ``name`` in a folder, None where they are not there.  Blocks."""
    return _read(_path(place, name))


def kept(place: Path, name: str, make: Callable[[], bytes]) -> bytes:
    """Return the contents called ``name`` in a folder, made and kept if they are not there; raises what ``make`` does.

    Blocks: it is called in a thread.
    """
    contents = known(place, name)
    if contents is not None:
        return contents
    contents = make()
    try:
        cache.write(_path(place, name), (_digest(contents), contents))
        _prune(place)
    except OSError:
        # A full disk, or a home that may not be written: it serves all the same.
        return contents
    return contents


def _path(place: Path, name: str) -> Path:
    return place / f"{name}{_SUFFIX}"


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    contents = data[_DIGEST_BYTES:]
    return contents if _digest(contents) == data[:_DIGEST_BYTES] else None


def _digest(contents: bytes) -> bytes:
    return hashlib.blake2b(contents, digest_size=_DIGEST_BYTES).digest()


def _prune(place: Path) -> None:
    files = sorted(place.glob(f"*{_SUFFIX}"), key=lambda one: one.stat().st_mtime)
    for one in files[:-MOST_FILES]:
        one.unlink(missing_ok=True)
