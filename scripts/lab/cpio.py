"""A writer of cpio archives in the "newc" format, which the kernel unpacks as its first root file system.

Needs no root, because owners and device nodes are only numbers in the archive. The same entries always give
the same bytes (numbered inodes, no times). Source: the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_TRAILER = "TRAILER!!!"
_BLOCK = 512
_LIMIT = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """One member: `name` without a leading slash, `mode` with its type bits, `device` as (major, minor)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        if not self.name or "\0" in self.name or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"not a name for a cpio member: {self.name!r}")
        if self.name == _TRAILER:
            raise ValueError(f"{_TRAILER} ends an archive and cannot be a member's name")
        if len(self.data) > _LIMIT:
            raise ValueError(f"{self.name}: a newc member holds less than 4 GiB")
        if not stat.S_IFMT(self.mode):
            raise ValueError(f"{self.name}: the mode lacks a file type")


def directory(name: str, mode: int = 0o755) -> Entry:
    return Entry(name, stat.S_IFDIR | mode)


def file(name: str, data: bytes, mode: int = 0o644) -> Entry:
    return Entry(name, stat.S_IFREG | mode, data)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(name, stat.S_IFCHR | mode, device=(major, minor))


def _member(name: str, inode: int, mode: int, links: int, data: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of `entries`, in their order; parents must come before what is in them.

    Raises ValueError if a name comes twice or a parent directory is missing: the kernel would drop such a
    member without a word.
    """
    out = bytearray()
    seen: set[str] = set()
    directories: set[str] = {""}
    for inode, entry in enumerate(entries, start=1):
        parent = entry.name.rpartition("/")[0]
        if entry.name in seen:
            raise ValueError(f"{entry.name} is in the archive twice")
        if parent not in directories:
            raise ValueError(f"{entry.name} comes before its directory {parent}")
        seen.add(entry.name)
        is_directory = stat.S_ISDIR(entry.mode)
        if is_directory:
            directories.add(entry.name)
        out += _member(entry.name, inode, entry.mode, 2 if is_directory else 1, entry.data, entry.device)
    out += _member(_TRAILER, 0, 0, 1, b"", (0, 0))
    return bytes(out + bytes(-len(out) % _BLOCK))
