"""Layouts of structures that a kernel's types (BTF) tell, kept on disk: all types take 0.2 s to read.

in          the bytes of types, and what reads a layout out of them
out         the layout: a dataclass of numbers, ``None``, tuples and mappings of those
invariant   what is kept has the types' own digest in its name, so that it is never of others; what is damaged is made
            anew (``kept_files``)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kbridge.debuginfo import cache, kept_files
from symbols.btf import Btf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from _typeshed import DataclassInstance

    _Layout = TypeVar("_Layout", bound=DataclassInstance)

_MADE: Final = 1
"""Goes up whenever a layout is read differently; other members give it another name by themselves."""


def folder() -> Path:
    """Return where layouts are kept: beside the indexes of symbols."""
    return cache.folder().with_name("layouts")


class Types:
    """A kernel's types, read when a layout is asked for that is not in the folder ``kept``."""

    def __init__(self, data: bytes, kept: Path | None = None) -> None:
        self._data = data
        self._kept = kept

    @cached_property
    def _btf(self) -> Btf:
        return Btf(self._data)

    @cached_property
    def _digest(self) -> str:
        return hashlib.blake2b(self._data, digest_size=16).hexdigest()

    def layout(self, kind: type[_Layout], read: Callable[[Btf], _Layout]) -> _Layout:
        """Return the layout of this ``kind``, as ``read`` gives it.  Raises ``BtfError``.

        Blocks: it is called in a thread.
        """
        if self._kept is None:
            return read(self._btf)
        members = " ".join(one.name for one in dataclasses.fields(kind))
        shape = hashlib.blake2b(members.encode(), digest_size=4).hexdigest()
        name = f"{kind.__name__}-{self._digest}-{shape}-{_MADE}"
        text = kept_files.kept(self._kept, name, lambda: _written(read(self._btf)))
        return kind(**{member: _value(value) for member, value in json.loads(text).items()})


def _written(layout: DataclassInstance) -> bytes:
    return json.dumps(dataclasses.asdict(layout)).encode()


def _value(value: Any) -> Any:
    """Return what JSON has no word for: its lists were tuples."""
    return tuple(map(_value, value)) if isinstance(value, list) else value
