"""``kbridge expect``."""

from __future__ import annotations

import json
import sys
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kbridge.commands.pen_question import ask_for_pen
from kbridge.commands.secret_files import first_bytes, secret_of
from kbridge.control import Refused, RelayDown, guest_path, relay
from kbridge.errors import GuestError, KbridgeError, ScriptError
from kbridge.expect.script import MAX_TEXT, read, secret_names
from kbridge.options import relay_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kbridge.control import Control


class BadScript(click.ClickException):
    """The script is not valid: nothing was sent."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print all mistakes, one a line."""
        click.echo(self.message, file=file, err=file is None)


@click.command("expect")
@relay_options
@click.argument("guest")
@click.argument("script", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", help="Give one of its variables a value.")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME[=FILE]",
    help="Give a secret: the first line of FILE; without FILE it is asked for. No transcript shows it.",
)
@click.option("--force", is_flag=True, help="Take the pen from whoever types on the console.")
@click.option("--json", "as_json", is_flag=True, help="Print the transcript as JSON, an object a line.")
def command(
    control: str | None,
    config: str | None,
    guest: str,
    script: str,
    *,
    sets: Sequence[str],
    secrets: Sequence[str],
    force: bool,
    as_json: bool,
) -> None:
    """Run a script on a guest's console: wait, send, branch.

    SCRIPT is a file, or - for stdin; docs/expect.md has the language.  Shows what it sees and sends as it goes,
    which is on the guest's time line too (`kbridge log`).  It holds the pen until it ends; Ctrl-C ends it.

    Exit status: 0 done; 1 failed; 2 the script is not valid.
    """
    text = _read(script)
    values = _values(sets)
    hidden = _secrets(secrets, text)
    try:
        read(text, values, hidden)
    except ScriptError as error:
        raise BadScript(_mistakes(script, error)) from error
    body = {
        "script": text,
        "name": Path(script).name[:100] if script != "-" else "",
        "set": values,
        "secrets": hidden,
    }
    end = None
    try:
        for entry in _transcript(relay(control, config), guest, body, force=force):
            if as_json:
                click.echo(json.dumps(entry))
            else:
                _show(entry)
            end = entry if entry["kind"] == "end" else None
    except KeyboardInterrupt:
        raise GuestError("cancelled by Ctrl-C", why=f"the pen of {guest} is free again") from None
    if end is None:
        raise RelayDown("the relay went away before the end", todo=f"`kbridge log {guest}` has what was done")
    if end["state"] != "done":
        raise KbridgeError(end["what"], why=end["why"], todo=end["todo"])


def _read(script: str) -> str:
    try:
        data = sys.stdin.buffer.read(4 * MAX_TEXT) if script == "-" else first_bytes(script, 4 * MAX_TEXT)
        return data.decode()
    except OSError as error:
        raise BadScript(f"kbridge: cannot read {script}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadScript(f"{script}: it is not UTF-8: {error}") from error


def _values(sets: Sequence[str]) -> dict[str, str]:
    found = {}
    for one in sets:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--set takes NAME=VALUE, not {one!r}")
        found[name] = value
    return found


def _secrets(given: Sequence[str], text: str) -> dict[str, str]:
    """Return the secrets' values; those that the script has and nobody gave are asked for at a terminal."""
    found = {}
    for one in given:
        name, equals, path = one.partition("=")
        found[name] = secret_of(path) if equals else _ask(name)
    if sys.stdin.isatty():
        found |= {name: _ask(name) for name in secret_names(text) if name not in found}
    return found


def _ask(name: str) -> str:
    if not sys.stdin.isatty():
        raise click.UsageError(f"there is no terminal to ask for {name}: give --secret {name}=FILE")
    return getpass(f"{name}: ")


def _mistakes(script: str, error: ScriptError) -> str:
    return "\n".join(
        f"{script}:{one.line}: {one.words}" if one.line else f"{script}: {one.words}"
        for one in error.mistakes
    )


def _transcript(
    api: Control, guest: str, body: Mapping[str, Any], *, force: bool
) -> Iterator[dict[str, Any]]:
    """Yield the entries of a run; asks at a terminal before the pen is taken from somebody."""
    path = guest_path(guest, "/expect")
    try:
        yield from _entries(api.run(path, {**body, "force": force}))
    except Refused as error:
        if error.kind == "invalid-script":
            raise BadScript(str(error)) from error
        ask_for_pen(api, guest, error)
        yield from _entries(api.run(path, {**body, "force": True}))


def _entries(pieces: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _show(entry: Mapping[str, Any]) -> None:
    words = entry_words(entry)
    if words:
        where = f"{entry['line']}" + (f" {entry['step']}" if entry["step"] else "") if entry["line"] else ""
        click.echo(f"{entry['elapsed']:8.3f}  {where:16}  {words}")


def entry_words(entry: Mapping[str, Any]) -> str:
    """Return what an entry of a transcript says, in words; nothing for one of a kind that is not known."""
    then = f", {entry['then']}" if entry.get("then") else ""
    match entry["kind"]:
        case "start":
            return f"run {entry['run']} begins"
        case "waits":
            patterns = " or ".join(entry["patterns"]) or "the time"
            return f"waits for {patterns}, at most {entry['seconds']:g} s"
        case "saw":
            return f"saw {entry['pattern']} in {entry['text']} after {entry['waited']:g} s{then}"
        case "timeout":
            return f"did not see it; last came {entry['last']}{then}"
        case "lost":
            return f"the line was lost: {entry['why']}{then}"
        case "gap":
            return f"{entry['lost']} bytes came too fast and were not looked at"
        case "quiet":
            return f"it was quiet after {entry['waited']:g} s"
        case "sent":
            return f"sent {entry['keys']}"
        case "notice":
            return str(entry["text"])
        case "skipped":
            return f"{entry['lost']} lines are missing here: this terminal is too slow"
        case "end":
            words = f": {entry['what']}" if entry["what"] else ""
            return f"{entry['state']}{words}"
        case _:
            return ""
