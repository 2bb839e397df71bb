"""Where the image of a crash is: a file, or in the crash's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kbridge.errors import ImageError

NAMES: Final = ("vmcore", "vmcore.zst", "vmcore.age", "vmcore.zst.age")
"""What an image is called in the folder of a crash."""


def image_in(path: Path) -> Path:
    """Return the file of an image, given that or its folder.  Raises ``ImageError``."""
    if not path.is_dir():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    raise ImageError(f"{path} has no memory image", why=f"none of {', '.join(NAMES)} is in it")
