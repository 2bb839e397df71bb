"""Reads a secret that a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kbridge.errors import KbridgeError

MAX_SECRET: Final = 4096


def secret_of(path: str) -> str:
    """Return the first line of a file; raises ``KbridgeError`` where it cannot be read."""
    try:
        data = first_bytes(path, MAX_SECRET)
    except OSError as error:
        raise KbridgeError(f"cannot read the secret in {path}", why=error.strerror or str(error)) from error
    return data.partition(b"\n")[0].rstrip(b"\r").decode("utf-8", "surrogateescape")


def first_bytes(path: str, most: int) -> bytes:
    """Return at most so many bytes of a file's beginning; raises ``OSError``."""
    with Path(path).open("rb") as file:
        return file.read(most)
