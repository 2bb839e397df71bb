"""The journal: what of ours may stand in a stub, written down for a relay that comes after a crash.

One small JSON file for each guest, replaced atomically before the stub is told; no file means nothing to undo.
It outlives SIGKILL of the relay.  It need not outlive the host: the guests do not either.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from gdbstubs.effects import Journal
from gdbstubs.target import Breakpoint, BreakpointKind
from kbridge import small_files
from kbridge.errors import RecordError

VERSION: Final = 1


def write(path: Path, entry: Journal) -> None:
    """Replace the journal; raises ``RecordError`` when that fails (the old one is then still there)."""
    try:
        if not entry.attached:
            path.unlink(missing_ok=True)
            return
        text = json.dumps(
            {
                "version": VERSION,
                "run": entry.run,
                "breakpoints": [[one.kind.value, one.address, one.size] for one in entry.breakpoints],
            }
        )
        small_files.replace(path, text)
    except OSError as error:
        raise RecordError(f"cannot write {path}", why=error.strerror or str(error)) from error


def read(path: Path) -> Journal | None:
    """Return what a predecessor left behind, or None.

    Raises ``RecordError`` for a file that cannot be understood; the file is left alone.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot read {path}", why=str(error)) from error
    try:
        found: Any = json.loads(text)
        if found["version"] != VERSION:
            raise RecordError(
                f"{path} has version {found['version']!r}",
                todo="it was written by another kbridge: remove it",
            )
        return Journal(
            attached=True,
            run=bool(found["run"]),
            breakpoints=tuple(
                Breakpoint(BreakpointKind(kind), int(address), int(size))
                for kind, address, size in found["breakpoints"]
            ),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path} cannot be understood", why=str(error), todo="remove it once the guest's stub is clean"
        ) from error
