"""``kbridge symbols``: names and source lines out of a file with symbols, without a relay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kbridge.errors import KbridgeError
from kbridge.options import debug_dir_option

if TYPE_CHECKING:
    from kbridge.debuginfo.direct import Direct
    from symbols.index import Index
    from symbols.lines import Frame
    from symbols.model import BuildId
    from symbols.table import Symbol

_NUMBER: Final = re.compile(r"(?:0[xX])?([0-9a-fA-F]{1,16})")


class Address(click.ParamType[int]):
    """An address in hexadecimal, with or without ``0x``."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        match = _NUMBER.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no address in hexadecimal", param, ctx)
        return int(match.group(1), 16)


_Given = Callable[..., None]


class BuildIdType(click.ParamType[str]):
    """A build-id in hexadecimal."""

    name = "build-id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read it."""
        if not re.fullmatch(r"(?:[0-9a-fA-F]{2}){2,40}", str(value)):
            self.fail(f"{value!r} is no build-id in hexadecimal", param, ctx)
        return str(value).lower()


def _source(command: _Given) -> _Given:
    """Give a command the options that say which file it is about."""
    for option in (
        debug_dir_option,
        click.option(
            "--build-id", type=BuildIdType(), metavar="ID", help="Its build-id, in place of --vmlinux."
        ),
        click.option(
            "--vmlinux",
            type=click.Path(path_type=Path),
            help="The kernel's file with symbols, as its build left it, or a module's.",
        ),
    ):
        command = option(command)
    return command


_slide = click.option(
    "--slide", type=Address(), default=0, metavar="N", help="By how much KASLR moved the kernel."
)
_json = click.option("--json", "as_json", is_flag=True, help="JSON, one object on each line.")


@click.group("symbols")
def command() -> None:
    """Look up names and source lines of a kernel.

    They come from an index that is made once for each file and kept in `$XDG_CACHE_HOME/kbridge/symbols`, by build-id.
    """


@command.command("index")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def index_command(files: tuple[Path, ...]) -> None:
    """Make the index of kernels' files now, so that nobody waits for it later."""
    for file in files:
        index = open_index(file)
        lines = "with lines" if index.has_lines else "without lines: the file has no DWARF"
        click.echo(f"{index.build_id}  {len(index)} symbols, {lines}  {file}")


