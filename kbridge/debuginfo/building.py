"""An index made out of a file with symbols and DWARF: 2.3 s and 500 MB for a kernel, 0.1 s for most modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kbridge.debuginfo.mapping import mapped
from symbols import elf, index, line_making, linking, table_making
from symbols.dwarf_units import Units
from symbols.errors import SymbolError
from symbols.model import BuildId


def build(path: Path, build_id: BuildId) -> Iterator[bytes]:
    """Return the parts of the index.  Raises ``SymbolError``, ``OSError``.

    A module's is of the file as ``linking`` links it.
    """
    with mapped(path) as image:
        linked = bytes(linking.link(image)) if linking.is_relocatable(image) else None
        base = elf.load_address(linked or image)
        has_lines = elf.has_lines(linked or image)
    # The library needs the most memory: what else is made comes after it.
    symcache = _symcache(path, linked) if has_lines else None
    with mapped(path) as image:
        lines = b""
        if symcache is not None:
            lines = b"".join(line_making.make(symcache, base, Units(linked or image)))
            del symcache
        symbols = table_making.build(linked or image)
    yield from index.parts(build_id, base, symbols, lines)


def _symcache(path: Path, linked: bytes | None) -> bytes:
    # The library is large, and only this needs it.
    from symbolic.debuginfo import Archive  # noqa: PLC0415
    from symbolic.exceptions import SymbolicError  # noqa: PLC0415

    try:
        archive = Archive.open(str(path)) if linked is None else Archive.from_bytes(linked)
        made = next(archive.iter_objects()).make_symcache()
        # With the file go the pages of it that are in memory, before what was made of it is copied.
        del archive
        return bytes(made.open_stream().read())  # type: ignore[no-untyped-call]
    except (SymbolicError, StopIteration) as error:
        raise SymbolError(f"its DWARF cannot be read: {error}") from error
