"""Small files of state that are replaced as a whole: whoever reads one finds the old text or the new."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Replace a file's text; raises ``OSError``, and then the old one is still there.

    The file is its owner's only.  It outlives this process, however that ends; it need not outlive the host.
    """
    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
    new.replace(path)
