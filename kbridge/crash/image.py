"""A guest's memory taken through its machine monitor into a file, as long as it takes beside everything else.

```
 QEMU ──dump-guest-memory──▶ pipe ──▶ thread: ImageWriter ──▶ two threads: zstd ──▶ file, in order
   ▲                                          │ closes the pipe
   └── getfd, query-dump ── Machine ◀── reactor ──▶ progress
```

in          a machine, a path, limits
out         the file under its name, and what is in it; ``KbridgeError``
invariant   what fails, or is cancelled, leaves no file and no thread, and the machine as it was: QEMU ends its dump
            when the pipe is closed
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from kbridge.crash.image_file import ImageLimits
from kbridge.crash.image_writer import ImageWriter
from kbridge.errors import ImageError, MachineError

if TYPE_CHECKING:
    from kbridge.hypervisors.interface import Machine

PIPE_BYTES: Final = 1 << 20
PROGRESS_SECONDS: Final = 0.1
_Result = TypeVar("_Result")
Progress = Callable[[int, int], None]
"""Is told how many bytes of memory of how many have come."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is in an image."""

    path: Path
    file_bytes: int
    memory_bytes: int
    processors: int
    vmcoreinfo: bytes | None
    """The text of VMCOREINFO among its notes; None where there is none."""
    vmcoreinfo_from: str
    """Where that is from: ``guest`` (its device), ``caller``, ``memory``, or empty."""
    encrypted: bool
    seconds: float


async def take_image(
    reactor: Any,
    machine: Machine,
    path: Path,
    limits: ImageLimits,
    progress: Progress | None = None,
    *,
    recipients: Sequence[str] = (),
    vmcoreinfo: bytes | None = None,
) -> ImageFacts:
    """Write a machine's memory to ``path``, as a core file in seekable zstd.  A guest that runs is stopped meanwhile.

    ``recipients``: age's public keys, if it is to be encrypted.  ``vmcoreinfo``: its text, where the caller knows it,
    for a guest without such a device; an image that is not encrypted is searched for it otherwise.  Raises
    ``ImageError``, ``MachineError``.
    """
    begun = reactor.seconds()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with suppress(OSError):
        # Beyond what an unprivileged user's pipes may hold it stays as it was.
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    writer = ImageWriter(
        reading,
        path,
        limits,
        recipients=recipients,
        text=vmcoreinfo,
        progress=_seldom(reactor, progress),
    )
    working = _in_thread(reactor, writer.write)
    try:
        refused = await _dump(machine, writing)
        written = await working
        if refused is not None and (writer.is_cut_off or not isinstance(written, ImageError)):
            raise refused
        if isinstance(written, ImageError):
            # QEMU's dump failed for that very reason, which it tells in other words.
            raise written
        kept = await _in_thread(reactor, writer.keep)
        if isinstance(kept, ImageError):
            raise kept
    except BaseException:
        # What is under way ends by itself, within a quarter of a second.
        writer.abandon()
        raise
    return ImageFacts(
        path,
        written.file_bytes,
        written.memory_bytes,
        written.processors,
        written.vmcoreinfo,
        written.vmcoreinfo_from,
        bool(recipients),
        reactor.seconds() - begun,
    )


async def _dump(machine: Machine, writing: int) -> MachineError | None:
    """Have the machine write its memory to a pipe; return why it did not."""
    try:
        await machine.dump_memory(writing, lambda done, total: None)
    except MachineError as error:
        return error
    finally:
        os.close(writing)
    return None


def _in_thread(reactor: Any, work: Callable[[], _Result]) -> Deferred[_Result | ImageError]:
    """Do what blocks in a thread of its own: ten images at once would leave the reactor's threads to nobody else."""
    done: Deferred[_Result | ImageError] = Deferred(lambda _: None)

    def fire(result: _Result | ImageError | Failure) -> None:
        if not done.called:
            done.callback(result)

    def run() -> None:
        result: _Result | ImageError | Failure
        try:
            result = work()
        except ImageError as error:
            result = error
        except BaseException:  # noqa: BLE001 (a bug: it is raised where it is waited for)
            result = Failure()
        reactor.callFromThread(fire, result)

    threading.Thread(target=run, name="kbridge-image", daemon=True).start()
    return done


def _seldom(reactor: Any, progress: Progress | None) -> Progress:
    """Return what tells of progress in the reactor's thread, ten times a second at most."""
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = reactor.seconds()
        if progress is not None and (now - last >= PROGRESS_SECONDS or done == total):
            last = now
            reactor.callFromThread(progress, done, total)

    return tell
