"""``kbridge reload``."""

from __future__ import annotations

import click

from kbridge.control import relay
from kbridge.options import relay_options


@click.command("reload")
@relay_options
def command(control: str | None, config: str | None) -> None:
    """Have the relay read its configuration again.

    Guests whose part did not change are not touched.  A configuration with a mistake changes nothing.
    """
    changes = relay(control, config).post("/reload")
    words = [f"{what}: {', '.join(names)}" for what, names in changes.items() if names]
    click.echo("; ".join(words) or "nothing changed")
