"""A kernel's own table of symbols, out of guest memory: names for everything when nobody has a file.

Source: Linux, kernel/kallsyms.c and scripts/kallsyms.c.  A name is stored as a length and that many tokens, each of
which stands for some characters; the first character is the symbol's type as ``nm`` shows it.  The tables, each aligned
to 8 bytes, numbers little-endian:

    to 6.3      offsets i32[n] · relative base u64 · n u32 · names · markers u32[n / 256] · (sequence u8[3 n]) ·
                tokens (256 strings, each ended by a NUL) · their offsets u16[256]
    since 6.4   n · names · markers · tokens · their offsets · offsets · relative base · sequence

Which it is differs within one stable series too, so they are found by what is in them: the tokens of the digits stand
in their order, a marker is where each 256th name begins.  Where per-CPU symbols are absolute, an offset of 0 or more is
an address, and one below it counts from the base: base - 1 - offset.

The bytes are the guest's, who may mean harm: how much is tried, walked and spelled out is bounded.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from symbols.errors import SymbolError
from symbols.reads import Read, Search

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIGITS: Final = b"\0" + b"".join(b"%d\0" % digit for digit in range(10))
_FIRST_DIGIT: Final = 0x30
_TOKENS: Final = 256
_LONGEST_TOKEN: Final = 64
_EACH_MARKER: Final = 256
_FEWEST: Final = 1000
_MOST: Final = 1_000_000
_LONGEST_NAME: Final = 1024
_MOST_TEXT: Final = 64 << 20
"""Characters of all names together: a distribution's kernel has 2 million."""
_MOST_DIGITS: Final = 256
"""How many places with digits in their order are looked at."""
_MOST_TOKEN_TABLES: Final = 4
"""How many tables of tokens: a kernel has one."""
_FARTHEST_NAMES: Final = 16 << 20
"""How far before the tokens the names may begin."""
_EACH_LOOK: Final = 16
"""What looking at a place for names costs, as so many names passed over."""
_MOST_WALKED: Final = 2 * _MOST
"""How many names are passed over in looking for the table: those of the table itself, and some of what is none."""
MOST_TRIES: Final = 8
"""How often the bytes read so far are decoded in vain before the search is given up."""
_TYPES: Final = frozenset(b"ABCDGINRSTUVWabcdginrstuvw?-")
_KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
_WORD: Final = (1 << 64) - 1
STEP: Final = 1 << 20
_PIECE: Final = 1 << 16
FARTHEST: Final = 64 << 20
"""How far behind the exception handlers the tables may be: the code and the constants before them."""
_ALIGNMENT: Final = 1 << 21


class KallsymsError(SymbolError):
    """There is no table of symbols in these bytes, or it is damaged."""


@dataclass(frozen=True, slots=True)
class Kallsyms:
    """The symbols of a running kernel, by address; addresses as they are in memory, moved by KASLR.

    The three run in parallel.  ``types`` are ``nm``'s letters: ``T`` and ``t`` code, ``A`` absolute, which is where
    per-CPU variables are too (offsets into each processor's area).
    """

    addresses: tuple[int, ...]
    types: bytes
    names: tuple[str, ...]

    def find(self, *names: str) -> dict[str, int]:
        """Return the addresses of symbols; of several of one name the first."""
        wanted = set(names)
        found: dict[str, int] = {}
        for name, address in zip(self.names, self.addresses, strict=True):
            if name in wanted:
                found.setdefault(name, address)
        return found

    def moved(self, distance: int) -> Kallsyms:
        """Return the table as it is for a kernel ``distance`` bytes further on; what is absolute stays."""
        return Kallsyms(
            tuple([one + distance & _WORD if one >= _KERNEL_MAP else one for one in self.addresses]),
            self.types,
            self.names,
        )


def first_place(handler: int) -> int:
    """Return where to begin to read, given where an exception's handler is: the constants are behind the code."""
    return handler & -_ALIGNMENT


