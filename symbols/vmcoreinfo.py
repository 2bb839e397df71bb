"""VMCOREINFO: what a kernel says of itself to whoever looks at its memory after a crash.

Source: Linux, Documentation/admin-guide/kdump/vmcoreinfo.rst, kernel/crash_core.c.  Lines of text, at most a page:
``OSRELEASE=6.1.0-…``, ``BUILD-ID=`` and 40 digits, ``KERNELOFFSET=16800000`` (hexadecimal: by how much the kernel was
moved), ``SYMBOL(_stext)=`` an address as moved, ``NUMBER(phys_base)=`` a decimal number.  It needs no symbols to be
found: it is the text in memory that begins with OSRELEASE, and it names the kernel's file by the build-id.

A kernel that was there before may have left its own in memory, so this is a claim like others: ``kaslr.find`` believes
it once the build-id was read back where it leads to.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from symbols.errors import SymbolError
from symbols.kaslr import Claim
from symbols.model import BuildId
from symbols.reads import Read, Search

DATA_SYMBOL: Final = "vmcoreinfo_data"
"""A pointer to the text; ``vmcoreinfo_size`` beside it is a word with its length."""
SIZE_SYMBOL: Final = "vmcoreinfo_size"
MOST_BYTES: Final = 4096
"""VMCOREINFO_BYTES: a page."""
_FIRST: Final = b"OSRELEASE="
_OWNER: Final = b"VMCOREINFO\0"
_LINE: Final = re.compile(r"([A-Za-z0-9_-]+(?:\([A-Za-z0-9_.]+\))?)=([\x20-\x7e]*)")
_BUILD_ID: Final = re.compile(r"[0-9a-f]{16,128}")
_HEXADECIMAL: Final = re.compile(r"(?:0x)?[0-9a-f]{1,16}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}")
_WORD: Final = struct.Struct("<Q")
_PIECE: Final = 1 << 16
_STEP: Final = 1 << 20
_MOST_FOUND: Final = 16
_MOST_LOOKED_AT: Final = 256
_TEXT: Final = re.compile(rb"OSRELEASE=[\x21-\x7e]{1,64}\n(?:BUILD-ID|PAGESIZE)=")
"""How it begins; the release is at most __NEW_UTS_LEN long."""
_NO_TEXT: Final = re.compile(rb"[^\x0a\x20-\x7e]")


class VmcoreinfoError(SymbolError):
    """The bytes are no VMCOREINFO, or do not have what is looked for."""


@dataclass(frozen=True, slots=True)
class Vmcoreinfo:
    """One kernel's."""

    release: str
    build_id: BuildId | None
    """Since Linux 5.9."""
    slide: int | None
    """By how many bytes it was moved; None where it does not say."""
    values: Mapping[str, str]
    """All lines, by what stands before the equals sign."""

    def symbol(self, name: str) -> int | None:
        """Return a symbol's address as moved, if it is among those that are told."""
        text = self.values.get(f"SYMBOL({name})", "")
        return int(text, 16) if _HEXADECIMAL.fullmatch(text) else None

    def number(self, name: str) -> int | None:
        """Return a number such as ``phys_base``, if it is among those that are told."""
        text = self.values.get(f"NUMBER({name})", "")
        return int(text) if _NUMBER.fullmatch(text) else None

    def claim(self) -> Claim | None:
        """Return what it says of the kernel's place, to be verified."""
        return None if self.slide is None else Claim("VMCOREINFO", self.slide, self.build_id)


def parse(data: bytes) -> Vmcoreinfo:
    """Read the text; what follows a NUL is not of it.  Raises ``VmcoreinfoError``."""
    text = data[:MOST_BYTES].partition(b"\0")[0]
    if not text.startswith(_FIRST):
        raise VmcoreinfoError("the bytes are no VMCOREINFO: they do not begin with OSRELEASE")
    values: dict[str, str] = {}
    for line in text.decode("latin-1").split("\n"):
        match = _LINE.fullmatch(line)
        # The last line is cut off where only a part was read; others of newer kernels may be of a form unknown here.
        if match is not None:
            values.setdefault(match.group(1), match.group(2))
    build_id = values.get("BUILD-ID", "")
    offset = values.get("KERNELOFFSET", "")
    return Vmcoreinfo(
        values.get("OSRELEASE", ""),
        BuildId(build_id) if _BUILD_ID.fullmatch(build_id) and len(build_id) % 2 == 0 else None,
        int(offset, 16) if _HEXADECIMAL.fullmatch(offset) else None,
        values,
    )


