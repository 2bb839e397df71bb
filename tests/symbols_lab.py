"""Made-up kernels in memory, small: an image of bytes at addresses, and a driver for searches in it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import TypeVar

from symbols.reads import Search

_Result = TypeVar("_Result")
MOST_READS = 100_000


class Image:
    """Memory in pieces; what is in none of them is not mapped."""

    def __init__(self, pieces: Mapping[int, bytes] | None = None) -> None:
        self.pieces = dict(pieces or {})
        self.reads = 0
        self.batches = 0
        self.bytes_read = 0

    def read(self, address: int, length: int) -> bytes:
        """What is mapped from the address on; nothing where it is not."""
        for start, data in self.pieces.items():
            if start <= address < start + len(data):
                return data[address - start : address - start + length]
        return b""

    def run(self, search: Search[_Result]) -> _Result:
        try:
            batch = next(search)
            while True:
                self.batches += 1
                self.reads += len(batch)
                self.bytes_read += sum(one.length for one in batch)
                assert self.reads < MOST_READS, "a search without end"
                batch = search.send(tuple(self.read(one.address, one.length) for one in batch))
        except StopIteration as done:
            result: _Result = done.value
            return result


def note(owner: bytes, kind: int, contents: bytes) -> bytes:
    """An ELF note."""
    padded = owner + bytes(-len(owner) % 4) + contents + bytes(-len(contents) % 4)
    return struct.pack("<III", len(owner), len(contents), kind) + padded


# -- BTF ----------------------------------------------------------------------------------------------------------


class Types:
    """BTF that is being written; types are numbered from 1."""

    def __init__(self) -> None:
        self._names = b"\0"
        self._types = b""
        self._count = 0

    def _name(self, name: str) -> int:
        if not name:
            return 0
        at = len(self._names)
        self._names += name.encode() + b"\0"
        return at

    def _add(self, name: str, kind: int, count: int, size: int, more: bytes = b"", flag: int = 0) -> int:
        self._types += struct.pack("<III", self._name(name), kind << 24 | count | flag << 31, size) + more
        self._count += 1
        return self._count

    def integer(self, name: str, size: int) -> int:
        return self._add(name, 1, 0, size, struct.pack("<I", size * 8))

    def pointer(self, to: int = 0) -> int:
        return self._add("", 2, 0, to)

    def array(self, element: int, count: int) -> int:
        return self._add("", 3, 0, 0, struct.pack("<III", element, 1, count))

    def struct(self, name: str, size: int, members: Iterable[tuple[str, int, int]], kind: int = 4) -> int:
        """Members: name, type, byte offset."""
        listed = [struct.pack("<III", self._name(one), type_, offset * 8) for one, type_, offset in members]
        return self._add(name, kind, len(listed), size, b"".join(listed))

    def bits(self, name: str, size: int, members: Iterable[tuple[str, int, int, int]]) -> int:
        """Bit-fields: name, type, first bit, width (0: none)."""
        listed = [
            struct.pack("<III", self._name(one), type_, width << 24 | first)
            for one, type_, first, width in members
        ]
        return self._add(name, 4, len(listed), size, b"".join(listed), flag=1)

    def modifier(self, kind: int, to: int, name: str = "") -> int:
        return self._add(name, kind, 0, to)

    def data(self) -> bytes:
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self._types), len(self._types), len(self._names)
        )
        return header + self._types + self._names
