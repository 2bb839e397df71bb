"""Made-up machines in kdump's compressed format, flattened or not; after makedumpfile's diskdump_mod.h."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from random import Random

import zstandard

from kbridge.crash import elf_core
from kbridge.crash.elf_core import Note

PAGE = 4096
PACKERS = {
    0: lambda page: page,
    1: zlib.compress,
    0x20: zstandard.ZstdCompressor().compress,
}


def kdump(
    there: Mapping[int, bytes],
    missing: Iterable[int] = (),
    notes: Sequence[Note] = (),
    *,
    packed: int = 1,
    version: int = 6,
    machine: bytes = b"x86_64",
    text: bytes = b"",
) -> bytes:
    """A file with these pages, by number; ``missing`` are the machine's, but were left out of the file."""
    machines = {*there, *missing}
    pages = max(machines) + 1
    map_blocks = -(-pages // (8 * PAGE))
    maps = bytearray(2 * map_blocks * PAGE)
    for number in machines:
        maps[number // 8] |= 1 << number % 8
    for number in there:
        maps[map_blocks * PAGE + number // 8] |= 1 << number % 8
    said = b"".join(map(elf_core.write_note, notes))
    second_blocks = 1 + -(-(len(said) + len(text)) // PAGE)
    notes_at = 2 * PAGE
    second = struct.pack(
        "<QIIQQQQQQQQQQQ", 0, 0, 0, 0, 0, notes_at + len(said) if text else 0, len(text),
        notes_at if said else 0, len(said), 0, 0, 0, 0, pages,
    )  # fmt: skip
    header = struct.pack(
        "<8sI260x65s87x9I", b"KDUMP   ", version, machine, packed, PAGE, second_blocks, 2 * map_blocks,
        min(pages, 0xFFFF_FFFF), 0, 0, 0, 1,
    )  # fmt: skip
    head = header.ljust(PAGE, b"\0") + (second.ljust(PAGE, b"\0") + said + text).ljust(
        second_blocks * PAGE, b"\0"
    )
    entries, data = b"", b""
    at = len(head) + len(maps) + 24 * len(there)
    zeroes: bytes | None = None
    for number in sorted(there):
        page = there[number]
        small = PACKERS[packed](page)
        flags = packed if len(small) < PAGE else 0
        entry = struct.pack("<QIIQ", at + len(data), len(small if flags else page), flags, 0)
        if not any(page):
            # Pages of zeroes share an entry.
            if zeroes is not None:
                entries += zeroes
                continue
            zeroes = entry
        entries += entry
        data += small if flags else page
    return head + bytes(maps) + entries + data


def flat(data: bytes, random: Random) -> bytes:
    """The same, flattened: pieces in any order, some of what a later one puts right."""
    cuts = sorted({0, len(data), *(random.randrange(len(data)) for _ in range(12))})
    pieces = [(start, data[start:end]) for start, end in pairwise(cuts)]
    random.shuffle(pieces)
    wrong = random.randrange(len(data) - 10)
    pieces.insert(0, (wrong, b"wrong here"[: len(data) - wrong]))
    whole = struct.pack(">16sqq", b"makedumpfile\0\0\0\0", 1, 1).ljust(PAGE, b"\0")
    whole += b"".join(struct.pack(">qq", start, len(piece)) + piece for start, piece in pieces)
    return whole + struct.pack(">qq", -1, -1)
