"""``kbridge decode``: a kernel's log with source lines and instructions put in, without a relay."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from kbridge.errors import KbridgeError
from kbridge.options import debug_dir_option
from symbols.backtrace import read
from symbols.errors import SymbolError
from symbols.explanation import Explainer, Source

if TYPE_CHECKING:
    from kbridge.debuginfo.finders import Finder
    from symbols.model import BuildId

DEBUG_DIRS: Final = ("/usr/lib/debug",)
MOST_BYTES: Final = 1 << 16
MOST_LINES_BEFORE: Final = 10_000
"""Lines in which a kernel tells its release before its file is looked for."""
_NAMES: Final = ("boot/vmlinux-{}", "lib/modules/{}/vmlinux", "usr/lib/debug/boot/vmlinux-{}", "vmlinux-{}")
_BUILT: Final = "/lib/modules/{}/build/vmlinux"


@click.command("decode")
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--vmlinux",
    type=click.Path(path_type=Path),
    help="The kernel's file with symbols; else it is looked for by the release that the log tells.",
)
@debug_dir_option
def command(file: BinaryIO, vmlinux: Path | None, folders: tuple[Path, ...]) -> None:
    """Explain the oopses and backtraces in a kernel's log.

    Reads FILE, or what comes in, and prints it with what it means: source lines, inlined calls, the instructions
    of `Code:` with the faulting one marked, and what that was about to do with which registers.  Modules are
    found beside the kernel's file and in the folders.

    Lines keep what stands before them, such as time stamps; what cannot be explained is printed as it came.
    """
    folders = (*folders, *map(Path, DEBUG_DIRS))
    texts = _lines(file)
    if vmlinux is None:
        begun = list(_until_release(islice(texts, MOST_LINES_BEFORE)))
        vmlinux = find_vmlinux(find_release(begun[-1:]), folders)
        texts = chain(begun, texts)
    from kbridge.debuginfo import cache  # noqa: PLC0415 (after what may already be wrong)

    explainer = open_explainer(vmlinux, folders)
    out = sys.stdout.buffer
    try:
        for text in explainer.explain(texts):
            out.write(text.encode("utf-8", "surrogateescape") + b"\n")
            if not file.seekable():
                # Somebody may be looking on.
                out.flush()
    except SymbolError as error:
        raise KbridgeError(
            "an index is damaged", why=str(error), todo=f"remove {cache.folder()}, it is made anew"
        ) from error
    out.flush()
    if explainer.other_builds > explainer.explained:
        raise KbridgeError(
            f"{explainer.other_builds} places have other sizes in {vmlinux}",
            why="it is of another build than the kernel that wrote this",
            todo="give that kernel's own vmlinux",
        )


def _lines(file: BinaryIO) -> Iterator[str]:
    """Return the lines without their ends; one that is longer than ``MOST_BYTES`` comes in pieces."""
    while piece := file.readline(MOST_BYTES):
        yield piece.rstrip(b"\r\n").decode("utf-8", "surrogateescape")


def _until_release(texts: Iterator[str]) -> Iterator[str]:
    for line in read(texts):
        yield line.text
        if line.release is not None:
            return


def find_vmlinux(name: str | None, folders: tuple[Path, ...]) -> Path:
    """Return the file of the kernel of a release, which a log tells or not.  Raises ``KbridgeError``."""
    if name is None:
        raise KbridgeError(
            "the log does not say which kernel it is of",
            why="no line has `Linux version`, or CPU, PID and release",
            todo="give --vmlinux",
        )
    # A release is made of letters, digits and a few signs: it is no path.
    places = [folder / pattern.format(name) for folder in folders for pattern in _NAMES]
    for path in (*places, Path(_BUILT.format(name))):
        if path.is_file():
            return path
    raise KbridgeError(
        f"there is no vmlinux of {name}",
        why=f"looked in {', '.join(map(str, folders))}",
        todo="install the kernel's debug package, or give --vmlinux or --debug-dir",
    )


def find_release(texts: Iterable[str]) -> str | None:
    """Return the release of the kernel that wrote the last of these lines; None where no line tells one."""
    telling = (one for one in texts if "CPU: " in one or "Linux version " in one)
    found = None
    for line in read(telling):
        found = line.release or found
    return found


def open_explainer(vmlinux: Path, folders: tuple[Path, ...]) -> Explainer:
    """Return what explains lines of this kernel's; ``folders``: where its modules may be."""
    from kbridge.commands.symbols_command import open_index  # noqa: PLC0415 (after what may already be wrong)

    return Explainer(open_index(vmlinux, folders), _Modules(vmlinux, folders).find)


class _Modules:
    """Indexes of modules' files, each looked for once."""

    def __init__(self, vmlinux: Path, folders: tuple[Path, ...]) -> None:
        self._places = vmlinux, folders
        self._finder: Finder | None = None
        self._known: dict[tuple[str, str | None], Source | None] = {}

    def find(self, name: str, build_id: BuildId | None) -> Source | None:
        """Return the index of a module; None, which is said once, where there is none."""
        key = name, build_id
        if key not in self._known:
            self._known[key] = self._open(name, build_id)
        return self._known[key]

    def _open(self, name: str, build_id: BuildId | None) -> Source | None:
        from kbridge.commands.symbols_command import open_index  # noqa: PLC0415
        from kbridge.debuginfo.finders import Finder  # noqa: PLC0415 (few logs have modules)

        self._finder = self._finder or Finder(*self._places)
        path = self._finder.module_with_lines(name, build_id)
        if path is None:
            of = "" if build_id is None else f" of build-id {build_id}"
            click.echo(f"kbridge: no file of module {name}{of}; give its folder with --debug-dir", err=True)
            return None
        try:
            return open_index(path, self._places[1])
        except KbridgeError as error:
            click.echo(f"kbridge: module {name}: {error}", err=True)
            return None
