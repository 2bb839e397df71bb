"""Files with debug information, laid out by build-id, as gdb's `debug-file-directory` wants them."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

from lab import modules
from lab.errors import LabError

_NOTE = struct.Struct("<III")
_BUILD_ID = 3


def build_id(path: Path) -> str:
    """The GNU build-id of a vmlinux or a module, in hexadecimal; LabError if it has none."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        for name in (".note.gnu.build-id", ".notes"):
            try:
                notes = modules.section(image, name)
            except LabError:
                continue
            if found := parse_notes(notes):
                return found.hex()
    raise LabError(f"{path} has no build-id")


def parse_notes(notes: bytes) -> bytes | None:
    """The build-id among ELF notes. Its type number alone does not tell: other owners use it too."""
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        name_at = at + _NOTE.size
        data_at = name_at + name_size + -name_size % 4
        if kind == _BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0":
            return notes[data_at : data_at + size]
        at = data_at + size + -size % 4
    return None


def link(folder: Path, files: list[Path]) -> None:
    """Make `folder/.build-id/xx/rest.debug` point at each of `files`, by relative paths."""
    for path in files:
        identity = build_id(path)
        place = folder / ".build-id" / identity[:2] / f"{identity[2:]}.debug"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(path, place.parent))
