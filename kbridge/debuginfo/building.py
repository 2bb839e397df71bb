"""An index made out of a file with symbols and DWARF: 2.3 s and 500 MB for a kernel."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from kbridge.debuginfo.mapping import mapped
from symbols import index, table
from symbols.errors import SymbolError
from symbols.model import BuildId


def build(path: Path, build_id: BuildId) -> Iterator[bytes]:
    """Return the parts of the index.  Raises ``SymbolError``, ``OSError``."""
    with mapped(path) as image:
        symbols = table.build(image)
        base = index.load_address(image)
        has_lines = index.has_lines(image)
    lines = _lines(path) if has_lines else b""
    yield index.header(build_id, base, len(symbols), len(lines))
    yield symbols
    yield lines


def _lines(path: Path) -> bytes:
    # The library is large, and only this needs it.
    from symbolic.debuginfo import Archive  # noqa: PLC0415
    from symbolic.exceptions import SymbolicError  # noqa: PLC0415

    out = io.BytesIO()
    try:
        next(Archive.open(str(path)).iter_objects()).make_symcache().dump_into(out)  # type: ignore[no-untyped-call]
    except (SymbolicError, StopIteration) as error:
        raise SymbolError(f"its DWARF cannot be read: {error}") from error
    return out.getvalue()