def more(at: int) -> Search[bytes]:
    """Read the next megabyte of the kernel, or up to where it ends."""
    pieces = yield tuple(Read(place, _PIECE) for place in range(at, at + STEP, _PIECE))
    data = b""
    for piece in pieces:
        data += piece
        if len(piece) < _PIECE:
            break
    return data


def has_tokens(data: bytes | bytearray) -> bool:
    """Tell whether the end of what was read may have the table, so that ``decode`` is worth its time."""
    return data.find(_DIGITS, max(0, len(data) - 3 * STEP)) >= 0


def search(handler: int) -> Search[Kallsyms]:
    """Find the table in memory, given where an exception's handler is.  Raises ``KallsymsError``."""
    start = first_place(handler)
    data = bytearray()
    tries = 0
    while len(data) < FARTHEST:
        piece = yield from more(start + len(data))
        data += piece
        ended = len(piece) < STEP
        # What belongs to the table may end a little after the tokens.
        if ended or has_tokens(data):
            try:
                return decode(bytes(data))
            except KallsymsError:
                tries += 1
                if ended or tries == MOST_TRIES:
                    raise
    raise KallsymsError(f"no table of symbols within {FARTHEST >> 20} MB behind the exception handlers")


def decode(data: bytes) -> Kallsyms:
    """Find and decode the table in a piece of the kernel's memory.  Raises ``KallsymsError``."""
    left = _MOST_WALKED
    for tokens, start, end in _token_tables(data):
        for names in _name_tables(data, start):
            found, walked = _starts(data, tokens, names, min(left, names.count))
            left -= walked + _EACH_LOOK
            if left <= 0:
                raise KallsymsError("too much in these bytes looks like a table of symbols and is none")
            if found is not None:
                _check_text(data[names.at : found[-1]], tokens)
                addresses = _addresses(data, names, end)
                if addresses is not None:
                    return _table(data, tokens, found, addresses)
    raise KallsymsError("there is no table of symbols in these bytes")


def _token_tables(data: bytes) -> Iterator[tuple[list[bytes], int, int]]:
    """Find tokens: what they are, where they begin, and where their offsets end."""
    digits = data.find(_DIGITS)
    looked = tables = 0
    while digits >= 0 and looked < _MOST_DIGITS and tables < _MOST_TOKEN_TABLES:
        looked += 1
        found = _tokens_round(data, digits + 1)
        if found is not None:
            tables += 1
            yield found
        digits = data.find(_DIGITS, digits + 1)


def _tokens_round(data: bytes, digit: int) -> tuple[list[bytes], int, int] | None:
    """Read the tokens round that of ``0``, and see whether the offsets behind them are theirs."""
    start = digit
    for _ in range(_FIRST_DIGIT):
        before = data.rfind(b"\0", max(0, start - 1 - _LONGEST_TOKEN), start - 1)
        if before < 0 or before == start - 1:
            return None
        start = before + 1
    tokens: list[bytes] = []
    at = start
    for _ in range(_TOKENS):
        end = data.find(b"\0", at, at + _LONGEST_TOKEN)
        if end <= at:
            return None
        tokens.append(data[at:end])
        at = end + 1
    place = _aligned(at)
    offsets = data[place : place + 2 * _TOKENS]
    wanted = array("H")
    at = 0
    for token in tokens:
        wanted.append(at & 0xFFFF)
        at += len(token) + 1
    return (tokens, start, place + 2 * _TOKENS) if offsets == wanted.tobytes() else None


def _aligned(at: int) -> int:
    return at + 7 & ~7


@dataclass(frozen=True, slots=True)
class _Names:
    """Where a table of names may be, by its number of names and its markers."""

    count: int
    at: int
    markers: int


