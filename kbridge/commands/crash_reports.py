"""``kbridge crash ls``, ``show``, ``export``, ``capture`` and ``watch``: what guests died of.

Reads through the relay, or without it, from the files in the configured folder.
"""

from __future__ import annotations

import json
import os
import tarfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from kbridge.control import Directories, RelayDown, guest_path, relay
from kbridge.errors import KbridgeError
from kbridge.options import relay_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kbridge.crash.store import Store

SHOWN: Final = 30
POLL_SECONDS: Final = 0.2
_STATES: Final = {"pending": "yellow", "incomplete": "yellow", "complete": "green"}


@click.command("ls")
@relay_options
@click.argument("guest", required=False)
@click.option("--json", "as_list", is_flag=True, help="A list of JSON objects.")
@click.option("--all", "every", is_flag=True, help=f"Each crash, not only the last {SHOWN}.")
def ls_command(
    control: str | None, config: str | None, guest: str | None, *, as_list: bool, every: bool
) -> None:
    """List the crashes that are kept, the newest first; COUNT is how often one of this title was noticed."""
    found = _listed(control, config, guest)
    if as_list:
        click.echo(json.dumps(found))
        return
    if not found:
        click.echo("no crash is kept" if guest is None else f"no crash of {guest} is kept")
        return
    for line in _table(found if every else found[:SHOWN]):
        click.echo(line)
    if len(found) > SHOWN and not every:
        click.echo(f"… and {len(found) - SHOWN} older ones: --all")


@click.command("show")
@relay_options
@click.argument("crash", metavar="ID")
@click.option("--json", "as_object", is_flag=True, help="report.json.")
def show_command(control: str | None, config: str | None, crash: str, *, as_object: bool) -> None:
    """Show the report of a crash; `last` is the newest."""
    path = folder_of(control, config, crash)
    markdown, document = _report(path)
    if as_object:
        click.echo(json.dumps(document))
        return
    for line in _rendered(markdown):
        click.echo(line)
    click.echo(click.style(f"\n{path}", dim=True))


@click.command("export")
@relay_options
@click.argument("crash", metavar="ID")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--without-image", is_flag=True, help="Leave out the memory image, which holds all of the guest's data."
)
def export_command(
    control: str | None, config: str | None, crash: str, file: Path | None, *, without_image: bool
) -> None:
    """Put all files of a crash into one archive, ID.tar.gz if FILE is not given."""
    path = folder_of(control, config, crash)
    target = file or Path(f"{path.name}.tar.gz")
    made = target.with_name(f".{target.name}.new")
    try:
        with tarfile.open(made, "w:gz", compresslevel=1) as archive:
            for one in sorted(path.iterdir()):
                if not (one.name.startswith(".") or (without_image and one.name.startswith("vmcore"))):
                    archive.add(one, f"{path.name}/{one.name}")
        made.replace(target)
    except OSError as error:
        raise KbridgeError(f"{target} cannot be written", why=error.strerror or str(error)) from error
    finally:
        made.unlink(missing_ok=True)
    click.echo(f"{target}: {target.stat().st_size:,} bytes")


@click.command("capture")
@relay_options
@click.argument("guest")
@click.option("--title", default="", help="What to call it.")
@click.option("--json", "as_object", is_flag=True, help="report.json.")
def capture_command(
    control: str | None, config: str | None, guest: str, *, title: str, as_object: bool
) -> None:
    """Take the evidence of a guest now, as if it had crashed; one that runs is paused meanwhile."""
    api = relay(control, config)
    answer = api.post(guest_path(guest, "/capture"), {"title": title})
    # The report is there; what takes longer comes after it.
    while answer["report"]["state"] == "pending":
        time.sleep(POLL_SECONDS)
        answer = api.get(f"/crashes/{quote(answer['id'])}")
    if as_object:
        click.echo(json.dumps(answer["report"]))
        return
    seconds = sum(part["seconds"] or 0.0 for part in answer["report"]["parts"].values())
    click.echo(
        f"{answer['id']}: {answer['report']['state']}, in {seconds:.1f} s; `kbridge crash show {answer['id']}`"
    )