@command.command("lookup")
@_source
@_slide
@_json
@click.argument("what", nargs=-1, required=True, metavar="NAME|ADDRESS...")
def lookup_command(
    vmlinux: Path | None,
    build_id: str | None,
    folders: tuple[Path, ...],
    slide: int,
    what: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Say where names are, all of them, and which symbol addresses belong to.

    A name that is also a number in hexadecimal, such as `add`, is taken for a name if there is one.
    """
    index = _index(vmlinux, build_id, folders)
    missing = []
    for one in what:
        named = index.named(one)
        match = _NUMBER.fullmatch(one)
        if named:
            for symbol in named:
                _show(_symbol(symbol, slide), as_json=as_json)
        elif match is not None and (found := index.symbol(int(match.group(1), 16) - slide)) is not None:
            address = int(match.group(1), 16)
            symbol, reach = found
            _show(
                {
                    "address": hex(address),
                    "name": symbol.name,
                    "offset": address - slide - symbol.address,
                    "size": symbol.size,
                    "reach": reach,
                },
                as_json=as_json,
            )
        else:
            missing.append(one)
    if missing:
        raise KbridgeError(f"{vmlinux or build_id} has no symbol for {', '.join(missing)}")


@command.command("addr2line")
@_source
@_slide
@_json
@click.option(
    "--no-index",
    "is_direct",
    is_flag=True,
    help="Read the file itself: quick for a file that is asked once, without inlined calls.",
)
@click.argument("addresses", nargs=-1, required=True, type=Address())
def addr2line_command(
    vmlinux: Path | None,
    build_id: str | None,
    folders: tuple[Path, ...],
    slide: int,
    addresses: tuple[int, ...],
    *,
    as_json: bool,
    is_direct: bool,
) -> None:
    """Say which source lines addresses are of, and which calls were inlined there, the innermost first."""
    if is_direct:
        from kbridge.debuginfo.direct import direct  # noqa: PLC0415 (what reads a warm cache loads little)

        if vmlinux is None:
            raise click.UsageError("--no-index needs --vmlinux.")
        with direct(vmlinux) as file:
            _tell(file, slide, addresses, as_json=as_json)
    else:
        _tell(_index(vmlinux, build_id, folders), slide, addresses, as_json=as_json)


def _tell(source: Index | Direct, slide: int, addresses: tuple[int, ...], *, as_json: bool) -> None:
    for address in addresses:
        linked = address - slide
        found, frames = source.symbol(linked), source.frames(linked)
        if as_json:
            _print_json(
                {
                    "address": hex(address),
                    "symbol": None if found is None else found[0].name,
                    "offset": None if found is None else linked - found[0].address,
                    "frames": [
                        {"function": one.function, "file": one.file, "line": one.line} for one in frames
                    ],
                }
            )
            continue
        click.echo(f"{address:#018x}  {place_of(found, linked)}")
        for text in frame_lines(frames):
            click.echo(f"    {text}")


def _print_json(values: dict[str, Any]) -> None:
    import json  # noqa: PLC0415 (most do not want it)

    click.echo(json.dumps(values))


def _index(vmlinux: Path | None, build_id: str | None, folders: tuple[Path, ...]) -> Index:
    """Return the index of the file that the options name."""
    if (vmlinux is None) == (build_id is None):
        raise click.UsageError("Give either --vmlinux or --build-id.")
    if vmlinux is not None:
        return open_index(vmlinux, folders)
    from kbridge.debuginfo import cache  # noqa: PLC0415 (what reads a warm cache loads little)

    wanted: Any = build_id

    def find() -> Path | None:
        from kbridge.debuginfo.finders import Finder  # noqa: PLC0415
        from kbridge.debuginfo.separate import DEBUG_DIRS  # noqa: PLC0415

        return Finder(None, (*folders, *DEBUG_DIRS), cache.folder()).by_build_id(wanted)

    return cache.index_by_id(wanted, find, lambda path: open_index(path, folders), cache.folder())


def open_index(vmlinux: Path, folders: tuple[Path, ...] = ()) -> Index:
    """Return a file's index, made now if it must be, which is said; ``folders`` may have its lines if it has none."""
    from kbridge.debuginfo import cache  # noqa: PLC0415 (what reads a warm cache loads little)

    def build(path: Path, build_id: BuildId) -> Iterator[bytes]:
        from kbridge.debuginfo.building import build as make  # noqa: PLC0415

        return make(path, build_id)

    def separate(path: Path, build_id: BuildId) -> Path | None:
        from kbridge.debuginfo.separate import DEBUG_DIRS, with_lines  # noqa: PLC0415

        return with_lines(path, build_id, (*folders, *DEBUG_DIRS))

    def begin() -> None:
        click.echo(f"kbridge: indexing {vmlinux}, once", err=True)

    return cache.index_of(vmlinux, build, cache.folder(), begin, separate)


def place_of(found: tuple[Symbol, int] | None, linked: int) -> str:
    """Return ``symbol+offset/size`` as the kernel prints it, ``??`` where there is none."""
    if found is None:
        return "??"
    symbol, reach = found
    return f"{symbol.name}+{linked - symbol.address:#x}/{reach:#x}"


def frame_lines(frames: tuple[Frame, ...]) -> list[str]:
    """Return a line for each call, aligned: function, file and line, whether it was inlined."""
    width = max((len(one.function or "??") for one in frames), default=0)
    texts = [f"{one.function or '??':{width}}  {one.file or '??'}:{one.line or '?'}" for one in frames]
    return [*(f"{text}  (inlined)" for text in texts[:-1]), *texts[-1:]]


def _symbol(symbol: Symbol, slide: int) -> dict[str, Any]:
    address = symbol.address if symbol.absolute else symbol.address + slide
    return {
        "address": hex(address),
        "name": symbol.name,
        "size": symbol.size,
        "kind": symbol.kind,
        "absolute": symbol.absolute,
    }


def _show(values: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _print_json(values)
        return
    address = int(values["address"], 16)
    if "offset" in values:
        click.echo(f"{address:#018x}  {values['name']}+{values['offset']:#x}/{values['reach']:#x}")
    else:
        note = "  does not move with the kernel" if values["absolute"] else ""
        click.echo(f"{address:#018x}  {values['name']}  {values['size']} bytes, {values['kind']}{note}")
