"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
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
debug_dir_option = click.option(
    "--debug-dir",
    "folders",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A folder with files of kernels and modules; may be given several times. Before /usr/lib/debug.",
)
"""Where files with symbols are looked for; the command gets ``folders``."""


def relay_options(command: Any) -> Any:
    """Add what says which relay is meant; the command gets ``control`` and ``config``."""
    return control_option(config_option(command))
