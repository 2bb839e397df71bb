"""``kbridge doctor``."""

from __future__ import annotations

import os
import sys

import click

from kbridge import places
from kbridge.config import Config, load
from kbridge.doctor import Level, examine
from kbridge.errors import ConfigError
from kbridge.host import ThisHost
from kbridge.options import config_option

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.MISSING: "red"}


@click.command("doctor")
@config_option
def command(config: str | None) -> None:
    """Say what is missing on this machine, and how to get it.

    Looks only: nothing is made, changed or connected to.  Ends with status 1 when something is missing.
    """
    findings = examine(ThisHost(os.environ), _configuration(config))
    for finding in findings:
        mark = click.style(f"{finding.level.value:8}", fg=_COLOURS[finding.level])
        click.echo(f"{mark}{finding.what}")
        if finding.todo:
            click.echo(f"{'':8}  {finding.todo}")
    if any(finding.level is Level.MISSING for finding in findings):
        sys.exit(1)


def _configuration(config: str | None) -> Config | ConfigError:
    try:
        return load(places.find(config, os.environ), os.environ)
    except ConfigError as error:
        return error
