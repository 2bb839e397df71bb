"""ELF core files of whole machines, as hypervisors write them: where memory is in them, and their notes.

A header, program headers (``PT_LOAD`` for each range of physical memory, one ``PT_NOTE``), notes, then the memory.

Source: System V ABI, chapter 5; QEMU, dump/dump.c (``dump_begin``); Linux, fs/proc/vmcore.c.  64-bit little-endian
files. All of it is another's word: what is counted has a limit, what is out of the file is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from symbols import vmcoreinfo

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM: Final = struct.Struct("<IIQQQQQQ")
_NOTE: Final = struct.Struct("<III")
_IDENTITY: Final = b"\x7fELF\x02\x01\x01"
_CORE: Final = 4
MACHINES: Final = (62, 3)
"""x86-64, and what QEMU calls one that is not in long mode; its notes tell 64-bit registers all the same."""
PT_LOAD: Final = 1
_PT_NOTE: Final = 4
MOST_PROGRAMS: Final = 4096
"""A machine has a handful of ranges of memory, with memory that was added later some hundreds."""
MOST_HEAD_BYTES: Final = 8 << 20
"""Of headers and notes; a processor's have about 800."""
MOST_NOTES: Final = 1 << 14
HEADER_BYTES: Final = _HEADER.size
PAGE_BYTES: Final = 4096
VMCOREINFO: Final = b"VMCOREINFO"
VMCOREINFO_ROOM: Final = 12 + 12 + vmcoreinfo.MOST_BYTES


class CoreError(ValueError):
    """The bytes are no core file of a machine that can be read."""


