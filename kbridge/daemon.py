"""The composition root: a configuration in, running guests and their sockets out.

This is the one place that wires; everything else is given what it needs.
"""

from __future__ import annotations

import grp
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from kbridge.config import Config, Difference, difference
from kbridge.crash import store as crash_store
from kbridge.crash.desk import Desk
from kbridge.crash.knowledge import Library
from kbridge.crash.store import Store
from kbridge.debuginfo.debuginfod import Debuginfod
from kbridge.errors import KbridgeError
from kbridge.frontends.consoles import ConsoleSocket
from kbridge.frontends.http import ControlSocket
from kbridge.guest import Guest
from kbridge.transports.poller import LinePoller
from kbridge.transports.streams import PRIVATE, SocketAccess


class Daemon:
    """All guests of one relay and the sockets in ``runtime_dir``.

    ``load`` reads the configuration again for ``reload``.
    """

    _log = Logger()

    def __init__(self, reactor: Any, config: Config, load: Callable[[], Config]) -> None:
        self._reactor = reactor
        self._load = load
        self.config = config
        self.started_at = time.time()
        self.guests: dict[str, Guest] = {}
        self._consoles: dict[str, ConsoleSocket] = {}
        self._poller = LinePoller(reactor)
        self._control: ControlSocket | None = None
        self._access = _access(config)
        self._servers: Debuginfod | None = None
        self.crashes = Desk(
            reactor,
            Store(config.relay.state_dir / crash_store.FOLDER, time.time_ns),
            Library(config.relay.debug_dirs),
            lambda: self.debug_dirs,
        )
        if config.relay.debuginfod_urls:
            self._servers = Debuginfod(
                reactor,
                config.relay.debuginfod_urls,
                config.relay.state_dir / "debuginfod",
                most_kept_bytes=config.relay.debuginfod_bytes,
            )

    def start(self) -> None:
        """Make the folders and sockets and start all guests.

        Raises ``KbridgeError`` when the sockets cannot be made; what was started is to be stopped then.
        """
        _make_folder(self.config.relay.runtime_dir, self._access)
        _make_folder(self.config.relay.state_dir)
        self._control = ControlSocket(
            self._reactor, self, self.config.relay.runtime_dir / "control", self._access
        )
        self._control.start()
        self.crashes.start()
        for name in self.config.guests:
            self._add(name)

    @property
    def debug_dirs(self) -> tuple[Path, ...]:
        """Folders for debug files of all guests: the configured ones, and that of what was fetched."""
        fetched = () if self._servers is None else (self._servers.folder,)
        return (*self.config.relay.debug_dirs, *fetched)

    async def stop(self) -> None:
        """Let all guests go and remove the sockets; returns when that is done."""
        await self.crashes.stop()
        for name in list(self.guests):
            await self._remove(name)
        if self._control is not None:
            await self._control.stop()
            self._control = None
        if self._servers is not None:
            await self._servers.stop()
        self._poller.close()

    async def reload(self) -> Difference:
        """Read the configuration again and apply what differs; what did not change is not touched.

        Raises ``ConfigError``, with nothing changed, when it is not valid.
        """
        new = self._load()
        changes = difference(self.config, new)
        if changes.relay_keys:
            raise KbridgeError(
                f"[relay] {', '.join(changes.relay_keys)} changed",
                why="its folders and sockets are in use",
                todo="restart `kbridge up` to apply that; nothing was changed",
            )
        self.config = new
        for name in (*changes.gone, *changes.changed):
            await self._remove(name)
        for name in (*changes.changed, *changes.appeared):
            self._add(name)
        return changes

    def _add(self, name: str) -> None:
        relay = self.config.relay
        runtime = relay.runtime_dir / name
        _make_folder(runtime, self._access)
        guest = Guest(
            self._reactor,
            name,
            self.config.guests[name],
            self._poller,
            runtime=runtime,
            state=relay.state_dir / "guests" / name,
            access=self._access,
            debug_dirs=self.debug_dirs,
            servers=self._servers,
            desk=self.crashes,
        )
        self.guests[name] = guest
        guest.start()
        if guest.line is not None:
            self._consoles[name] = ConsoleSocket(self._reactor, guest, runtime / "console")
            self._consoles[name].start()

    async def _remove(self, name: str) -> None:
        console = self._consoles.pop(name, None)
        if console is not None:
            await console.stop()
        guest = self.guests.pop(name)
        if self._control is not None:
            # Those who follow its record must let go of it before it is closed.
            self._control.guest_gone()
        self.crashes.forget(guest)
        await guest.stop()
        try:
            guest.runtime.rmdir()
        except OSError as error:
            self._log.info("{folder} stays: {why}", folder=str(guest.runtime), why=error.strerror)


def _access(config: Config) -> SocketAccess:
    name = config.relay.socket_group
    if name is None:
        return SocketAccess(config.relay.socket_mode)
    try:
        return SocketAccess(config.relay.socket_mode, grp.getgrnam(name).gr_gid)
    except KeyError:
        raise KbridgeError(
            f"there is no group {name}", why="[relay] socket_group names it", todo="make it with `groupadd`"
        ) from None


def _make_folder(path: Path, access: SocketAccess = PRIVATE) -> None:
    """Make a folder for us alone, or for the sockets' group to pass through."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if access.group is not None:
            os.chown(path, -1, access.group)
            path.chmod(0o750)
    except OSError as error:
        raise KbridgeError(
            f"cannot make the folder {path}",
            why=error.strerror or str(error),
            todo="choose another with [relay] state_dir and runtime_dir, or run as a user who may",
        ) from error
