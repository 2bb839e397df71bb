"""What a session may do to the target."""

from __future__ import annotations

from enum import IntEnum


class Right(IntEnum):
    """What a session may do; each includes those before it."""

    OBSERVER = 1
    """Read registers, memory and threads, and wait for stops."""
    CONTROLLER = 2
    """Resume, step, write and interrupt."""
