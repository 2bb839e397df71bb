"""Options that several commands have."""

from __future__ import annotations

from typing import Any

import click

config_option = click.option(
    "--config",
    metavar="FILE",
    envvar="KBRIDGE_CONFIG",
    help="The relay's configuration; else it is looked for (`kbridge config explain` says where).",
)
control_option = click.option(
    "--control",
    metavar="ENDPOINT",
    envvar="KBRIDGE_CONTROL",
    help="The relay's control socket, unix:/path; else the one of the configuration.",
)


def relay_options(command: Any) -> Any:
    """Add what says which relay is meant; the command gets ``control`` and ``config``."""
    return control_option(config_option(command))
