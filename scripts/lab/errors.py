"""What may go wrong here, said to the person who typed the command."""

from __future__ import annotations


class LabError(Exception):
    """A guest cannot be built or started; the message says why and what to do. Nothing half-made stays."""
