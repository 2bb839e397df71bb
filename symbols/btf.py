"""The layout of a kernel's structures out of its BTF: ``struct module``, and where its members are.

Source: Linux, Documentation/bpf/btf.rst.  Numbers are little-endian; a type's identity is its place, from 1 on (0 is
``void``).  A header of 24 bytes, then types, then their names, each ended by a NUL.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from symbols.errors import SymbolError

MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_MEMBER: Final = struct.Struct("<III")
_ARRAY: Final = struct.Struct("<III")
_INT, _POINTER, _ARRAY_KIND, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG = 8, 9, 10, 11, 18
_MODIFIERS: Final = frozenset((_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG))
_ENUM64: Final = 19
_FLOAT: Final = 16
_EXTRA: Final = {_INT: 4, _ARRAY_KIND: 12, 14: 4, 17: 4}
"""Bytes that follow a type, by kind: integers, arrays, variables, declaration tags."""
_EACH: Final = {_STRUCT: 12, _UNION: 12, _ENUM: 8, 13: 8, 15: 12, _ENUM64: 12}
"""Bytes that follow for each of its elements: members, values, parameters, variables of a section."""
_LAST_KIND: Final = 19
MOST_BYTES: Final = 64 << 20
MOST_TYPES: Final = 1 << 21
_DEEPEST: Final = 32
_MOST_MEMBERS: Final = 1 << 15
"""Of a structure, those of structures without a name among them; the kernel's largest have some hundred."""
_LONGEST_NAME: Final = 512
"""KSYM_NAME_LEN of include/linux/kallsyms.h, which is BTF's limit too."""
_MOST_SAME_NAMES: Final = 64
"""A name is there once, or a few times where it ends another."""
_BEGINNING: Final = struct.pack("<HBBI", MAGIC, 1, 0, _HEADER.size)
_MOST_BEGINNINGS: Final = 8
"""How many places are looked at that begin as BTF does."""
_POINTER_BYTES: Final = 8


class BtfError(SymbolError):
    """The bytes are no BTF, are damaged, or do not have what is looked for."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a structure: where it begins, in bits from the structure's beginning, and its type."""

    bits: int
    type: int
    width: int = 0
    """Bits of a bit-field; 0 for what is none."""


