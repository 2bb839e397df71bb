"""gdb's own index of a kernel's DWARF, kept on disk: with it gdb has read the symbols in a third of the time.

in          a kernel's build-id; the folder in which one gdb looks for indexes and leaves those that it makes
out         in that folder the index that is kept; kept, after that gdb, the one that it made
invariant   gdb is given no index that is not what it once wrote, nor another version's: a digest of it and of the
            program is in its name, because gdb believes what it maps.  ``MOST_BYTES`` are kept at most, the least
            recently used go first

Source: GDB manual, "Automatic symbol index cache".
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kbridge.debuginfo import cache
from kbridge.debuginfo.mapping import mapped

if TYPE_CHECKING:
    from symbols.model import BuildId

MOST_BYTES: Final = 1 << 30
"""A kernel's has 7 MB (gdb 18) or 37 MB (gdb 13)."""
MOST_FILE_BYTES: Final = MOST_BYTES // 4
SUFFIX: Final = ".gdb-index"
"""What gdb calls them, behind the build-id."""
_DIGITS: Final = 32


def folder() -> Path:
    """Return where they are: beside the indexes of symbols."""
    return cache.folder().with_name("gdb")


class GdbIndex:
    """The index of one kernel for one gdb that is to run; the module's text says how.

    ``kept``: the folder for all; ``session``: one that this gdb alone uses.  What cannot be read or kept is as if it
    were not there: gdb does without.  Everything blocks.
    """

    def __init__(self, kept: Path, program: Path, build_id: BuildId, session: Path) -> None:
        self._kept = kept
        self._begins = f"{build_id}-{_identity(program)}-"
        self._session = session
        self._file = session / f"{build_id}{SUFFIX}"

    @property
    def arguments(self) -> list[str]:
        """Arguments for gdb.  One before 12 says that it does not know them, and goes on."""
        commands = (f"set index-cache directory {self._session}", "set index-cache enabled on")
        return [argument for each in commands for argument in ("-iex", each)]

    def lend(self) -> None:
        """Put the index that is kept where gdb looks for it."""
        for path in self._kept.glob(f"{self._begins}*{SUFFIX}"):
            try:
                if path.stem == self._begins + _digest(path):
                    os.utime(path)
                    self._file.symlink_to(path)
                    return
                path.unlink(missing_ok=True)
            except OSError:
                # It went meanwhile.
                continue

    def keep(self) -> None:
        """Keep the index that gdb made, now that it has ended: gdb renames one when it is whole."""
        try:
            if self._file.is_symlink() or not 0 < self._file.stat().st_size <= MOST_FILE_BYTES:
                return
            place = self._kept / f"{self._begins}{_digest(self._file)}{SUFFIX}"
            with mapped(self._file) as contents:
                cache.write(place, (contents[:],))
            self._prune(place)
        except OSError:
            # gdb made none, or there is no room: the next one makes it again.
            return

    def _prune(self, spared: Path) -> None:
        # What a killed writer left is among them.
        files = [(one.stat(), one) for one in self._kept.iterdir() if one != spared]
        total = spared.stat().st_size + sum(status.st_size for status, _ in files)
        for status, one in sorted(files, key=lambda item: item[0].st_mtime):
            if total <= MOST_BYTES:
                break
            one.unlink(missing_ok=True)
            total -= status.st_size


def _identity(program: Path) -> str:
    """Tell one version of a program from another."""
    real = program.resolve()
    status = real.stat()
    said = f"{real} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(os.fsencode(said)).hexdigest()[:12]


def _digest(path: Path) -> str:
    # SHA-256 is what processors have instructions for: 37 MB in 30 ms.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
