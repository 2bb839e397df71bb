"""The symbols of an image's kernel, lent to gdb before a relay is there to serve them.

in          an image; what it says of its kernel; the main file that an earlier relay made of that and kept
out         that file, for gdb to read, and by its side the name by which gdb finds the one with DWARF
invariant   what is lent is what a relay would serve: the build-id was read in memory where the file has it, and of a
            kernel's file.  What cannot be lent is served

Page tables of a processor that does not have the kernel mapped, a file that is found by a search only, a kernel that
was never opened: then nothing is lent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kbridge.crash.core_memory import CoreMemory
from kbridge.debuginfo import kept_files
from kbridge.debuginfo.mapping import mapped
from kbridge.debuginfo.separate import by_build_id, link_debug_file
from kbridge.errors import ImageError
from symbols import elf, kaslr
from symbols.errors import SymbolError
from symbols.kaslr import Linked

if TYPE_CHECKING:
    from kbridge.crash.core_file import CoreFile
    from symbols.model import BuildId
    from symbols.vmcoreinfo import Vmcoreinfo

_NOTES: Final = ".notes"


def lend(
    core: CoreFile,
    said: Vmcoreinfo,
    vmlinux: Path | None,
    folders: Sequence[Path],
    kept: Path,
    links: Path,
    place: Path,
) -> Path | None:
    """Put the main file of an image's kernel at ``place`` and return that; None where it is not lent.

    ``vmlinux``: the file that is to be used, if one was named; ``folders``: those for debug files.  ``kept``: where
    main files are kept; ``links``: the folder in which a file with DWARF is named by its build-id.  Blocks.
    """
    build_id, slide = said.build_id, said.slide
    if build_id is None or slide is None:
        return None
    path = vmlinux or next((one for each in folders if (one := by_build_id(each, build_id))), None)
    if path is None:
        return None
    try:
        contents = kept_files.known(kept, kept_files.main_file(build_id, slide, path.stat().st_size))
        if contents is None or not _is_there(core, build_id, contents):
            return None
        with mapped(path) as image:
            if elf.build_id(image) != build_id:
                return None
            link_debug_file(links, build_id, path, image)
        place.write_bytes(contents)
    except (OSError, ValueError, SymbolError, ImageError):
        # The relay comes upon it too, and says what is wrong.
        return None
    return place


def _is_there(core: CoreFile, build_id: BuildId, contents: bytes) -> bool:
    """Tell whether this kernel is in memory where its main file has it."""
    for section in elf.sections(contents):
        if section.name == _NOTES:
            linked = Linked(build_id, section.address, section.size, None)
            return CoreMemory(core).search(kaslr.is_at(linked, 0))
    return False
