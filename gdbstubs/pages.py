"""The page cache of a stop: memory that was read once need not be asked for again while the guest stands still.

gdb reads code in pieces of 64 bytes and data in pieces of eight.  The second read in a page of the kernel's image
fetches the whole page.  Only there: those addresses are backed by memory or by nothing, while elsewhere a page
may belong to a device, whose registers must not be read because somebody wanted their neighbour.

Everything is dropped when the guest resumes, when memory or registers are written, and when breakpoints change.
Source of the addresses: Linux, Documentation/x86/x86_64/mm.rst (kernel text mapping and module mapping space).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gdbstubs.errors import TargetError
from gdbstubs.target import Reply, ThreadId

PAGE: Final = 4096
IMAGE_START: Final = 0xFFFF_FFFF_8000_0000
IMAGE_END: Final = 0xFFFF_FFFF_FF00_0000
MOST_PAGES: Final = 4096

Key = tuple[ThreadId, int]
Read = Callable[[ThreadId, int, int, Reply[bytes]], None]


class PageCache:
    """Pages of the kernel's image as one thread sees them (address spaces differ between processors).

    ``read`` asks the target; the cache never answers with less than the target would.  Without ``whole_pages`` it keeps
    nothing.
    """

    def __init__(self, read: Read, *, whole_pages: bool = True) -> None:
        self._whole_pages = whole_pages
        self._ask = read
        self._pages: dict[Key, bytes] = {}
        self._touched: set[Key] = set()
        self._whole: set[Key] = set()
        """Pages that are being fetched, or that cannot be fetched whole."""

    def clear(self) -> None:
        """Forget everything; what is under way is answered but not kept."""
        if self._touched:
            self._pages = {}
            self._touched = set()
            self._whole = set()

    def is_past(self, address: int, length: int) -> bool:
        """Whether a read is none of the cache's business."""
        return (
            not IMAGE_START <= address < IMAGE_END or not self._whole_pages or address % PAGE + length > PAGE
        )

    def read(self, thread: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        """Read memory through the cache."""
        offset = address % PAGE
        if self.is_past(address, length):
            self._ask(thread, address, length, done)
            return
        key = (thread, address - offset)
        page = self._pages.get(key)
        if page is not None:
            done(page[offset : offset + length])
        elif key not in self._touched:
            if len(self._touched) < MOST_PAGES:
                self._touched.add(key)
            self._ask(thread, address, length, done)
        elif key in self._whole:
            self._ask(thread, address, length, done)
        else:
            self._fetch(key, offset, length, done)

    def _fetch(self, key: Key, offset: int, length: int, done: Reply[bytes]) -> None:
        thread, start = key
        pages, whole = self._pages, self._whole
        whole.add(key)

        def fetched(data: bytes | TargetError) -> None:
            if isinstance(data, TargetError) or len(data) < PAGE:
                # The end of what is mapped, or nothing at all: the target knows what to say to this read.
                self._ask(thread, start + offset, length, done)
                return
            # After ``clear`` these are no longer the cache's own.
            pages[key] = data
            whole.discard(key)
            done(data[offset : offset + length])

        self._ask(thread, start, PAGE, fetched)
