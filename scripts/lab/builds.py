"""What a finished build of a guest is, and the description that lies beside it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import cache, initramfs, modules
from lab.errors import LabError


@dataclass(frozen=True, slots=True)
class Description:
    """What `guest.json` holds: facts of one build, with paths relative to its folder.

    `modules` are loaded at boot, in this order, `more_modules` behind them with `kbridge.modules=all`. `disk` is the
    image of a guest that boots from one; a guest without it is started with its kernel and `initramfs`.
    """

    name: str
    version: str
    release: str
    kernel: str = ""
    vmlinux: str = ""
    modules: tuple[str, ...] = ()
    more_modules: tuple[str, ...] = ()
    disk: str = ""

    def write(self, folder: Path) -> None:
        (folder / "guest.json").write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class Build:
    """One finished build in the cache, ready to start."""

    folder: Path
    description: Description

    @property
    def kernel(self) -> Path:
        return self.folder / self.description.kernel

    @property
    def vmlinux(self) -> Path:
        return self.folder / self.description.vmlinux

    @property
    def initrd(self) -> Path | None:
        """What QEMU loads beside the kernel; None for a guest that boots from a disk."""
        return None if self.disk else (self.folder / "initramfs").resolve()

    @property
    def disk(self) -> Path | None:
        """The image that a guest's own disk is a copy of."""
        return self.folder / self.description.disk if self.description.disk else None

    @property
    def modules(self) -> Path:
        """The folder of the .ko files that the guest loads."""
        return self.folder / "modules"

    @property
    def debug_dir(self) -> Path:
        """A folder for gdb's `debug-file-directory`: vmlinux and the modules' DWARF by build-id."""
        return self.folder / "debug"

    def files(self) -> dict[str, str | None]:
        """Its parts by name, for whoever starts or lists it; None where a guest has none."""
        if self.disk is not None:
            return {
                "disk": str(self.disk),
                **dict.fromkeys(("kernel", "vmlinux", "initrd", "modules", "debug_dir")),
            }
        return {
            "disk": None,
            "kernel": str(self.kernel),
            "vmlinux": str(self.vmlinux),
            "initrd": str(self.initrd),
            "modules": str(self.modules),
            "debug_dir": str(self.debug_dir),
        }

    def ready(self) -> bool:
        if self.disk is not None:
            return self.disk.exists()
        return self.kernel.exists() and self.initrd is not None and self.initrd.exists()

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.lstat().st_blocks * 512 for path in self.folder.rglob("*"))


def load(folder: Path) -> Build:
    try:
        fields = json.loads((folder / "guest.json").read_text())
        fields["modules"] = tuple(fields.get("modules", ()))
        fields["more_modules"] = tuple(fields.get("more_modules", ()))
        return Build(folder, Description(**fields))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LabError(f"{folder} is no build of a guest ({error}); remove it and build again") from error


def find(name: str) -> Build | None:
    """The current build of a guest; None if it was never built, or not to the end."""
    folder = cache.current(name)
    if folder is None:
        return None
    build = load(folder)
    return build if build.ready() else None


def key(version: str, *recipe: str) -> str:
    """A folder's name for a version built by a recipe: everything that shapes the result, as text."""
    digest = hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:12]
    return f"{version.replace(':', '_').replace('~', '_')}-{digest}"


def refresh_initramfs(build: Build) -> None:
    """Make the initramfs of a build whose folder is locked, if its parts changed since."""
    files = modules.find(build.modules)
    described = build.description
    image = initramfs.archive(
        described.name,
        [files[name] for name in described.modules],
        [files[name] for name in described.more_modules],
    )
    target = build.folder / initramfs.name_of(image)
    link = build.folder / "initramfs"
    if target.exists() and link.is_symlink() and link.readlink() == Path(target.name):
        return
    new = build.folder / ".initramfs-new"
    new.write_bytes(initramfs.compress(image))
    new.rename(target)
    new.symlink_to(target.name)
    new.rename(link)
    for old in build.folder.glob("initramfs-*"):
        if old != target:
            old.unlink()
