"""An image that may be encrypted by age, in the clear for as long as it is used."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kbridge.crash.image_file import AGE
from kbridge.errors import ImageError

BEGINNING: Final = b"age-encryption.org/v1"


@contextmanager
def decrypted(path: Path, identity: Path | None) -> Iterator[Path]:
    """Give the path of an image in the clear: its own, or that of a temporary file, which only its owner may read.

    ``identity``: the file with age's secret key.  Raises ``ImageError``.
    """
    try:
        with path.open("rb") as file:
            is_encrypted = file.read(len(BEGINNING)) == BEGINNING
    except OSError as error:
        raise ImageError(f"{path} cannot be read", why=error.strerror or str(error)) from error
    if not is_encrypted:
        yield path
        return
    if identity is None:
        raise ImageError(f"{path} is encrypted", todo="give the file with the secret key: --identity FILE")
    program = shutil.which(AGE)
    if program is None:
        raise ImageError(f"{path} is encrypted", why="age is not installed", todo="apt-get install age")
    with tempfile.NamedTemporaryFile(prefix="kbridge-", suffix=".vmcore.zst") as clear:
        done = subprocess.run(  # noqa: S603 (its user's own paths)
            [program, "--decrypt", "--identity", str(identity), str(path)],
            stdin=subprocess.DEVNULL, stdout=clear, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
        if done.returncode:
            words = " ".join(done.stderr.decode("utf-8", "replace").split())
            raise ImageError(f"{path} cannot be decrypted", why=words)
        yield Path(clear.name)