class Btf:
    """The types of one kernel.  Raises ``BtfError`` for what is none."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise BtfError(f"BTF of {len(data)} bytes is cut off")
        if len(data) > MOST_BYTES:
            raise BtfError(f"BTF of {len(data)} bytes is larger than any kernel's")
        magic, version, _, header, type_at, type_size, name_at, name_size = _HEADER.unpack_from(data)
        if magic != MAGIC or version != 1:
            raise BtfError("the bytes are no BTF of version 1")
        self._names_at = header + name_at
        self._names_end = self._names_at + name_size
        self._at = header + type_at
        self._end = self._at + type_size
        if header < _HEADER.size or max(self._end, self._names_end) > len(data):
            raise BtfError("the BTF is cut off")
        self._data = data
        self._places = self._index()

    def _index(self) -> list[int]:
        """Return where each type begins."""
        data, at, end = self._data, self._at, self._end
        unpack, extra, each = _TYPE.unpack_from, _EXTRA.get, _EACH.get
        places = [0]
        append = places.append
        while at + _TYPE.size <= end and len(places) <= MOST_TYPES:
            append(at)
            info = unpack(data, at)[1]
            kind = info >> 24 & 31
            if kind > _LAST_KIND:
                raise BtfError(f"type {len(places) - 1} is of kind {kind}, which is unknown")
            at += 12 + extra(kind, 0) + (info & 0xFFFF) * each(kind, 0)
        if len(places) > MOST_TYPES:
            raise BtfError(f"more than {MOST_TYPES} types are more than any kernel's")
        if at != end:
            raise BtfError("the types of the BTF are cut off")
        return places

    def _type(self, number: int) -> tuple[int, int, int, int, int]:
        """Return kind, elements, kind flag, size or type, and where what follows begins."""
        if not 0 < number < len(self._places):
            raise BtfError(f"there is no type {number}")
        at = self._places[number]
        _, info, size = _TYPE.unpack_from(self._data, at)
        return info >> 24 & 31, info & 0xFFFF, info >> 31, size, at + _TYPE.size

    def _name(self, offset: int) -> str:
        at = self._names_at + offset
        end = self._data.find(b"\0", at, min(at + _LONGEST_NAME, self._names_end))
        if at >= self._names_end or end < 0:
            raise BtfError(f"a name at {offset} is cut off, or longer than any")
        return self._data[at:end].decode("utf-8", "replace")

    def struct(self, name: str) -> int:
        """Return the type of the structure of this name that has members."""
        wanted = b"\0" + name.encode() + b"\0"
        offsets: set[int] = set()
        at = self._data.find(wanted, self._names_at, self._names_end)
        while at >= 0:
            if len(offsets) == _MOST_SAME_NAMES:
                raise BtfError(f"the name {name} is there more often than in any kernel")
            offsets.add(at + 1 - self._names_at)
            at = self._data.find(wanted, at + 1, self._names_end)
        data, unpack = self._data, _TYPE.unpack_from
        for number, place in enumerate(self._places):
            if number:
                offset, info, _ = unpack(data, place)
                if offset in offsets and info >> 24 & 31 == _STRUCT and info & 0xFFFF:
                    return number
        raise BtfError(f"this kernel has no struct {name}")

    def members(self, number: int) -> dict[str, Member]:
        """Return the members of a structure or union, those of its members without a name among them."""
        found: dict[str, Member] = {}
        self._members(number, 0, found, 0, _MOST_MEMBERS)
        return found

    def _members(self, number: int, base: int, found: dict[str, Member], depth: int, left: int) -> int:
        """Add the members of a structure to ``found``; ``left`` is how many may come, returned is what is left then.

        Depth alone is no bound: structures that have each other's twice grow as powers of two.
        """
        if depth > _DEEPEST:
            raise BtfError("structures in structures without end")
        kind, count, flag, _, at = self._type(self._bare(number))
        if kind not in (_STRUCT, _UNION):
            raise BtfError(f"type {number} is no structure")
        left -= count
        if left < 0:
            raise BtfError(f"a structure with more than {_MOST_MEMBERS} members")
        for place in range(at, at + count * _MEMBER.size, _MEMBER.size):
            name, type_, offset = _MEMBER.unpack_from(self._data, place)
            # With the flag the offset's top byte is a bit-field's size.
            bits = base + (offset & 0xFFFFFF if flag else offset)
            text = self._name(name)
            if text:
                found.setdefault(text, Member(bits, type_, offset >> 24 if flag else 0))
            else:
                left = self._members(type_, bits, found, depth + 1, left)
        return left

    def _bare(self, number: int) -> int:
        """Return a type without ``const``, ``typedef`` and the like."""
        for _ in range(_DEEPEST):
            kind, _, _, inner, _ = self._type(number)
            if kind not in _MODIFIERS:
                return number
            number = inner
        raise BtfError("names of types without end")

    def member(self, number: int, path: str) -> Member:
        """Return the member that a path such as ``core_layout.base`` leads to from a structure."""
        bits = width = 0
        for name in path.split("."):
            found = self.members(number).get(name)
            if found is None:
                raise BtfError(f"this kernel's structure has no member {name}")
            bits, number, width = bits + found.bits, found.type, found.width
        return Member(bits, number, width)

    def offset(self, number: int, path: str) -> int:
        """Return where a member begins, in bytes.  Raises ``BtfError`` for a bit-field too."""
        member = self.member(number, path)
        if member.width or member.bits % 8:
            raise BtfError(f"{path} is a bit-field")
        return member.bits // 8

    def bits(self, number: int, name: str) -> tuple[int, int]:
        """Return where a bit-field begins, and how many bits it has."""
        member = self.members(number).get(name)
        if member is None or not member.width:
            raise BtfError(f"this kernel's structure has no bit-field {name}")
        return member.bits, member.width

    def has(self, number: int, path: str) -> bool:
        """Return whether a structure has such a member."""
        try:
            self.member(number, path)
        except BtfError:
            return False
        return True

    def size(self, number: int) -> int:
        """Return the size of a type in bytes."""
        count = 1
        for _ in range(_DEEPEST):
            number = self._bare(number)
            kind, _, _, size, at = self._type(number)
            match kind:
                case 1 | 4 | 5 | 6 | 16 | 19:
                    return count * size
                case 2:
                    return count * _POINTER_BYTES
                case 3:
                    number, _, elements = _ARRAY.unpack_from(self._data, at)
                    count *= elements
                case _:
                    raise BtfError(f"type {number} has no size")
        raise BtfError("arrays of arrays without end")

    def element(self, number: int) -> int:
        """Return the type of an array's elements."""
        kind, _, _, _, at = self._type(self._bare(number))
        if kind != _ARRAY_KIND:
            raise BtfError(f"type {number} is no array")
        inner: int = _ARRAY.unpack_from(self._data, at)[0]
        return inner


def find(data: bytes) -> Btf:
    """Find a kernel's types in a piece of its memory, by how they begin.  Raises ``BtfError``.

    For a kernel whose symbols do not say where they are: one without CONFIG_KALLSYMS_ALL names its functions only.
    """
    at = data.find(_BEGINNING)
    for _ in range(_MOST_BEGINNINGS):
        if at < 0:
            break
        size = _written_size(data[at : at + _HEADER.size])
        if size is not None and at + size <= len(data):
            try:
                return Btf(data[at : at + size])
            except BtfError:
                # It only begins like one: the next may be it.
                pass
        at = data.find(_BEGINNING, at + 1)
    raise BtfError("there is no BTF in these bytes")


def _written_size(header: bytes) -> int | None:
    """Return the size of BTF as pahole writes it, names right behind types; None for what is none."""
    if len(header) < _HEADER.size:
        return None
    _, _, _, size, type_at, type_size, name_at, name_size = _HEADER.unpack(header)
    whole: int = size + type_size + name_size
    return whole if type_at == 0 and name_at == type_size and type_size and whole <= MOST_BYTES else None
