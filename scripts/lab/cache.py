"""Where built guests are kept: whole or not at all, made by one process at a time.

    CACHE/guests/NAME/KEY/        one finished build; KEY has the kernel's version and a hash of the recipe
    CACHE/guests/NAME/current     a link to the KEY that `run` starts
    CACHE/guests/NAME/.lock       held (flock) while somebody builds
    CACHE/guests/NAME/.making-*   a build under way; what a killed one left is removed by the next

The cache is `${XDG_CACHE_HOME:-~/.cache}/kbridge`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

from lab.errors import LabError
from lab.progress import Step

# A kernel's older builds may still be wanted by another checkout of the project, which has another recipe.
_KEPT_BUILDS = 2


def root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative path is to be ignored.
    home = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return home / "kbridge"


def folder(name: str) -> Path:
    return root() / "guests" / name


def current(name: str) -> Path | None:
    """The finished build that is to be used, or None."""
    link = folder(name) / "current"
    return link.resolve() if (link / "guest.json").exists() else None


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """The guest's folder, with nobody else building in it. Waits for another build as long as that takes."""
    base = folder(name)
    if "," in str(base):
        raise LabError(f"{base}: QEMU's options cannot hold a path with a comma; set XDG_CACHE_HOME")
    base.mkdir(parents=True, exist_ok=True)
    with (base / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with Step(f"{name}: waiting for another build of it"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield base


def ensure(base: Path, key: str, make: Callable[[Path], None]) -> Path:
    """The build `key` in a locked folder, made by `make(empty folder)` unless it is there; now current.

    `make` must write `guest.json`. If it raises, the cache is as before.
    """
    entry = base / key
    if not (entry / "guest.json").exists():
        for stale in [*base.glob(".making-*"), *([entry] if entry.exists() else [])]:
            shutil.rmtree(stale)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=base))
        try:
            making.chmod(0o755)
            make(making)
            making.rename(entry)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
    _point(base / "current", key)
    _prune(base, entry)
    return entry


def _point(link: Path, key: str) -> None:
    if link.is_symlink() and link.readlink() == Path(key):
        return
    new = link.with_name(".current-new")
    new.unlink(missing_ok=True)
    new.symlink_to(key)
    new.rename(link)


def _prune(base: Path, keep: Path) -> None:
    builds = [path for path in base.iterdir() if path.is_dir() and not path.is_symlink() and path != keep]
    builds = [path for path in builds if not path.name.startswith(".")]
    for path in sorted(builds, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT_BUILDS - 1 :]:
        shutil.rmtree(path)
