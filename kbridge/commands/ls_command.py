"""``kbridge ls``."""

from __future__ import annotations

import json
from typing import Any

import click

from kbridge.control import relay
from kbridge.options import relay_options

HEAD = ("GUEST", "STATE", "CONSOLE", "DEBUG", "STOP", "BREAKPOINTS", "SESSIONS")


@click.command("ls")
@relay_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects, with all there is.")
def command(control: str | None, config: str | None, *, as_json: bool) -> None:
    """Show the guests and who is at work on them.

    CONSOLE is the state of the serial line, and who types on it; DEBUG is free, observed, or controlled by a
    debugger; STOP counts the halts of the guest for debuggers.  A `-` is what a guest does not have.  Below the
    table stand the breakpoints with their owners, and what is wrong.
    """
    guests = relay(control, config).get("/guests")["guests"]
    if as_json:
        click.echo(json.dumps(guests, indent=2))
        return
    rows = [HEAD, *(row(guest) for guest in guests)]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(HEAD))]
    for number, cells in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)
    for guest in guests:
        for breakpoint_ in breakpoints(guest):
            click.echo(f"{guest['name']}: {breakpoint_}")
    for guest in guests:
        for trouble in troubles(guest):
            click.echo(f"{guest['name']}: {trouble}")


def row(guest: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a guest, in the order of ``HEAD``."""
    console, debug = guest["console"], guest["debug"]
    line = "-"
    if console is not None:
        line = console["state"] + (f" ({console['pen']} types)" if console["pen"] else "")
    if debug is None:
        return guest["name"], guest["state"], line, "-", "-", "-", "-"
    sessions = ", ".join(
        f"{one['name']} ({one['role']}{', asks for control' if one['asks'] else ''})"
        for one in debug["sessions"]
    )
    attached = [one for one in debug["sessions"] if one["attached"]]
    held = "observed" if attached else "free"
    if any(one["role"] == "controller" for one in attached):
        held = "controlled"
    return (
        guest["name"],
        guest["state"],
        line,
        held,
        str(debug["stop"]),
        str(len(debug["breakpoints"])),
        sessions or "-",
    )


def breakpoints(guest: dict[str, Any]) -> list[str]:
    """Return what stands in the stub, in words."""
    if guest["debug"] is None:
        return []
    return [
        f"{one['kind']} breakpoint at {one['address']} ({', '.join(one['owners']) or 'goes with the next resume'})"
        for one in guest["debug"]["breakpoints"]
    ]


def troubles(guest: dict[str, Any]) -> list[str]:
    """Return what is wrong with a guest, in words."""
    found = []
    console, monitor, record = guest["console"], guest["monitor"], guest["record"]
    if monitor is not None and monitor["problem"]:
        found.append(f"monitor: {monitor['problem']}")
    if console is not None and console["reason"]:
        found.append(f"console {console['endpoint']}: {console['reason']}")
    if not record["recording"]:
        found.append(record["status"])
    return found
