"""Which files of a folder have which build-id, by their notes: distributions seldom name their files so.

in          a folder for debug files, a file in which what was read is remembered
out         the paths of a build-id
invariant   no more of a file is read than its headers and notes, and that once until its size or time of change differ;
            at most ``MOST_FILES`` are known; what was remembered and is damaged is read anew

Everything here reads files and blocks: it is called in a thread.

Debian's packages with debug files have names by build-id for two files only.  What is remembered is JSON: a version,
the folder, and for each path in it size in bytes, time of change in ns, and build-id, null for what has none.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kbridge.debuginfo.mapping import mapped
from symbols import elf
from symbols.errors import SymbolError
from symbols.model import BuildId

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_FILES: Final = 65_536
MOST_REMEMBERED_BYTES: Final = 32 << 20
VERSION: Final = 1
_LEAST_BYTES: Final = 64
"""Of an ELF file: its header."""

Row = tuple[int, int, BuildId | None]
"""Size, time of change in ns, build-id."""


def build_id_of(path: Path) -> BuildId | None:
    """Return a file's build-id; None where it has none, is no ELF file, or cannot be read."""
    try:
        with mapped(path) as image:
            return elf.build_id(image)
    except (SymbolError, OSError, ValueError):
        return None


class Notes:
    """The build-ids of the files in one folder."""

    def __init__(self, folder: Path, remembered: Path | None) -> None:
        self._folder = folder
        self._remembered = remembered
        self._rows: dict[str, Row] | None = None
        self.is_complete = True
        """Whether all files were looked at; not so where there are more than ``MOST_FILES``."""

    def find(self, build_id: BuildId) -> list[Path]:
        """Return the files of a build-id as they are now, in the order of their names."""
        return [
            self._folder / name for name, (_, _, own) in sorted(self._refreshed().items()) if own == build_id
        ]

    def _refreshed(self) -> dict[str, Row]:
        known = self._recalled() if self._rows is None else self._rows
        rows: dict[str, Row] = {}
        files = _files(self._folder)
        for name, status in islice(files, MOST_FILES):
            size, changed = status.st_size, status.st_mtime_ns
            before = known.get(name)
            if before is not None and before[:2] == (size, changed):
                rows[name] = before
            else:
                rows[name] = (size, changed, build_id_of(self._folder / name))
        self.is_complete = next(files, None) is None
        if rows != known:
            self._remember(rows)
        self._rows = rows
        return rows

    def _recalled(self) -> dict[str, Row]:
        if self._remembered is None:
            return {}
        try:
            with self._remembered.open("rb") as file:
                data = file.read(MOST_REMEMBERED_BYTES + 1)
            if len(data) > MOST_REMEMBERED_BYTES:
                return {}
            return _rows(json.loads(data), self._folder)
        except (OSError, ValueError, RecursionError):
            # Not there yet, cut off, or damaged: read anew.
            return {}

    def _remember(self, rows: dict[str, Row]) -> None:
        if self._remembered is None:
            return
        text = json.dumps({"version": VERSION, "folder": str(self._folder), "files": rows})
        try:
            self._remembered.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".", dir=self._remembered.parent)
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(text)
                Path(name).replace(self._remembered)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError:
            # Reading them again the next time costs seconds; it is not worth failing for.
            return


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Return the regular files below a folder that may be ELF files, by their path in it; links are not followed."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(place, name)  # noqa: PTH118 (there are thousands)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_size >= _LEAST_BYTES:
                yield os.path.relpath(path, folder), status


def _rows(said: Any, folder: Path) -> dict[str, Row]:
    """Return what was remembered, as far as it has the form.  Raises ``ValueError``."""
    if not isinstance(said, dict) or (said.get("version"), said.get("folder")) != (VERSION, str(folder)):
        raise ValueError("it is of another folder or version")
    files = said.get("files")
    if not isinstance(files, dict) or len(files) > MOST_FILES:
        raise ValueError("it has no files")
    rows: dict[str, Row] = {}
    for name, row in files.items():
        match row:
            case [int(size), int(changed), None | str() as own]:
                rows[name] = (size, changed, None if own is None else BuildId(own))
            case _:
                raise ValueError("a file has no size, time and build-id")
    return rows
