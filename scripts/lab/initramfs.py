"""The root file system of the test guests: a static busybox, an init script and a few modules."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

from lab import cpio
from lab.errors import LabError

BUSYBOX = Path("/usr/bin/busybox")
_INIT = Path(__file__).with_name("init.sh")
_DIRECTORIES = ("bin", "dev", "etc", "lib", "lib/modules", "proc", "root", "run", "sys", "tmp")


def archive(hostname: str, modules: Sequence[Path], more: Sequence[Path] = ()) -> bytes:
    """The root file system as a cpio archive; `modules` are .ko files in loading order. Same inputs, same bytes.

    `more` are loaded behind them where `kbridge.modules=all` is on the kernel's command line.
    """
    busybox = static_busybox()
    entries = [
        *(cpio.directory(name) for name in _DIRECTORIES),
        cpio.character_device("dev/console", 5, 1),
        cpio.file("bin/busybox", busybox, 0o755),
        cpio.symlink("bin/sh", "busybox"),
        cpio.file("init", _INIT.read_bytes(), 0o755),
        cpio.file("etc/hostname", f"{hostname}\n".encode()),
        cpio.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n"),
        *(cpio.file(f"lib/modules/{path.name}", path.read_bytes()) for path in (*modules, *more)),
        cpio.file("lib/modules/load-order", _lines(modules)),
        cpio.file("lib/modules/load-more", _lines(more)),
    ]
    return cpio.archive(entries)


def static_busybox() -> bytes:
    """The host's own; LabError if it needs libraries that a guest does not have."""
    if not BUSYBOX.exists():
        raise LabError(f"{BUSYBOX} is missing; run scripts/setup, or: sudo apt-get install busybox-static")
    busybox = BUSYBOX.read_bytes()
    # A dynamic program names its loader near its start (PT_INTERP); a static one may have it in its texts.
    if b"/ld-linux" in busybox[:4096]:
        raise LabError(f"{BUSYBOX} is dynamically linked; run: sudo apt-get install busybox-static")
    return busybox


def applets() -> list[str]:
    """The names under which the host's busybox acts."""
    done = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def _lines(modules: Sequence[Path]) -> bytes:
    return "".join(f"{path.name}\n" for path in modules).encode()


def name_of(image: bytes) -> str:
    """A file name that changes with the content, so that a running guest's file is never rewritten."""
    return f"initramfs-{hashlib.sha256(image).hexdigest()[:12]}.cpio.gz"


def compress(image: bytes) -> bytes:
    return gzip.compress(image, compresslevel=6, mtime=0)
