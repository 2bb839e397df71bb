"""A mapped file: a header page with a few live words, and a body of fixed size.

The ring and its index are both such files.  All numbers are in the byte order of the machine: the file is
shared memory, not an exchange format; on a machine of the other order the check sum does not match.

    bytes 0..31    constant: magic (8), version u32, header bytes u32, body bytes u64, made at (wall, ns) u64
    bytes 32..35   crc32 of bytes 0..31
    bytes 64..     live words, u64 each, see ``Word``
    byte  4096..   the body

An aligned 8-byte word is stored by one instruction, so that a reader in another process sees the old or the
new value.  The kernel writes the pages back; what a killed process had stored is there for the next one.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from enum import Enum, IntEnum
from pathlib import Path
from typing import Final, Self

from kbridge.errors import RecordError

HEADER_BYTES: Final = 4096
VERSION: Final = 1
NOT_IN_FLIGHT: Final = 0xFFFF_FFFF_FFFF_FFFF
_CONSTANT: Final = struct.Struct("=8sIIQQ")
_CRC: Final = struct.Struct("=I")
_WORDS_AT: Final = 64
_WORDS: Final = 8
# Since Linux 5.14; Python 3.11 has no name for it.
_MADV_POPULATE_WRITE: Final = 23
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Word(IntEnum):
    """Places of the live words."""

    HEAD = 0
    """How much was ever written: bytes for the ring, entries for the index."""
    FLIGHT = 1
    """The head's offset while a read past it is in progress; any other number when there is none."""
    BASE = 2
    """The first offset that this file ever held."""
    CLEAN = 3
    """1 when the writer closed the file; 0 while one has it open, or died."""
    BOOT_HIGH = 4
    BOOT_LOW = 5
    """The writer's boot id: pages of a host that went down may be lost."""


class Former(Enum):
    """How the former writer of a file left it."""

    NONE = "new"
    CLEAN = "closed"
    KILLED = "killed"
    HOST_WENT_DOWN = "host went down"


class DamagedError(Exception):
    """The file is not what its header should say; the text says what is wrong.  For the opener to act on."""


def boot_id() -> tuple[int, int]:
    """Return the host's boot id as two 64-bit words; changes when the host starts again."""
    number = int(_BOOT_ID.read_text(encoding="ascii").strip().replace("-", ""), 16)
    return number >> 64, number & 0xFFFF_FFFF_FFFF_FFFF


