"""A file that is to hold an image: whole under its name, or not there; within limits; encrypted if wished.

in          bytes, in order; at the end what the first of them are to be
out         the file under its name, after everything is on the disk; ``ImageError``
invariant   nothing is under the name before ``finish``; what a killed writer leaves is called so that
            ``remove_unfinished`` knows it; nothing is written in the clear if a key is given

Encryption is age's, by its own program: the image goes through it on its way to the disk.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from kbridge.errors import ImageError

UNFINISHED: Final = ".unfinished-"
LOOK_BYTES: Final = 8 << 20
"""After how many more bytes limits are looked at again."""
AGE: Final = "age"
AGE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may take."""

    most_bytes: int
    """Of its file."""
    free_bytes: int
    """What must be left free of the disk."""


class ImageFile:
    """A file in the making; the module's text says how.

    ``recipients``: age's public keys, any of which reads it; none: it is not encrypted.  Raises ``ImageError``, as does
    every method; nothing is left of the file then, once ``discard`` was called.
    """

    def __init__(self, path: Path, limits: ImageLimits, recipients: Sequence[str] = ()) -> None:
        self.path = path
        self.is_encrypted = bool(recipients)
        self.size = 0
        """Bytes on the disk when limits were looked at last, and what was written since."""
        self._limits = limits
        self._looked_at = 0
        self._age: subprocess.Popen[bytes] | None = None
        program = _age() if recipients else ""
        try:
            descriptor, name = tempfile.mkstemp(prefix=f"{UNFINISHED}{path.name}-", dir=path.parent)
        except OSError as error:
            raise _cannot_write(path, error) from error
        self._unfinished = Path(name)
        self._file: IO[bytes] = os.fdopen(descriptor, "w+b", buffering=0)
        try:
            self._check()
            if recipients:
                self._age = _encrypting(program, recipients, self._file)
        except BaseException:
            self.discard()
            raise

    @property
    def unfinished(self) -> Path:
        """The file as long as it is not finished."""
        return self._unfinished

    def write(self, data: bytes) -> None:
        """Write bytes behind those before."""
        out = self._file if self._age is None else self._age.stdin
        assert out is not None, "age has a pipe"
        try:
            view = memoryview(data)
            while view:
                view = view[out.write(view) :]
        except OSError as error:
            if self._age is not None:
                raise self._age_failed(str(error)) from error
            raise _cannot_write(self.path, error) from error
        self.size += len(data)
        if self.size - self._looked_at >= LOOK_BYTES:
            self._check()

    def overwrite(self, data: bytes) -> None:
        """Replace the first bytes; not of an encrypted file."""
        assert self._age is None, "what is encrypted is not changed"
        try:
            os.pwrite(self._file.fileno(), data, 0)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def sync(self) -> None:
        """Have everything on the disk; nothing is written after, but ``overwrite``."""
        age = self._age
        try:
            if age is not None:
                assert age.stdin is not None, "age has a pipe"
                age.stdin.close()
                if age.wait(AGE_SECONDS):
                    raise self._age_failed(f"it ended with status {age.returncode}")
            os.fsync(self._file.fileno())
        except subprocess.TimeoutExpired as error:
            raise self._age_failed(f"it did not end within {AGE_SECONDS:g} s") from error
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self._check()

    def finish(self) -> None:
        """Give the file its name."""
        try:
            os.fsync(self._file.fileno())
            self._unfinished.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self._close()

    def discard(self) -> None:
        """Remove what is not finished; safe to call at any time."""
        self._close()
        self._unfinished.unlink(missing_ok=True)

    def _close(self) -> None:
        age, self._age = self._age, None
        if age is not None:
            if age.poll() is None:
                age.kill()
            for stream in (age.stdin, age.stderr):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
            age.wait()
        self._file.close()

    def _check(self) -> None:
        """Look at the limits."""
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            free = shutil.disk_usage(self.path.parent).free
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self._looked_at = self.size
        if self.size > self._limits.most_bytes:
            raise ImageError(
                f"the image is not kept: it has more than {self._limits.most_bytes:,} bytes",
                todo="raise the limit of images' sizes",
            )
        if free < self._limits.free_bytes:
            raise ImageError(
                f"the image is not kept: only {free:,} bytes are left of the disk of {self.path.parent}",
                why=f"{self._limits.free_bytes:,} are to be left",
                todo="make room, or lower what must be left",
            )

    def _age_failed(self, why: str) -> ImageError:
        age = self._age
        assert age is not None
        said = ""
        with suppress(subprocess.TimeoutExpired):
            # It says why before it ends.
            age.wait(1.0)
            said = age.stderr.read(4096).decode("utf-8", "replace") if age.stderr is not None else ""
        return ImageError(
            "the image cannot be encrypted",
            why=" ".join(said.split()) or why,
            todo="see whether the key is an age public key (age1…)",
        )


def remove_unfinished(folder: Path) -> int:
    """Remove what writers that were killed left in a folder in which nobody writes; return how many files."""
    found = list(folder.glob(f"{UNFINISHED}*"))
    for one in found:
        one.unlink(missing_ok=True)
    return len(found)


def _cannot_write(path: Path, error: OSError) -> ImageError:
    return ImageError(f"{path} cannot be written", why=error.strerror or str(error))


def _age() -> str:
    program = shutil.which(AGE)
    if program is None:
        raise ImageError(
            "the image cannot be encrypted", why="age is not installed", todo="apt-get install age"
        )
    return program


def _encrypting(program: str, recipients: Sequence[str], out: IO[bytes]) -> subprocess.Popen[bytes]:
    keys = [word for one in recipients for word in ("--recipient", one)]
    try:
        return subprocess.Popen(  # noqa: S603 (its arguments are configured)
            [program, "--encrypt", *keys],
            stdin=subprocess.PIPE, stdout=out, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
    except OSError as error:
        raise ImageError("the image cannot be encrypted", why=str(error)) from error