def of_note(data: bytes) -> Vmcoreinfo:
    """Read it out of an ELF note, as QEMU's ``vmcoreinfo`` device and core files have it: owner, kind 0, text.

    Raises ``VmcoreinfoError``.
    """
    if len(data) < 12:
        raise VmcoreinfoError("the note is cut off")
    owner, size, _ = struct.unpack_from("<III", data)
    if data[12 : 12 + len(_OWNER)] != _OWNER or owner != len(_OWNER):
        raise VmcoreinfoError("the note is not VMCOREINFO's")
    start = 12 + len(_OWNER) + -len(_OWNER) % 4
    if start + size > len(data):
        raise VmcoreinfoError("the note is cut off")
    return parse(data[start : start + size])


def by_symbol(data_at: int, size_at: int) -> Search[Vmcoreinfo]:
    """Read it where the kernel's symbols lead, ``vmcoreinfo_data`` and ``vmcoreinfo_size`` as they are in memory.

    Raises ``VmcoreinfoError``.
    """
    return parse((yield from text_by_symbol(data_at, size_at)))


def text_by_symbol(data_at: int, size_at: int) -> Search[bytes]:
    """Read its text, unparsed, as ``by_symbol`` does.  Raises ``VmcoreinfoError``."""
    pointer, length = yield (Read(data_at, _WORD.size), Read(size_at, _WORD.size))
    if len(pointer) < _WORD.size or len(length) < _WORD.size:
        raise VmcoreinfoError("the kernel's pointer to it is not mapped")
    (size,) = _WORD.unpack(length)
    if not 0 < size <= MOST_BYTES:
        raise VmcoreinfoError(f"the kernel says that it has {size} bytes")
    (text,) = yield (Read(_WORD.unpack(pointer)[0], size),)
    return text


def texts(data: bytes) -> tuple[bytes, ...]:
    """Return those in a piece of memory, unparsed, each once: found by how they begin."""
    found: list[bytes] = []
    for match in islice(_TEXT.finditer(data), _MOST_LOOKED_AT):
        end = _NO_TEXT.search(data, match.end(), match.start() + MOST_BYTES)
        one = bytes(data[match.start() : end.start() if end else match.start() + MOST_BYTES])
        if one not in found:
            found.append(one)
            if len(found) == _MOST_FOUND:
                break
    return tuple(found)


def find(data: bytes) -> tuple[Vmcoreinfo, ...]:
    """Return those in a piece of memory that say where their kernel is, each once: found by their text."""
    found: list[Vmcoreinfo] = []
    for text in texts(data):
        one = parse(text)
        if one.slide is not None and one not in found:
            found.append(one)
    return tuple(found)


def search(start: int, size: int) -> Search[tuple[Vmcoreinfo, ...]]:
    """Find those in a range of memory, a megabyte in each batch; what is not mapped is passed over.

    The range is whatever the driver's reads mean: for all memory of a guest, a driver that reads physical addresses.
    """
    found: dict[tuple[str, int | None, BuildId | None], Vmcoreinfo] = {}
    before = b""
    for at in range(start, start + size, _STEP):
        end = min(at + _STEP, start + size)
        pieces = yield tuple(Read(one, min(_PIECE, end - one)) for one in range(at, end, _PIECE))
        # One that begins at the end of a piece is looked at with the next.
        data = before + b"".join(piece.ljust(_PIECE, b"\0") for piece in pieces)
        for one in find(data):
            found.setdefault((one.release, one.slide, one.build_id), one)
        if len(found) >= _MOST_FOUND:
            break
        before = data[-MOST_BYTES:]
    return tuple(found.values())
