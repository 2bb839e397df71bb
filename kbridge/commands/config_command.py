"""``kbridge config``."""

from __future__ import annotations

import os

import click

from kbridge import places
from kbridge.config import load
from kbridge.explain import explain as explanation
from kbridge.options import config_option


@click.group("config")
def command() -> None:
    """Explain or check the configuration."""


@command.command("explain")
def explain() -> None:
    """Print every key, its meaning and its default, as a file to start from."""
    click.echo(explanation(os.environ, uid=os.geteuid()), nl=False)


@command.command("check")
@config_option
def check(config: str | None) -> None:
    """Say whether the configuration is valid; if it is not, name all of its mistakes."""
    found = load(places.find(config, os.environ), os.environ)
    count = len(found.guests)
    click.echo(f"{found.source} is valid, with {count} guest{'' if count == 1 else 's'}")
