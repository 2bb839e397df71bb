"""``kbridge log``."""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import click

from kbridge.commands.decode_command import (
    DEBUG_DIRS,
    MOST_BYTES,
    find_release,
    find_vmlinux,
    open_explainer,
)
from kbridge.console.log import History
from kbridge.control import Directories, Refused, RelayDown, guest_path, relay
from kbridge.errors import GuestError, RecordError
from kbridge.frontends.log_text import Format, LogReader
from kbridge.moments import parse_moment
from kbridge.options import relay_options

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,30}")


class Moment(click.ParamType[datetime]):
    """A time, as people write it."""

    name = "time"

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Read it."""
        if isinstance(value, datetime):
            return value
        try:
            return parse_moment(value, datetime.now(UTC).astimezone())
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("log")
@relay_options
@click.argument("guest")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes; Ctrl-C ends.")
@click.option(
    "--since", type=Moment(), metavar="T", help="Nothing older: 10m, 2h, 1d, 14:30, or an ISO time."
)
@click.option(
    "-n", "--lines", type=click.IntRange(0, 1_000_000), metavar="N", help="At most the last N lines."
)
@click.option("--json", "form", flag_value="json", help="A JSON object a line: text, gaps and events.")
@click.option("--raw", "form", flag_value="raw", help="The console's bytes as they came.")
@click.option(
    "--symbols",
    is_flag=True,
    help="Explain places in the kernel's code, as `kbridge decode` does.",
)
@click.option(
    "--vmlinux",
    type=click.Path(path_type=Path),
    help="The kernel's file, with --symbols; else the guest's own, or one of the release that the record tells.",
)
@click.option(
    "--cast", metavar="FILE", type=click.Path(dir_okay=False), help="Write an asciicast v2 recording."
)
def command(
    control: str | None,
    config: str | None,
    guest: str,
    *,
    follow: bool,
    since: datetime | None,
    lines: int | None,
    form: str | None,
    symbols: bool,
    vmlinux: Path | None,
    cast: str | None,
) -> None:
    """Print what a guest's console said and what was done.

    Without --json and --raw it is text for people: no escape sequence of the guest reaches your terminal, and
    events stand between the text on lines that begin with `--`.  Works without a relay too, and for guests
    that are no longer configured.
    """
    if cast is not None and (form is not None or follow):
        raise click.UsageError("--cast goes with neither --json, --raw nor --follow")
    if symbols and (form is not None or cast is not None):
        raise click.UsageError("--symbols goes with neither --json, --raw nor --cast")
    if vmlinux is not None and not symbols:
        raise click.UsageError("--vmlinux is of use with --symbols only")
    chosen: Format = (
        "cast" if cast is not None else "json" if form == "json" else "raw" if form == "raw" else "text"
    )
    found = pieces(control, config, guest, chosen, since, lines, follow=follow)
    if symbols:
        # All that is kept, not only what is shown: a kernel tells its release at the beginning.
        record = pieces(control, config, guest, "text", None, None, follow=False)
        found = _explained(found, vmlinux, _files(control, config, guest), record)
    # Ask before the file is made: a guest that does not exist leaves none behind.
    first = next(found, b"")
    with _output(cast) as out:
        try:
            out.write(first)
            out.flush()
            for piece in found:
                out.write(piece)
                out.flush()
        except KeyboardInterrupt:
            if not follow:
                raise


def _files(control: str | None, config: str | None, guest: str) -> tuple[Path | None, tuple[Path, ...]]:
    """Return the guest's kernel file, where one is configured, and the folders for debug files."""
    folders: tuple[Path, ...] = ()
    configured: str | None = None
    try:
        status = relay(control, config).get(guest_path(guest))
    except (RelayDown, Refused):
        # Without a relay, or for a guest that is no longer configured, the record is there all the same.
        pass
    else:
        configured, folders = status["vmlinux"], tuple(map(Path, status["debug_dirs"]))
    return None if configured is None else Path(configured), (*folders, *map(Path, DEBUG_DIRS))


def _explained(
    pieces: Iterator[bytes],
    vmlinux: Path | None,
    files: tuple[Path | None, tuple[Path, ...]],
    record: Iterator[bytes],
) -> Iterator[bytes]:
    """Yield text by whole lines, with what they mean."""
    configured, folders = files
    vmlinux = vmlinux or configured or find_vmlinux(find_release(_lines(record)), folders)
    for line in open_explainer(vmlinux, folders).explain(_lines(pieces)):
        yield line.encode("utf-8", "surrogateescape") + b"\n"


def _lines(pieces: Iterator[bytes]) -> Iterator[str]:
    """Return the lines without their ends; one that is longer than ``MOST_BYTES`` comes in pieces."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > MOST_BYTES:
            whole, rest = [*whole, rest], b""
        for line in whole:
            yield line.decode("utf-8", "surrogateescape")
    if rest:
        yield rest.decode("utf-8", "surrogateescape")


@contextmanager
def _output(path: str | None) -> Iterator[IO[bytes]]:
    if path is None:
        yield sys.stdout.buffer
        return
    try:
        file = Path(path).open("wb")  # noqa: SIM115 (closed below; only opening it is tried)
    except OSError as error:
        raise RecordError(f"cannot write {path}", why=error.strerror or str(error)) from error
    with file:
        yield file


def pieces(
    control: str | None,
    config: str | None,
    guest: str,
    form: Format,
    since: datetime | None,
    lines: int | None,
    *,
    follow: bool,
) -> Iterator[bytes]:
    """Yield the record from the relay if it has the guest, else from its files."""
    query: dict[str, str | int | None] = {
        "format": form,
        "since": None if since is None else since.isoformat(),
        "lines": lines,
        "follow": "true" if follow else None,
    }
    try:
        yield from relay(control, config).stream(guest_path(guest, "/log"), **query)
    except (RelayDown, Refused) as error:
        if isinstance(error, Refused) and error.kind != "unknown-guest":
            raise
        if isinstance(error, RelayDown) and error.began:
            raise
        yield from _offline(config, guest, form, since, lines, error, follow=follow)


def _offline(
    config: str | None,
    guest: str,
    form: Format,
    since: datetime | None,
    lines: int | None,
    why: RelayDown | Refused,
    *,
    follow: bool,
) -> Iterator[bytes]:
    directory = Directories(config, os.environ).state / "guests" / guest
    if not _NAME.fullmatch(guest) or not directory.is_dir():
        reached = isinstance(why, Refused)
        raise GuestError(
            f"nothing was recorded of {guest!r}",
            why=f"there is no {directory}" if _NAME.fullmatch(guest) else "that is no guest's name",
            todo="`kbridge ls` shows the guests" if reached else f"and {why}",
        )
    if follow:
        raise GuestError(f"{guest} cannot be followed", why=str(why))
    history = History.open(directory)
    try:
        since_ns = None if since is None else int(since.timestamp() * 1e6) * 1000
        reader = LogReader(history, form, since_ns=since_ns, lines=lines, title=guest)
        try:
            while (piece := reader.next()) is not None:
                yield piece
        finally:
            reader.close()
    finally:
        history.close()