def _name_tables(data: bytes, before: int) -> Iterator[_Names]:
    """Find what may be tables of names whose markers, or sequence, end where the tokens begin: the nearest first.

    A number of names says where their markers are: what is there is looked at before any name is.
    """
    first = max(0, (before & ~7) - _FARTHEST_NAMES)
    words = array("Q", data[first : before & ~7])
    for index in range(len(words) - 1, -1, -1):
        count = words[index]
        if _FEWEST <= count <= _MOST:
            at = first + index * 8 + 8
            size = _aligned(4 * -(-count // _EACH_MARKER))
            for markers in (before - size, before - _aligned(3 * count) - size):
                if markers > at and data[markers : markers + 4] == bytes(4):
                    yield _Names(count, at, markers)


def _starts(data: bytes, tokens: list[bytes], names: _Names, most: int) -> tuple[list[int] | None, int]:
    """Return where each name begins, and last where they end, if they are names; and how many were looked at.

    Every 256th begins where its marker says, the last ends where the markers begin.
    """
    at, limit = names.at, names.markers
    starts: list[int] = []
    append = starts.append
    for marker in array("I", data[limit : limit + 4 * -(-names.count // _EACH_MARKER)]):
        if marker != at - names.at or len(starts) >= most:
            return None, len(starts)
        for _ in range(min(_EACH_MARKER, names.count - len(starts))):
            append(at)
            length = data[at]
            if length & 0x80:
                length = length & 0x7F | data[at + 1] << 7
                at += 1
            at += length + 1
            if not 0 < length <= _LONGEST_NAME or at > limit:
                return None, len(starts)
        if len(starts) == _EACH_MARKER and any(
            tokens[data[one + 1 + (data[one] >> 7)]][0] not in _TYPES for one in starts
        ):
            return None, len(starts)
    ended = len(starts) == names.count and _aligned(at) == limit
    return ([*starts, at] if ended else None), len(starts)


def _addresses(data: bytes, names: _Names, tokens_end: int) -> tuple[int, ...] | None:
    """Find offsets and their base, where older and newer kernels have them."""
    size = _aligned(names.count * 4)
    base_at = names.at - 16
    if base_at - size >= 0:
        found = _relative(data, base_at - size, base_at, names.count)
        if found is not None:
            return found
    offsets_at = _aligned(tokens_end)
    return _relative(data, offsets_at, offsets_at + size, names.count)


def _relative(data: bytes, offsets_at: int, base_at: int, count: int) -> tuple[int, ...] | None:
    if base_at + 8 > len(data):
        return None
    (base,) = struct.unpack_from("<Q", data, base_at)
    if base < _KERNEL_MAP or base & 0xFFF:
        return None
    offsets = array("i", data[offsets_at : offsets_at + count * 4])
    below = sum(offset < 0 for offset in offsets)
    if 2 * below > count:
        return tuple([offset if offset >= 0 else base - 1 - offset for offset in offsets])
    return tuple([base + (offset & 0xFFFFFFFF) & _WORD for offset in offsets])


def _check_text(stored: bytes, tokens: list[bytes]) -> None:
    """Refuse names that would take too much memory when they are spelled out."""
    # A length counts as a token here: an upper bound is enough.
    if sum(stored.translate(bytes(map(len, tokens)))) > _MOST_TEXT:
        raise KallsymsError("the names in these bytes are longer than any kernel's together")


def _table(data: bytes, tokens: list[bytes], starts: list[int], addresses: tuple[int, ...]) -> Kallsyms:
    """Spell out the names; ``starts`` are where they begin, and last where they end."""
    texts = [token.decode("latin-1") for token in tokens]
    expand = texts.__getitem__
    # Most names are short: one byte of length, which no token is.
    names = [
        "".join(map(expand, data[at + 1 + (data[at] >> 7) : end])) for at, end in itertools.pairwise(starts)
    ]
    types = "".join([name[0] for name in names]).encode("latin-1")
    return Kallsyms(addresses, types, tuple([name[1:] for name in names]))
