"""Memory packed into frames by threads, in order: what is read goes in, what is to be written comes out.

in          pieces of memory, in order
out         frames, in that order, each with its length and its contents'
invariant   at most ``MOST_UNDER_WAY`` pieces are held; a piece of zeros costs a comparison, one of noise a sample

zstd lets go of Python's lock while it packs, so threads do it beside each other.  What does not compress costs it more
than all else together, for nothing: such a piece is kept as it is, without a checksum.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Self

import zstandard

from kbridge.crash import image_kernel
from kbridge.crash.seekable import FRAME_BYTES, raw_frame

LEVEL: Final = 1
THREADS: Final = 2
MOST_UNDER_WAY: Final = 24
PAGE_BYTES: Final = 4096
SAMPLES: Final = 8
SAMPLE_BYTES: Final = 512
"""Of so many places in a piece: it is noise if these are."""
WORTHWHILE: Final = 0.95
"""Of a sample's size, packed: what compresses less is not worth the time."""
_ZEROS: Final = bytes(FRAME_BYTES)

Packed = tuple[bytes, int]
"""A frame, and how many bytes its contents have."""


class Packer:
    """Packs pieces of ``FRAME_BYTES``; the module's text says how.  To be used in a ``with``.

    ``searches``: VMCOREINFO is looked for.

    ``buffer`` gives room for the next piece, ``put`` takes it filled, ``packed`` gives what is ready.
    """

    def __init__(self, *, searches: bool = True) -> None:
        self._searches = searches
        self.vmcoreinfo: list[bytes] = []
        """Texts that look like VMCOREINFO, in no order."""
        self._pool = ThreadPoolExecutor(THREADS, "kbridge-image")
        self._own = threading.local()
        self._zeros = _compressor().compress(_ZEROS)
        self._queue: deque[Future[Packed] | Packed] = deque()
        self._free: list[bytearray] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ignored: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def buffer(self) -> bytearray:
        """Return room for a piece."""
        return self._free.pop() if self._free else bytearray(FRAME_BYTES)

    def put(self, buffer: bytearray, size: int) -> None:
        """Take a piece: the first ``size`` bytes of a buffer that ``buffer`` gave."""
        if size == FRAME_BYTES and buffer == _ZEROS:
            self._queue.append((self._zeros, size))
            self._free.append(buffer)
        elif size:
            self._queue.append(self._pool.submit(self._pack, buffer, size))

    def packed(self, *, all_of_it: bool = False) -> Iterator[Packed]:
        """Give the frames that are ready; waits only where too many pieces are under way, or for ``all_of_it``."""
        queue = self._queue
        while queue:
            first = queue[0]
            if isinstance(first, Future):
                if not (all_of_it or first.done() or len(queue) > MOST_UNDER_WAY):
                    return
                first = first.result()
            queue.popleft()
            yield first

    def _pack(self, buffer: bytearray, size: int) -> Packed:
        compressor: zstandard.ZstdCompressor | None = getattr(self._own, "compressor", None)
        if compressor is None:
            compressor = self._own.compressor = _compressor()
        if (
            self._searches
            and _has_vmcoreinfo(buffer, size)
            and len(self.vmcoreinfo) < (image_kernel.MOST_CANDIDATES)
        ):
            self.vmcoreinfo += image_kernel.candidates(bytes(memoryview(buffer)[:size]))
        with memoryview(buffer) as whole, whole[:size] as piece:
            frame = raw_frame(piece) if _is_noise(compressor, piece) else compressor.compress(piece)
        # Only the thread that reads takes from this list; appending to it is safe.
        self._free.append(buffer)
        return frame, size


def _has_vmcoreinfo(buffer: bytearray, size: int) -> bool:
    """Whether a page begins as VMCOREINFO does: its text has a page of its own (kernel/crash_core.c, since 4.13)."""
    return any(buffer.startswith(image_kernel.BEGINNING, at) for at in range(0, size, PAGE_BYTES))


def _is_noise(compressor: zstandard.ZstdCompressor, piece: memoryview) -> bool:
    """Whether a piece does not compress, by samples of it."""
    if len(piece) < FRAME_BYTES:
        return False
    step = FRAME_BYTES // SAMPLES
    sample = b"".join(piece[at : at + SAMPLE_BYTES] for at in range(0, FRAME_BYTES, step))
    return len(compressor.compress(sample)) > WORTHWHILE * len(sample)


def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
