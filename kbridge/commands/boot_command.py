"""``kbridge boot``: restart a guest, and bring it to a root shell or where else it is to stop."""

from __future__ import annotations

import json
import sys
from getpass import getpass
from typing import TYPE_CHECKING, Any, Final

import click

from kbridge.boot.dialogue import LOADER, SECRETS
from kbridge.boot.wishes import STAGES, StopAt, Way, Wishes
from kbridge.commands.pen_question import ask_for_pen
from kbridge.commands.secret_files import secret_of
from kbridge.commands.secret_question import ask_secret, can_ask
from kbridge.control import Refused, RelayDown, guest_path, relay
from kbridge.errors import GuestError, KbridgeError
from kbridge.options import relay_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kbridge.control import Control

WIDTH: Final = 110
_WHOSE: Final = {"loader": "the boot loader's user", "root": "root"}
_COLOURS: Final = {"done": "green", "failed": "red", "cancelled": "yellow"}


@click.command("boot")
@relay_options
@click.argument("guest")
@click.option("--single-user", is_flag=True, help="To a root shell: the kernel gets `single`.")
@click.option("--emergency", is_flag=True, help="To a root shell before anything is mounted: `emergency`.")
@click.option("--init", metavar="CMD", default="", help="Run CMD instead of init, such as /bin/sh.")
@click.option("--append", metavar="ARGS", default="", help="Add words to the kernel's command line.")
@click.option(
    "--break",
    "break_at",
    metavar="STAGE",
    default="",
    help=f"To a shell of the initramfs, at STAGE: {', '.join(STAGES)}.",
)
@click.option(
    "--entry",
    metavar="N",
    default="",
    help="Choose an entry of the loader's menu: its number from 1, or a piece of its title; N>M.",
)
@click.option("--stop-at", type=click.Choice([each.value for each in StopAt]), help="Stop there.")
@click.option(
    "--console",
    metavar="NAME",
    default="",
    help="The kernel's name of this line, such as ttyS0, for a command line that names no serial console.",
)
@click.option(
    "--way",
    type=click.Choice([each.value for each in Way]),
    default=Way.AUTO.value,
    help="By whom the command line is changed; auto: by the debug stub where the loader cannot be stopped.",
)
@click.option(
    "--secret",
    "given",
    multiple=True,
    metavar="NAME[=FILE]",
    help="A password: NAME is loader or root; the first line of FILE; without FILE it is asked for at once.  At a "
    "terminal one that is not given is asked for when the guest asks.",
)
@click.option("--loader-user", metavar="NAME", default="root", help="Whom the loader's password is of.")
@click.option("--no-reset", is_flag=True, help="Wait for somebody else to restart the machine.")
@click.option(
    "--patience",
    metavar="FACTOR",
    type=click.FloatRange(0.01, 100),
    default=1.0,
    help="Multiply all deadlines.",
)
@click.option(
    "--force", is_flag=True, help="Take the pen from whoever types, and reset a guest that a debugger holds."
)
@click.option("--json", "as_json", is_flag=True, help="Print the transcript as JSON, an object a line.")
@click.option("--no-console", is_flag=True, help="Do not go to the console at the end.")
def command(
    control: str | None,
    config: str | None,
    guest: str,
    *,
    given: Sequence[str],
    loader_user: str,
    no_reset: bool,
    patience: float,
    force: bool,
    as_json: bool,
    no_console: bool,
    way: str,
    **wanted: Any,
) -> None:
    """Restart a guest and bring it to a root shell, or where else it is to stop.

    Stops it in its boot loader (GRUB, U-Boot, systemd-boot), changes the kernel's command line, reads that back from
    the screen and boots it; then sees that the shell answers.  Shows the states that the guest goes through, which are
    on its time line too (`kbridge log`).  At a terminal it goes to the console then, where it stopped.  It holds the
    pen until then; Ctrl-C ends it.

    Without an option the guest is restarted and watched until somebody may log in.

    Exit status: 0 done; 1 failed; 2 usage.
    """
    stop_at = wanted.pop("stop_at")
    try:
        Wishes(**wanted, stop_at=None if stop_at is None else StopAt(stop_at))
    except KbridgeError as error:
        raise click.UsageError(str(error)) from error
    api = relay(control, config)
    body = {
        **wanted,
        "stop_at": stop_at,
        "way": way,
        "reset": not no_reset,
        "patience": patience,
        "loader_user": loader_user,
        "secrets": _secrets(given),
        "ask": can_ask(),
        "force": force,
    }
    end = _run(api, guest, body, as_json=as_json)
    stays = not as_json and not no_console and sys.stdin.isatty() and sys.stdout.isatty()
    if stays:
        _show_end(end)
        _visit(api, guest)
    if end["end"] != "done":
        raise KbridgeError(end["what"], why=end["why"], todo=end["todo"])


