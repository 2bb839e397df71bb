"""Where kbridge's files are when nothing says otherwise: its configuration, its state, its sockets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from kbridge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_NAME: Final = "kbridge.toml"
SYSTEM_FILE: Final = Path("/etc/kbridge") / FILE_NAME


def default_dirs(env: Mapping[str, str], *, uid: int) -> tuple[Path, Path]:
    """Give ``state_dir`` and ``runtime_dir`` where the file names none.

    Without root and without ``XDG_RUNTIME_DIR`` the sockets are under the state folder, not in ``/tmp``: a
    name that can be guessed in a folder where all may write could be taken by another user before.
    """
    if uid == 0:
        return Path("/var/lib/kbridge"), Path("/run/kbridge")
    state = _xdg(env, "XDG_STATE_HOME", ".local/state") / "kbridge"
    runtime = env.get("XDG_RUNTIME_DIR", "")
    return state, Path(runtime) / "kbridge" if runtime.startswith("/") else state / "run"


def search_places(env: Mapping[str, str], *, uid: int) -> tuple[Path, ...]:
    """Give the places where a configuration file is looked for if none was named, first the one that wins.

    The current folder is none of them: a relay must not obey a file that somebody put there.
    """
    if uid == 0:
        return (SYSTEM_FILE,)
    return (_xdg(env, "XDG_CONFIG_HOME", ".config") / "kbridge" / FILE_NAME, SYSTEM_FILE)


def find(explicit: str | None, env: Mapping[str, str], *, uid: int | None = None) -> Path:
    """Give the configuration file to load: ``--config``, ``KBRIDGE_CONFIG``, or the first that exists.

    A file that was named is taken in any case: reading it says what is wrong with it.  ``ConfigError`` names
    where was looked when there is none.
    """
    named = explicit or env.get("KBRIDGE_CONFIG")
    if named:
        return Path(named)
    places = search_places(env, uid=os.geteuid() if uid is None else uid)
    for place in places:
        if os.path.exists(place):  # noqa: PTH110  # unlike Path.exists, it raises nothing
            return place
    raise ConfigError(
        "there is no configuration file",
        why="looked for " + " and ".join(map(str, places)),
        todo="write one (`kbridge config explain` prints an example) or name it by --config or KBRIDGE_CONFIG",
    )


def is_server(url: str) -> bool:
    """Return whether a text is an address at which a server can be asked for files, of http or https."""
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isascii()
        )
    except ValueError:
        return False


def _xdg(env: Mapping[str, str], variable: str, fallback: str) -> Path:
    # The XDG base directory specification: a relative path there is invalid and to be ignored.
    value = env.get(variable, "")
    if value.startswith("/"):
        return Path(value)
    return Path(env.get("HOME") or "/") / fallback