@dataclass(frozen=True, slots=True)
class Load:
    """A range of physical memory and where its bytes are."""

    physical: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Note:
    """A note; ``owner`` without its final zero."""

    owner: bytes
    kind: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the memory."""

    machine: int
    programs: tuple[tuple[int, ...], ...]
    """The program headers: type, flags, offset, virtual and physical address, sizes in file and memory, alignment."""
    notes: tuple[Note, ...]

    @property
    def loads(self) -> tuple[Load, ...]:
        """The memory that is in the file, by physical address."""
        found = (Load(one[4], one[5], one[2]) for one in self.programs if one[0] == PT_LOAD and one[5])
        return tuple(sorted(found, key=lambda one: one.physical))

    @property
    def memory_at(self) -> int:
        """Where the memory begins in the file."""
        return min(one.offset for one in self.loads)

    @property
    def end(self) -> int:
        """Where it ends."""
        return max(one.offset + one.size for one in self.loads)

    def vmcoreinfo(self) -> bytes | None:
        """Return the text of the VMCOREINFO that is among the notes."""
        return next((one.data for one in self.notes if one.owner == VMCOREINFO and one.data), None)


def read_head(size: int, read: Callable[[int, int], bytes]) -> Head:
    """Read what stands before the memory in a file of ``size`` bytes.  Raises ``CoreError``."""
    header = _exactly(read, 0, HEADER_BYTES)
    programs, machine = _programs(header, lambda at, length: _exactly(read, at, length))
    if not any(one[0] == PT_LOAD and one[5] for one in programs):
        raise CoreError("it has no memory in it")
    for kind, _, offset, _, physical, length, _, _ in programs:
        if kind in (PT_LOAD, _PT_NOTE) and (offset + length > size or physical + length > 1 << 64):
            raise CoreError("a part of it reaches past its end: it is cut off")
    notes: list[Note] = []
    for kind, _, offset, _, _, length, _, _ in programs:
        if kind == _PT_NOTE:
            if length > MOST_HEAD_BYTES:
                raise CoreError(f"its notes have {length} bytes")
            notes += read_notes(_exactly(read, offset, length))
            if len(notes) > MOST_NOTES:
                raise CoreError(f"it has more than {MOST_NOTES} notes")
    return Head(machine, programs, tuple(notes))


def head_bytes(begun: bytes) -> int | None:
    """Return how many bytes of a file stand before its memory, given how it begins; None where more of it is needed.

    Raises ``CoreError``.
    """
    if len(begun) < HEADER_BYTES:
        return None
    _, _, _, _, _, at, _, _, _, size, count, *_ = _HEADER.unpack_from(begun)
    if at + size * count > len(begun) and at + size * count <= MOST_HEAD_BYTES:
        _check(begun)
        return None
    programs, _ = _programs(begun, lambda offset, length: begun[offset : offset + length])
    places = [one[2] for one in programs if one[0] == PT_LOAD and one[5]]
    if not places:
        raise CoreError("it has no memory in it")
    first = min(places)
    if first > MOST_HEAD_BYTES:
        raise CoreError(f"{first} bytes stand before its memory")
    return first


def _exactly(read: Callable[[int, int], bytes], offset: int, length: int) -> bytes:
    data = read(offset, length)
    if len(data) < length:
        raise CoreError("it is cut off in its headers")
    return data


def _check(header: bytes) -> tuple[int, int, int, int]:
    """Return where the program headers are, how large, how many, and for which machine."""
    identity, kind, machine, _, _, at, _, _, _, size, count, *_ = _HEADER.unpack_from(header)
    if not identity.startswith(_IDENTITY):
        raise CoreError("it is no 64-bit little-endian ELF file")
    if kind != _CORE:
        raise CoreError("it is an ELF file, but no core file")
    if size != _PROGRAM.size or not 0 < count <= MOST_PROGRAMS or at + size * count > MOST_HEAD_BYTES:
        raise CoreError(f"it has {count} program headers of {size} bytes at {at}")
    return at, size, count, machine


def _programs(header: bytes, read: Callable[[int, int], bytes]) -> tuple[tuple[tuple[int, ...], ...], int]:
    at, size, count, machine = _check(header)
    return tuple(_PROGRAM.iter_unpack(read(at, size * count))), machine


def read_notes(data: bytes) -> Iterator[Note]:
    """Read notes that follow each other, each part padded to four bytes; one that is cut off ends them."""
    at = 0
    while at + _NOTE.size <= len(data):
        owner_size, size, kind = _NOTE.unpack_from(data, at)
        at += _NOTE.size
        contents = at + _padded(owner_size)
        end = contents + size
        if end > len(data):
            return
        yield Note(data[at : at + owner_size].rstrip(b"\0"), kind, data[contents:end])
        at = contents + _padded(size)


def write_note(note: Note) -> bytes:
    """Return a note as it stands in a file."""
    owner = note.owner + b"\0"
    return b"".join(
        (
            _NOTE.pack(len(owner), len(note.data), note.kind),
            owner.ljust(_padded(len(owner)), b"\0"),
            note.data.ljust(_padded(len(note.data)), b"\0"),
        )
    )


def _padded(size: int) -> int:
    return size + 3 & ~3


@dataclass(frozen=True, slots=True)
class Rewriting:
    """A head written anew: with room for VMCOREINFO, and memory that begins at a page."""

    head: Head
    size: int
    """Bytes before the memory, whole pages: the same with VMCOREINFO and without."""

    def bytes_with(self, text: bytes | None) -> bytes:
        """Return the new head, with this VMCOREINFO among the notes.  Raises ``CoreError`` where it has no room."""
        notes = [write_note(one) for one in self.head.notes]
        if text is not None:
            notes.append(write_note(Note(VMCOREINFO, 0, text)))
        joined = b"".join(notes)
        loads = [one for one in self.head.programs if one[0] == PT_LOAD]
        notes_at = HEADER_BYTES + _PROGRAM.size * (1 + len(loads))
        shift = self.size - self.head.memory_at
        programs = [(_PT_NOTE, 0, notes_at, 0, 0, len(joined), len(joined), 0)] + [
            (kind, flags, offset + shift if length else offset, virtual, physical, length, total, alignment)
            for kind, flags, offset, virtual, physical, length, total, alignment in loads
        ]
        identity = _IDENTITY.ljust(16, b"\0")
        header = _HEADER.pack(
            *(identity, _CORE, self.head.machine, 1, 0, HEADER_BYTES, 0, 0),
            *(HEADER_BYTES, _PROGRAM.size, len(programs), 0, 0, 0),
        )
        whole = b"".join((header, *(_PROGRAM.pack(*one) for one in programs), joined))
        if len(whole) > self.size:
            raise CoreError(f"VMCOREINFO of {len(text or b'')} bytes is larger than any kernel's")
        return whole.ljust(self.size, b"\0")


def rewrite(head: Head) -> Rewriting:
    """Plan a head of which the notes are known."""
    notes = sum(len(write_note(one)) for one in head.notes)
    wanted = HEADER_BYTES + _PROGRAM.size * len(head.programs) + notes + VMCOREINFO_ROOM
    return Rewriting(head, -(-wanted // PAGE_BYTES) * PAGE_BYTES)
