"""An image as a plain core file for tools that read no other: a temporary one, as long as it is used.

in          an image
out         the path of an ELF core file with VMCOREINFO in its notes: the image itself where it is such a file
invariant   nothing of it is left afterwards, and only its owner may read it meanwhile; zeroes take no room on the disk
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kbridge.crash import elf_core, image_kernel
from kbridge.crash.core_bytes import PlainBytes
from kbridge.crash.kdump_bytes import KdumpBytes
from kbridge.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbridge.crash.core_file import CoreFile

PIECE_BYTES: Final = 1 << 18
_ZEROS: Final = bytes(PIECE_BYTES)


@contextmanager
def unpacked(
    core: CoreFile, path: Path, progress: Callable[[int, int], None], *, reads_kdump: bool = False
) -> Iterator[Path]:
    """Give the path of an image, at ``path``, as a plain core file.  Raises ``ImageError``.

    ``progress`` is told how many bytes of how many are unpacked.  With ``reads_kdump`` the tool takes a file in kdump's
    compressed format too.
    """
    has_text = core.head.vmcoreinfo() is not None
    if has_text and isinstance(core.source, (PlainBytes, KdumpBytes) if reads_kdump else PlainBytes):
        yield path
        return
    try:
        descriptor, name = tempfile.mkstemp(prefix="kbridge-", suffix=".vmcore")
    except OSError as error:
        raise ImageError(f"{path} cannot be unpacked", why=str(error)) from error
    try:
        try:
            _write(core, descriptor, None if has_text else image_kernel.of_image(core), progress)
        except OSError as error:
            raise ImageError(
                f"{path} cannot be unpacked to {name}",
                why=error.strerror or str(error),
                todo="set TMPDIR to a folder with more room",
            ) from error
        finally:
            os.close(descriptor)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _write(core: CoreFile, descriptor: int, text: bytes | None, progress: Callable[[int, int], None]) -> None:
    plan = elf_core.rewrite(core.head)
    os.pwrite(descriptor, plan.bytes_with(text), 0)
    start, end = core.head.memory_at, core.head.end
    os.ftruncate(descriptor, plan.size + end - start)
    at = start
    while at < end:
        wanted = min(PIECE_BYTES, end - at)
        piece = core.source.read(at, wanted)
        # What is not written reads as zeroes.
        if piece != _ZEROS:
            view = memoryview(piece)
            place = plan.size + at - start
            while view:
                written = os.pwrite(descriptor, view, place)
                view, place = view[written:], place + written
        # A page that was left out of the file reads so too.
        at += wanted if len(piece) == wanted else len(piece) + elf_core.PAGE_BYTES
        progress(min(at, end) - start, end - start)
