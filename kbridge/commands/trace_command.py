"""``kbridge trace``."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from kbridge.commands.log_command import Moment
from kbridge.control import Directories, Refused, RelayDown, guest_path, relay
from kbridge.errors import GuestError
from kbridge.options import relay_options
from kbridge.trace.reader import Later, TraceReader, as_json, from_json
from kbridge.trace.record import RING_NAME
from kbridge.trace.ring import ChunkView
from kbridge.trace.text import TraceText

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from kbridge.trace.reader import Line

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,30}")


@click.command("trace")
@relay_options
@click.argument("guest")
@click.option(
    "--session", metavar="NAME", help="Of this session only; `stub`: what the relay says to the stub."
)
@click.option("-f", "--follow", is_flag=True, help="From now on, as they come; Ctrl-C ends.")
@click.option("-n", "--last", type=click.IntRange(0, 1_000_000), metavar="N", help="The last N only.")
@click.option(
    "--since", type=Moment(), metavar="T", help="Nothing older: 10m, 2h, 1d, 14:30, or an ISO time."
)
@click.option("--json", "as_objects", is_flag=True, help="A JSON object a line.")
@click.option("--raw", is_flag=True, help="The bytes as they passed, not decoded, acknowledgements too.")
def command(
    control: str | None,
    config: str | None,
    guest: str,
    *,
    session: str | None,
    follow: bool,
    last: int | None,
    since: datetime | None,
    as_objects: bool,
    raw: bool,
) -> None:
    """Show what debuggers and stub say to each other.

    A line is a packet and what it means.  `->` is towards the guest, `<-` from it; the relay stands between the
    debuggers' sessions and `stub`, and answers much by itself.  Without --follow the whole record is printed, which
    works without a relay too.  The record holds the memory that was read.
    """
    query: dict[str, str | int | None] = {
        "session": session,
        "since": None if since is None else since.isoformat(),
        "last": last,
        "raw": "true" if raw else None,
        "follow": "true" if follow else None,
    }
    objects = _objects(control, config, guest, query, since)
    # On a terminal lines are cut to fit, but for the bytes themselves, which are asked for whole.
    terminal = sys.stdout.isatty()
    color = terminal and not os.environ.get("NO_COLOR")
    width = shutil.get_terminal_size().columns if terminal and not raw else None
    text = TraceText(width=width, color=color)
    out = sys.stdout.buffer
    try:
        for fields in objects:
            words = json.dumps(fields) + "\n" if as_objects else text.line(from_json(fields))
            out.write(words.encode())
            if follow:
                out.flush()
        out.flush()
    except KeyboardInterrupt:
        if not follow:
            raise


def _objects(
    control: str | None,
    config: str | None,
    guest: str,
    query: dict[str, str | int | None],
    since: datetime | None,
) -> Iterator[dict[str, Any]]:
    """Yield the lines from the relay if it has the guest, else from its file."""
    try:
        rest = b""
        for piece in relay(control, config).stream(guest_path(guest, "/packets"), **query):
            *whole, rest = (rest + piece).split(b"\n")
            yield from map(json.loads, whole)
    except (RelayDown, Refused) as error:
        if isinstance(error, Refused) and error.kind != "unknown-guest":
            raise
        if isinstance(error, RelayDown) and error.began:
            raise
        for line in _offline(config, guest, query, since, error):
            yield as_json(line)


def _offline(
    config: str | None,
    guest: str,
    query: dict[str, str | int | None],
    since: datetime | None,
    why: RelayDown | Refused,
) -> Iterator[Line]:
    directory = Directories(config, os.environ).state / "guests" / guest
    path = directory / RING_NAME
    if not _NAME.fullmatch(guest) or not path.exists():
        reached = isinstance(why, Refused)
        raise GuestError(
            f"no packets of {guest!r} were recorded",
            why=f"there is no {path}" if _NAME.fullmatch(guest) else "that is no guest's name",
            todo="`kbridge ls` shows the guests" if reached else f"and {why}",
        )
    if query["follow"]:
        raise GuestError(f"{guest} cannot be followed", why=str(why))
    ring = ChunkView.open(path)
    try:
        last, session = query["last"], query["session"]
        reader = TraceReader(
            ring,
            session=None if session is None else str(session),
            since_ns=None if since is None else int(since.timestamp() * 1e6) * 1000,
            last=None if last is None else int(last),
            raw=query["raw"] is not None,
        )
        while (line := reader.next()) is not None:
            if not isinstance(line, Later):
                yield line
    finally:
        ring.close()
