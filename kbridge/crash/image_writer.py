"""A core file that comes in by a pipe, packed on its way to the disk: VMCOREINFO put in, limits kept.

in          the end of a pipe from which a core file is read, a whole machine's memory in it
out         a seekable zstd file; how far it is; ``ImageError``
invariant   the reading end is closed when ``write`` returns, however: who writes to the other end is never held up for
            good.  Nothing has its name before ``keep``

It blocks, and is called in a thread.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kbridge.crash import elf_core, image_kernel, seekable
from kbridge.crash.core_file import CoreFile
from kbridge.crash.elf_core import Rewriting
from kbridge.crash.image_file import ImageFile, ImageLimits
from kbridge.crash.image_frames import Packed, Packer
from kbridge.errors import ImageError

STALL_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.25
_BEGINNING_BYTES: Final = 1 << 16
_LITTLE_BYTES: Final = 1 << 17
_BREATH_SECONDS: Final = 0.0003
"""QEMU writes page by page: whoever reads each at once wakes up a quarter of a million times for a gigabyte.  After a
little the pipe, which holds a megabyte, is let fill for so long."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    memory_bytes: int
    file_bytes: int
    processors: int
    vmcoreinfo: bytes | None
    """The text that is among the notes."""
    vmcoreinfo_from: str
    """``guest``: by its vmcoreinfo device; ``caller``; ``memory``: found in the image; empty where there is none."""


class ImageWriter:
    """Writes one image; the module's text says how.

    ``text``: the kernel's VMCOREINFO, where the caller knows it; it is used if the guest has no such device.
    ``progress`` is told how many bytes of memory of how many have come, in this thread.
    """

    def __init__(
        self,
        source: int,
        path: Path,
        limits: ImageLimits,
        *,
        recipients: Sequence[str] = (),
        text: bytes | None = None,
        progress: Callable[[int, int], None],
    ) -> None:
        self._source = source
        self._path = path
        self._limits = limits
        self._recipients = recipients
        self._text = text
        self._progress = progress
        self.is_cut_off = False
        """Whether the image ended too early: whoever writes it knows why."""
        self._abandoned = threading.Event()
        self._file: ImageFile | None = None
        self._frames: list[tuple[int, int]] = []
        self._poll = select.poll()
        self._poll.register(source, select.POLLIN)

    def abandon(self) -> None:
        """Have ``write`` end soon, with an error; from another thread."""
        self._abandoned.set()

    def keep(self) -> None:
        """Give what was written its name.  Raises ``ImageError``; then nothing is left of it."""
        assert self._file is not None, "it was written"
        try:
            if self._abandoned.is_set():
                raise _not_wanted()
            self._file.finish()
        except BaseException:
            self._file.discard()
            raise

    def write(self) -> Written:
        """Read all and write it.  Raises ``ImageError``."""
        try:
            os.set_blocking(self._source, False)
            self._file = file = ImageFile(self._path, self._limits, self._recipients)
            plan, rest = self._head()
            told = plan.head.vmcoreinfo()
            text = told if told is not None else self._text
            origin = "guest" if told is not None else "caller" if text is not None else ""
            try:
                head = plan.bytes_with(text if told is None else None)
            except elf_core.CoreError as error:
                raise ImageError("the image cannot be written", why=str(error)) from error
            self._put(((seekable.raw_frame(head), len(head)),))
            found = self._memory(plan, rest, searches=text is None and not file.is_encrypted)
            file.write(seekable.write_table(self._frames))
            file.sync()
            if text is None and not file.is_encrypted:
                text = self._add_vmcoreinfo(plan, found)
                origin = "" if text is None else "memory"
            memory = plan.head.end - plan.head.memory_at
            count = sum(one.owner == b"CORE" for one in plan.head.notes)
            return Written(memory, file.size, count, text, origin)
        except BaseException:
            if self._file is not None:
                self._file.discard()
            raise
        finally:
            os.close(self._source)

    # -- what comes before the memory -----------------------------------------------------------------------

    def _head(self) -> tuple[Rewriting, bytes]:
        """Read the head; return it, and the bytes of memory that came with it."""
        begun = bytearray()
        room = bytearray(_BEGINNING_BYTES)
        try:
            while (size := elf_core.head_bytes(bytes(begun))) is None or len(begun) < size:
                got = self._read(memoryview(room))
                if not got:
                    self.is_cut_off = True
                    raise ImageError("there is no image", why=f"only {len(begun)} bytes of it came")
                begun += room[:got]
            data = bytes(begun)
            head = elf_core.read_head(
                1 << 63, lambda offset, length: data[offset : min(offset + length, size)]
            )
        except elf_core.CoreError as error:
            raise ImageError("the hypervisor's image makes no sense", why=str(error)) from error
        return elf_core.rewrite(head), data[size:]

    def _add_vmcoreinfo(self, plan: Rewriting, found: Iterable[bytes]) -> bytes | None:
        """Write the head once more, with VMCOREINFO that was found in the memory, if it is the kernel's."""
        assert self._file is not None
        core = CoreFile.open(self._file.unfinished)
        try:
            text = image_kernel.first_verified(core, found)
        finally:
            core.close()
        if text is not None:
            self._file.overwrite(seekable.raw_frame(plan.bytes_with(text)))
        return text

    # -- the memory -----------------------------------------------------------------------------------------

    def _memory(self, plan: Rewriting, rest: bytes, *, searches: bool) -> list[bytes]:
        """Write the memory; return what in it looks like VMCOREINFO, if that is looked for."""
        expected = plan.head.end - plan.head.memory_at
        came = 0
        with Packer(searches=searches) as packer:
            while came < expected:
                buffer = packer.buffer()
                size = min(len(rest), len(buffer))
                buffer[:size], rest = rest[:size], rest[size:]
                wanted = min(len(buffer), expected - came)
                with memoryview(buffer) as view:
                    while size < wanted:
                        got = self._read(view[size:wanted])
                        if not got:
                            self.is_cut_off = True
                            raise ImageError(
                                "the image is cut off",
                                why=f"{came + size:,} bytes came of {expected:,}: the hypervisor gave up, or ended",
                            )
                        size += got
                packer.put(buffer, size)
                came += size
                self._put(packer.packed())
                self._progress(came, expected)
            self._put(packer.packed(all_of_it=True))
            return packer.vmcoreinfo

    def _put(self, frames: Iterable[Packed]) -> None:
        assert self._file is not None
        for data, size in frames:
            self._file.write(data)
            self._frames.append((len(data), size))

    def _read(self, view: memoryview) -> int:
        """Read some bytes; 0 at the end."""
        waited = 0.0
        while True:
            if self._abandoned.is_set():
                raise _not_wanted()
            try:
                got = os.readv(self._source, [view])
            except BlockingIOError:
                pass
            else:
                if 0 < got < min(_LITTLE_BYTES, len(view)):
                    time.sleep(_BREATH_SECONDS)
                return got
            if self._poll.poll(_LOOK_SECONDS * 1000):
                continue
            waited += _LOOK_SECONDS
            if waited >= STALL_SECONDS:
                raise ImageError("the image is not kept", why=f"no more of it came for {STALL_SECONDS:g} s")


def _not_wanted() -> ImageError:
    return ImageError("the image is not kept", why="it is not wanted any more")