@click.command("watch")
@relay_options
@click.argument("guest", required=False)
@click.option("--json", "as_lines", is_flag=True, help="A JSON object a line.")
def watch_command(control: str | None, config: str | None, guest: str | None, *, as_lines: bool) -> None:
    """Print a line for each crash as it comes, until Ctrl-C."""
    rest = b""
    for piece in relay(control, config).stream("/crash-events", guest=guest, follow="true"):
        *whole, rest = (rest + piece).split(b"\n")
        for one in whole:
            click.echo(one.decode() if as_lines else _told(json.loads(one)))


# ── where they are ──────────────────────────────────────────────────────────────────────────────────────────────


def _listed(control: str | None, config: str | None, guest: str | None) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = relay(control, config).get("/crashes", guest=guest)["crashes"]
    except RelayDown:
        found = _store(config).listed(guest)
    return found


def _store(config: str | None) -> Store:
    """Open what is kept, without the relay."""
    from kbridge.crash.store import FOLDER, Store  # noqa: PLC0415 (where the relay answers, it is not needed)

    store = Store(Directories(config, os.environ).state / FOLDER, time.time_ns)
    store.look()
    return store


def folder_of(control: str | None, config: str | None, crash: str) -> Path:
    """Return the folder of a crash."""
    listed = _listed(control, config, None)
    if crash == "last" and listed:
        return Path(listed[0]["path"])
    alike = [one for one in listed if one["id"].startswith(crash)]
    exact = [one for one in alike if one["id"] == crash]
    if exact or len(alike) == 1:
        return Path((exact or alike)[0]["path"])
    if alike:
        names = ", ".join(one["id"] for one in alike[:5])
        raise KbridgeError(
            f"{len(alike)} crashes begin with {crash!r}", why=names, todo="give more of the name"
        )
    raise KbridgeError(f"no crash {crash!r} is kept", todo="`kbridge crash ls` shows those that are")


def _report(path: Path) -> tuple[str, dict[str, Any]]:
    from kbridge.crash.store import read_report  # noqa: PLC0415 (the list does not need it)

    found = read_report(path)
    if found is None:
        raise KbridgeError(
            f"the report in {path} cannot be read", why="it belongs to another user, or went meanwhile"
        )
    return found


# ── for people ──────────────────────────────────────────────────────────────────────────────────────────────────


def _table(found: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    rows = [(one["id"], str(one["count"]), str(one["state"]), _clean(one["title"])) for one in found]
    heads = ("ID", "COUNT", "STATE", "TITLE")
    widths = [max(len(row[column]) for row in (*rows, heads)) for column in range(3)]
    yield f"{heads[0]:{widths[0]}}  {heads[1]:>{widths[1]}}  {heads[2]:{widths[2]}}  {heads[3]}"
    for id_, count, state, title in rows:
        yield f"{id_:{widths[0]}}  {count:>{widths[1]}}  {state:{widths[2]}}  {title}"


def _rendered(markdown: str) -> Iterable[str]:
    """Return the report for a terminal: headings in bold, nothing else is marked."""
    for line in markdown.splitlines():
        if line.startswith("# "):
            yield click.style(_clean(line[2:]), bold=True, fg="red")
        elif line.startswith("## "):
            yield click.style(_clean(line[3:]), bold=True)
        elif line.startswith("    => "):
            yield click.style(_clean(line), fg="red")
        else:
            yield _clean(line).replace("&lt;", "<").replace("**", "")


def _told(one: Mapping[str, Any]) -> str:
    moment = datetime.fromisoformat(one["time"]).astimezone()
    name = f"  {one['id']}" if one.get("id") else ""
    count = f" ({one['count']} times)" if one["count"] > 1 else ""
    state = f", {one['state']}" if one["what"] == "finished" else ""
    return f"{moment:%H:%M:%S}  {one['guest']}  {one['what']}{state}: {_clean(one['title'])}{count}{name}"


def _clean(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text)
