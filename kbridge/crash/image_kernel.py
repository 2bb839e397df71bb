"""VMCOREINFO of the kernel in an image: out of the notes, else found in its memory and verified.

A kernel that was there before may have left its own behind, and anybody in the guest may write one down.  So one that
was found is believed only where a processor's page tables map the kernel's text to just where it says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from symbols import vmcoreinfo
from symbols.direct_map import IMAGE_MAP
from symbols.vmcoreinfo import VmcoreinfoError

if TYPE_CHECKING:
    from kbridge.crash.core_file import CoreFile

BEGINNING: Final = b"OSRELEASE="
TEXT_SYMBOL: Final = "_stext"
PHYSICAL_BASE: Final = "phys_base"
MOST_CANDIDATES: Final = 64
MOST_PROCESSORS_ASKED: Final = 16
_PAGE_BYTES: Final = 4096


def candidates(data: bytes) -> tuple[bytes, ...]:
    """Return the texts of VMCOREINFO in a piece of memory, none of which is to be believed."""
    return vmcoreinfo.texts(data) if BEGINNING in data else ()


def of_image(core: CoreFile) -> bytes | None:
    """Return the text of the kernel's VMCOREINFO; None where the image has none.  Raises ``ImageError``."""
    told = core.head.vmcoreinfo()
    return told if told is not None else first_verified(core, _in_memory(core))


def first_verified(core: CoreFile, texts: Iterable[bytes]) -> bytes | None:
    """Return the first of these that is of the kernel that a processor runs; None if none is.

    Raises ``ImageError``.
    """
    seen: set[bytes] = set()
    for text in texts:
        if text not in seen:
            seen.add(text)
            if is_of_kernel(core, text):
                return text
            if len(seen) >= MOST_CANDIDATES:
                break
    return None


def is_of_kernel(core: CoreFile, text: bytes) -> bool:
    """Whether a processor has the kernel mapped where this VMCOREINFO says.  Raises ``ImageError``."""
    try:
        one = vmcoreinfo.parse(text)
    except VmcoreinfoError:
        return False
    virtual, base = one.symbol(TEXT_SYMBOL), one.number(PHYSICAL_BASE)
    if virtual is None or base is None or virtual < IMAGE_MAP:
        return False
    for number in range(min(len(core.processors), MOST_PROCESSORS_ASKED)):
        tables = core.tables(number)
        page = None if tables is None else core.page(tables, virtual)
        if page is not None:
            return page.physical + virtual - page.virtual == virtual - IMAGE_MAP + base
    return False


def _in_memory(core: CoreFile) -> Iterable[bytes]:
    before = b""
    for _, piece in core.scan():
        # One that begins at the end of a piece goes on in the next.
        yield from candidates(before + piece)
        before = piece[-_PAGE_BYTES:]
