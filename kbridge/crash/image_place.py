"""Where the image of a crash is: a file, or in the crash's folder; and where that says that its kernel's files are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from kbridge.errors import ImageError

NAMES: Final = ("vmcore", "vmcore.zst", "vmcore.age", "vmcore.zst.age")
"""What an image is called in the folder of a crash."""
_REPORT: Final = "report.json"
_MAX_REPORT: Final = 64 << 20


def image_in(path: Path) -> Path:
    """Return the file of an image, given that or its folder.  Raises ``ImageError``."""
    if not path.is_dir():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    raise ImageError(f"{path} has no memory image", why=f"none of {', '.join(NAMES)} is in it")


def files_named_in(path: Path) -> tuple[Path | None, tuple[Path, ...]]:
    """Return the kernel's file and the folders with symbols that the report in a crash's folder names.

    Of those only what is there: the folder may come from another host.  A report that cannot be read names nothing:
    the image is opened all the same, and its kernel looked for by its build-id.
    """
    try:
        with (path / _REPORT).open("rb") as file:
            report = json.loads(file.read(_MAX_REPORT))
        vmlinux, folders = report["kernel"]["file"], report["debug_dirs"]
        there = tuple(Path(each) for each in folders if Path(each).is_dir())
        found = Path(vmlinux) if vmlinux is not None and Path(vmlinux).is_file() else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None, ()
    return found, there
