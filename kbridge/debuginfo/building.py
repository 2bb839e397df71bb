"""An index made out of a file with symbols and DWARF: 2.3 s and 500 MB for a kernel, 0.1 s for most modules."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from kbridge.debuginfo.mapping import mapped
from symbols import index, linking, table
from symbols.errors import SymbolError
from symbols.model import BuildId


def build(path: Path, build_id: BuildId) -> Iterator[bytes]:
    """Return the parts of the index.  Raises ``SymbolError``, ``OSError``.

    A module's is of the file as ``linking`` links it.
    """
    with mapped(path) as image:
        linked = bytes(linking.link(image)) if linking.is_relocatable(image) else None
        symbols = table.build(linked or image)
        base = index.load_address(linked or image)
        has_lines = index.has_lines(linked or image)
    lines = _lines(path, linked) if has_lines else b""
    yield index.header(build_id, base, len(symbols), len(lines))
    yield symbols
    yield lines


def _lines(path: Path, linked: bytes | None) -> bytes:
    # The library is large, and only this needs it.
    from symbolic.debuginfo import Archive  # noqa: PLC0415
    from symbolic.exceptions import SymbolicError  # noqa: PLC0415

    out = io.BytesIO()
    try:
        archive = Archive.open(str(path)) if linked is None else Archive.from_bytes(linked)
        next(archive.iter_objects()).make_symcache().dump_into(out)  # type: ignore[no-untyped-call]
    except (SymbolicError, StopIteration) as error:
        raise SymbolError(f"its DWARF cannot be read: {error}") from error
    return out.getvalue()
