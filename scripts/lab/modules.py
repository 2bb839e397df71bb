"""Kernel modules as files: what each depends on, and an order in which `insmod` accepts them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Mapping
    from pathlib import Path

from lab.errors import LabError

# Elf64_Ehdr up to its end, and Elf64_Shdr (System V ABI, "ELF-64 Object File Format").
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")


def section(image: bytes | mmap.mmap, wanted: str) -> bytes:
    """The section called `wanted` of a little-endian 64-bit ELF file; LabError if there is none."""
    try:
        header = _HEADER.unpack_from(image)
        if header[0][:6] != b"\x7fELF\x02\x01":
            raise LabError("not a 64-bit little-endian ELF file")
        start, entry_size, count, names_index = header[6], header[11], header[12], header[13]
        rows = [_SECTION.unpack_from(image, start + index * entry_size) for index in range(count)]
        names = rows[names_index]
    except (struct.error, IndexError, OverflowError) as error:
        raise LabError("not a whole ELF file") from error
    for row in rows:
        at = names[4] + row[0]
        if image[at : image.find(b"\0", at)] == wanted.encode():
            return image[row[4] : row[4] + row[5]]
    raise LabError(f"the ELF file has no section {wanted}")


def dependencies(image: bytes) -> tuple[str, ...]:
    """Names of the modules that a .ko file says it needs (`depends=` in .modinfo); underscores, no suffix."""
    for item in section(image, ".modinfo").split(b"\0"):
        key, _, value = item.partition(b"=")
        if key == b"depends":
            return tuple(canonical(name) for name in value.decode("latin-1").split(",") if name)
    return ()


def canonical(name: str) -> str:
    """The kernel's own spelling of a module's name: `virtio-rng` is `virtio_rng`."""
    return name.replace("-", "_")


def load_order(wanted: Iterable[str], needs: Mapping[str, Iterable[str]]) -> list[str]:
    """`wanted` and all they need, each after what it needs.

    Raises LabError on an unknown module or a circle. A name missing from `needs` is unknown.
    """
    order: list[str] = []
    opened: set[str] = set()

    def visit(name: str) -> None:
        if name in order:
            return
        if name in opened:
            raise LabError(f"module {name} depends on itself")
        if name not in needs:
            raise LabError(f"there is no module {name}")
        opened.add(name)
        for needed in needs[name]:
            visit(needed)
        order.append(name)

    for name in wanted:
        visit(canonical(name))
    return order


def find(folder: Path) -> dict[str, Path]:
    """Every .ko file under `folder`, by canonical name."""
    return {canonical(path.stem): path for path in sorted(folder.rglob("*.ko"))}


def select(folder: Path, wanted: Iterable[str]) -> list[Path]:
    """The .ko files under `folder` that make the modules `wanted` load, in loading order."""
    files = find(folder)
    needs: dict[str, tuple[str, ...]] = {}
    pending = [canonical(name) for name in wanted]
    while pending:
        name = pending.pop()
        if name in files and name not in needs:
            needs[name] = dependencies(files[name].read_bytes())
            pending += needs[name]
    return [files[name] for name in load_order(wanted, needs)]
