"""``kbridge power``."""

from __future__ import annotations

import click

from kbridge.control import guest_path, relay
from kbridge.options import relay_options

ACTIONS = ("on", "off", "cycle", "reset", "pause", "resume", "nmi")


@click.command("power")
@relay_options
@click.argument("guest")
@click.argument("action", type=click.Choice(ACTIONS))
@click.option("--force", is_flag=True, help="With off: end the machine at once, do not ask its kernel.")
def command(control: str | None, config: str | None, guest: str, action: str, *, force: bool) -> None:
    """Switch, reset, pause or resume a guest.

    \b
    on      start a machine that is off but still there, or waits before its first instruction
    off     ask the guest's kernel to shut down; with --force end the machine
    cycle   as if power was taken away and given back
    reset   press the reset button
    pause   stop all processors; resume lets them run
    nmi     inject a non-maskable interrupt
    """  # noqa: D301 (click's mark for a text that is not to be filled)
    if force and action != "off":
        raise click.UsageError(f"--force means nothing for {action}")
    api = relay(control, config)
    api.post(guest_path(guest, "/power"), {"action": action, "force": force})
    state = api.get(guest_path(guest))["state"]
    asked = action == "off" and not force
    click.echo(f"{guest} was asked to shut down; it is {state} now" if asked else f"{guest} is {state}")