def _run(api: Control, guest: str, body: Mapping[str, Any], *, as_json: bool) -> dict[str, Any]:
    """Have it done and shown; return the last entry."""
    entry: dict[str, Any] = {"kind": ""}
    run = ""
    table = _Table()
    try:
        for entry in _transcript(api, guest, body):
            if as_json:
                click.echo(json.dumps(entry))
            else:
                table.show(entry)
            run = entry.get("run", run)
            if entry["kind"] == "asks":
                _ask(api, guest, run, entry)
    except KeyboardInterrupt:
        where = f", in state {entry['state']}" if "state" in entry else ""
        where += f" ({entry['program']})" if entry.get("program") else ""
        raise GuestError(
            "cancelled by Ctrl-C", why=f"the pen of {guest} is free again; it goes on as it is{where}"
        ) from None
    if entry["kind"] != "end":
        raise RelayDown("the relay went away before the end", todo=f"`kbridge log {guest}` has what was done")
    return entry


def _ask(api: Control, guest: str, run: str, entry: Mapping[str, Any]) -> None:
    """Ask the person at the terminal for the password that a run waits for, and give it."""
    name = entry["asks"]
    question = {"run": run, "asks": name}

    def wanted() -> bool:
        return bool(api.get(guest_path(guest))["boot"] == question)

    # What is read now was said a while ago, where the terminal is slow.
    if not wanted():
        return
    whose = f"{_WHOSE[name]} {entry['user']}" if name == LOADER else _WHOSE[name]
    secret = ask_secret(f"password of {whose} (Ctrl-C ends the boot): ", entry["seconds"], wanted)
    try:
        api.post(guest_path(guest, "/boot/secret"), {**question, "secret": secret})
    except Refused as error:
        # It ended or went on meanwhile, which the next entries say.
        if error.kind != "refused":
            raise


def _visit(api: Control, guest: str) -> None:
    """Go to the console, until it is left."""
    # The boot has begun long before these are wanted.
    from kbridge.commands.console_command import HISTORY_BYTES, Visit  # noqa: PLC0415
    from kbridge.console_client import ConsoleClient  # noqa: PLC0415

    with ConsoleClient(api, guest, read_only=False, history=HISTORY_BYTES) as client:
        closed = Visit(client, guest, sys.stdin.fileno(), sys.stdout.fileno(), read_only=False).run()
    if closed:
        raise RelayDown(f"the console of {guest} was closed", why=closed)


def _secrets(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for one in given:
        name, equals, path = one.partition("=")
        if name not in SECRETS:
            raise click.UsageError(f"there is no secret {name!r}: {' or '.join(SECRETS)}")
        if equals:
            found[name] = secret_of(path)
        elif sys.stdin.isatty():
            found[name] = getpass(f"password of {_WHOSE[name]}: ")
        else:
            raise click.UsageError(f"there is no terminal to ask for it: give --secret {name}=FILE")
    return found


def _transcript(api: Control, guest: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the entries of a run; asks at a terminal before the pen is taken from somebody."""
    path = guest_path(guest, "/boot")
    try:
        yield from _entries(api.run(path, body))
    except Refused as error:
        ask_for_pen(api, guest, error)
        yield from _entries(api.run(path, {**body, "force": True}))


def _entries(pieces: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield json.loads(line)


class _Table:
    """The transcript as it comes, a row an entry."""

    def __init__(self) -> None:
        self._state = ("", "")

    def show(self, entry: Mapping[str, Any]) -> None:
        """Print an entry."""
        words = entry_words(entry)
        if not words:
            return
        state, program = "", ""
        if entry["kind"] == "state" and (entry["state"], entry["program"]) != self._state:
            self._state = state, program = entry["state"], entry["program"]
        row = f"{entry['elapsed']:8.3f}  {state:10}  {program:12}  {words}"
        click.echo(row if len(row) <= WIDTH else row[: WIDTH - 1] + "…")


def _show_end(end: Mapping[str, Any]) -> None:
    if end["end"] != "done":
        words = str(KbridgeError(end["what"], why=end["why"], todo=end["todo"]))
        click.echo(click.style("failed: ", fg="red", bold=True) + words)


def entry_words(entry: Mapping[str, Any]) -> str:
    """Return what an entry of a transcript says, in words; nothing for one of a kind that is not known."""
    match entry["kind"]:
        case "start":
            return f"run {entry['run']} begins"
        case "reset":
            return "resets the machine" + (
                ", to change the command line by its debug stub" if entry["by_stub"] else ""
            )
        case "state":
            return str(entry["evidence"])
        case "sent":
            return f"sent {entry['keys']}"
        case "note":
            return str(entry["text"])
        case "asks":
            return (
                f"asks for the password of {_WHOSE[entry['asks']]}, and waits {entry['seconds']:.0f} s for it"
            )
        case "gap":
            return f"{entry['lost']} bytes came too fast and were not looked at"
        case "skipped":
            return f"{entry['lost']} lines are missing here: this terminal is too slow"
        case "end":
            return click.style(entry["end"], fg=_COLOURS[entry["end"]], bold=True) + f": {entry['what']}"
        case _:
            return ""