class MappedFile:
    """A mapped header and body; ``path`` is ``None`` for one that lives in memory only."""

    __slots__ = ("_map", "body", "capacity", "former", "path", "words")

    def __init__(self, mapping: mmap.mmap, capacity: int, path: Path | None, former: Former) -> None:
        self._map = mapping
        self.path = path
        self.capacity = capacity
        self.former = former
        whole = memoryview(mapping)
        self.words: memoryview[int] = whole[_WORDS_AT : _WORDS_AT + 8 * _WORDS].cast("Q")
        self.body: memoryview[int] = whole[HEADER_BYTES : HEADER_BYTES + capacity]

    @classmethod
    def anonymous(cls, capacity: int) -> Self:
        """Make one in memory: nothing survives the process."""
        mapping = mmap.mmap(-1, HEADER_BYTES + capacity)
        return cls(mapping, capacity, None, Former.NONE)

    @classmethod
    def create(cls, path: Path, magic: bytes, capacity: int, base: int) -> Self:
        """Make the file under the name ``path`` with ``.new`` after it; ``publish`` gives it its name.

        Space is reserved and every page touched now: a full disk is an error here, not a signal later, and
        the first touch of a page (eight times slower than the second) does not fall under load.  Raises
        ``OSError``.
        """
        size = HEADER_BYTES + capacity
        fd = os.open(_new(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                os.posix_fallocate(fd, 0, size)
                mapping = mmap.mmap(fd, size)
            except OSError:
                _new(path).unlink()
                raise
        finally:
            os.close(fd)
        _populate(mapping)
        constant = _CONSTANT.pack(magic, VERSION, HEADER_BYTES, capacity, time.time_ns())
        mapping[: _CONSTANT.size] = constant
        mapping[_CONSTANT.size : _CONSTANT.size + _CRC.size] = _CRC.pack(zlib.crc32(constant))
        made = cls(mapping, capacity, path, Former.NONE)
        made.words[Word.HEAD] = base
        made.words[Word.BASE] = base
        made.words[Word.FLIGHT] = NOT_IN_FLIGHT
        made.words[Word.BOOT_HIGH], made.words[Word.BOOT_LOW] = boot_id()
        return made

    def publish(self) -> None:
        """Give a file that ``create`` made its name, in place of one that had it."""
        assert self.path is not None
        _new(self.path).replace(self.path)

    @classmethod
    def attach(cls, path: Path, magic: bytes) -> Self:
        """Map an existing file for writing.

        Raises ``FileNotFoundError``, ``DamagedError`` when its header or size is not right, or another
        ``OSError``.
        """
        mapping, capacity = _map(path, magic, mmap.ACCESS_WRITE)
        _populate(mapping)
        found = cls(mapping, capacity, path, Former.CLEAN)
        boot = (found.words[Word.BOOT_HIGH], found.words[Word.BOOT_LOW])
        if not found.words[Word.CLEAN]:
            found.former = Former.KILLED if boot == boot_id() else Former.HOST_WENT_DOWN
        head, base = found.words[Word.HEAD], found.words[Word.BASE]
        if base > head:
            found.close()
            raise DamagedError(f"its counters contradict each other (head {head}, base {base})")
        found.words[Word.CLEAN] = 0
        found.words[Word.BOOT_HIGH], found.words[Word.BOOT_LOW] = boot_id()
        return found

    @classmethod
    def view(cls, path: Path, magic: bytes) -> Self:
        """Map an existing file for reading only, while another process may write it.

        Raises ``RecordError`` with the reason when that is not possible.
        """
        try:
            mapping, capacity = _map(path, magic, mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise RecordError(f"cannot read {path}", why="nothing was recorded there") from error
        except OSError as error:
            raise RecordError(f"cannot read {path}", why=error.strerror or str(error)) from error
        except DamagedError as error:
            raise RecordError(f"cannot read {path}", why=str(error)) from error
        return cls(mapping, capacity, path, Former.CLEAN)

    def sync(self) -> None:
        """Write the pages to the disk and mark the file as closed; it may take as long as the disk does."""
        self._map.flush()
        self.words[Word.CLEAN] = 1
        self._map.flush()

    def close(self) -> None:
        """Unmap.  Bytes that a caller still holds a view of stay mapped until that view is gone."""
        self.words.release()
        self.body.release()
        try:
            self._map.close()
        except BufferError:
            # Somebody is still sending from it: the mapping goes with the last view, not under its feet.
            return


def set_aside(path: Path, why: str) -> Path:
    """Rename a file that cannot be used, so that its history is kept; return its new name."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    number = 0
    while True:
        name = path.with_name(f"{path.name}.{why}-{stamp}" + (f".{number}" if number else ""))
        if not name.exists():
            return path.rename(name)
        number += 1


def _new(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _map(path: Path, magic: bytes, access: int) -> tuple[mmap.mmap, int]:
    flags = os.O_RDWR if access == mmap.ACCESS_WRITE else os.O_RDONLY
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        header = os.pread(fd, _CONSTANT.size + _CRC.size, 0)
        if len(header) < _CONSTANT.size + _CRC.size:
            raise DamagedError(f"it is only {size} bytes long")
        if header[:8] != magic:
            raise DamagedError("it does not start with this kind of file's mark")
        if zlib.crc32(header[: _CONSTANT.size]) != _CRC.unpack(header[_CONSTANT.size :])[0]:
            raise DamagedError("its header's check sum is wrong")
        _, version, header_bytes, capacity, _ = _CONSTANT.unpack(header[: _CONSTANT.size])
        if version != VERSION or header_bytes != HEADER_BYTES:
            raise DamagedError(f"it has format version {version}, this kbridge reads {VERSION}")
        if capacity <= 0 or size != HEADER_BYTES + capacity:
            raise DamagedError(f"it is {size} bytes long where {HEADER_BYTES + capacity} are due")
        return mmap.mmap(fd, size, access=access), capacity
    finally:
        os.close(fd)


def _populate(mapping: mmap.mmap) -> None:
    try:
        mapping.madvise(_MADV_POPULATE_WRITE)
    except OSError:  # a kernel before 5.14: write each page's first byte back
        for start in range(0, len(mapping), mmap.PAGESIZE):
            mapping[start] = mapping[start]
