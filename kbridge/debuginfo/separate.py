"""The file with DWARF that belongs to a stripped one: by build-id in folders for debug files, or by the file's link.

A link (``.gnu_debuglink``) is a name and the CRC-32 of the file that is meant; it is beside the stripped file, in
``.debug`` beside it, or in a folder for debug files under the stripped file's own folder, as gdb looks for it.  What
has another CRC-32 or build-id is of another build, and not taken.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kbridge.debuginfo.mapping import mapped
from symbols import elf
from symbols.errors import SymbolError

if TYPE_CHECKING:
    from symbols.elf import Image
    from symbols.model import BuildId

DEBUG_DIRS: Final = (Path("/usr/lib/debug"),)
_CHUNK: Final = 1 << 20


def with_lines(path: Path, build_id: BuildId, folders: tuple[Path, ...] = DEBUG_DIRS) -> Path | None:
    """Return the file with the lines of a stripped one; None where there is none.  Never raises for a bad file."""
    for folder in folders:
        found = by_build_id(folder, build_id)
        if found is not None and _is_of(found, build_id):
            return found
    try:
        with mapped(path) as image:
            link = elf.debug_link(image)
    except (OSError, ValueError, SymbolError):
        return None
    if link is None:
        return None
    name, crc = link
    for place in _places(path, name, folders):
        if _is_of(place, build_id) and _crc(place) == crc:
            return place
    return None


def by_build_id(folder: Path, build_id: BuildId) -> Path | None:
    """Return what a folder for debug files has by the name that gdb looks for; None where it has nothing."""
    path = name_of(folder, build_id)
    return path if path.exists() else None


def name_of(folder: Path, build_id: BuildId) -> Path:
    """Return what a file is called by its build-id in a folder for debug files, as gdb looks for it."""
    return folder / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"


def link_debug_file(folder: Path, build_id: BuildId, path: Path, image: Image) -> None:
    """Name a file with DWARF by its build-id in a folder, as gdb looks for it.  Raises ``OSError``."""
    if not elf.has_lines(image):
        return
    link = name_of(folder, build_id)
    target = path.resolve()
    if link.is_symlink() and link.readlink() == target:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    made = link.with_suffix(f".{os.getpid()}")
    made.unlink(missing_ok=True)
    made.symlink_to(target)
    made.replace(link)


def _places(path: Path, name: str, folders: tuple[Path, ...]) -> Iterator[Path]:
    own = path.resolve()
    beside = own.parent
    yield from (one for one in (beside / name, beside / ".debug" / name) if one != own)
    for folder in folders:
        yield folder / beside.relative_to("/") / name


def _is_of(path: Path, build_id: BuildId) -> bool:
    """Whether a file has lines, and this build-id."""
    try:
        with mapped(path) as image:
            return elf.build_id(image) == build_id and elf.has_lines(image)
    except (OSError, ValueError, SymbolError):
        return False


def _crc(path: Path) -> int | None:
    value = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                value = zlib.crc32(piece, value)
    except OSError:
        return None
    return value
