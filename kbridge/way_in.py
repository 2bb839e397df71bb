"""What led into a guest's kgdb last, kept for a relay that comes later.

One small JSON file for each guest, beside its journal.  It counts only while the ways and their order are configured as
they were: who orders them anew wants that order.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from kbridge import small_files
from kbridge.config import BreakInWay
from kbridge.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

VERSION: Final = 1


def write(path: Path, ways: Sequence[BreakInWay], worked: BreakInWay) -> None:
    """Keep what worked of the ways as they are configured; raises ``RecordError``."""
    text = json.dumps({"version": VERSION, "ways": [way.value for way in ways], "worked": worked.value})
    try:
        small_files.replace(path, text)
    except OSError as error:
        raise RecordError(f"cannot write {path}", why=error.strerror or str(error)) from error


def read(path: Path, ways: Sequence[BreakInWay]) -> BreakInWay | None:
    """Return what worked last, None where nothing is known or other ways are configured now.

    Raises ``RecordError`` for a file that cannot be understood; the next success replaces it.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if found["version"] != VERSION or found["ways"] != [way.value for way in ways]:
            return None
        worked = BreakInWay(found["worked"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"cannot use {path}", why=str(error)) from error
    return worked if worked in ways else None
