"""How a search in guest memory asks for bytes: it yields batches of ``Read`` and is sent what is there."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Read:
    """``length`` bytes of the guest's virtual memory at ``address``."""

    address: int
    length: int


Search: TypeAlias = Generator[tuple[Read, ...], tuple[bytes, ...], _Result]
"""A search: the bytes of each ``Read`` are sent in the order asked, empty where nothing is mapped."""
