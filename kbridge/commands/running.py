"""``kbridge up``: the daemon under a reactor, until a signal ends it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click
from twisted.internet.defer import Deferred
from twisted.logger import FilteringLogObserver, LogLevel, LogLevelFilterPredicate, globalLogBeginner

from kbridge import config as configuration
from kbridge import places
from kbridge.commands.log_lines import LogLines
from kbridge.daemon import Daemon
from kbridge.errors import KbridgeError
from kbridge.process import raise_descriptor_limit, spare_garbage_collection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.python.failure import Failure

    from kbridge.config import Config, Difference

STOP_SECONDS: Final = 40.0
"""A relay lets a debugger's guest go within 20 s; one that has not ended then is ended."""


def run(reactor: Any, config_file: str | None, env: Mapping[str, str], *, verbose: bool) -> None:
    """Run until SIGTERM or SIGINT; raises ``KbridgeError`` when it cannot start."""
    path = places.find(config_file, env)
    config = configuration.load(path, env)
    observer = FilteringLogObserver(
        LogLines(sys.stderr, verbose=verbose),
        [LogLevelFilterPredicate(LogLevel.debug if verbose else LogLevel.info)],
    )
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    _Run(reactor, Daemon(reactor, config, lambda: configuration.load(path, env)), env).run()


class _Run:
    """One run of a daemon."""

    def __init__(self, reactor: Any, daemon: Daemon, env: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._daemon = daemon
        self._notify_path = env.get("NOTIFY_SOCKET", "")
        self._problem: KbridgeError | None = None

    def run(self) -> None:
        self._reactor.callWhenRunning(self._start)
        self._reactor.addSystemEventTrigger("before", "shutdown", self._stop)
        self._reactor.run()
        if self._problem is not None:
            raise self._problem

    def _start(self) -> None:
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reload))
        raise_descriptor_limit()
        try:
            self._daemon.start()
        except KbridgeError as error:
            self._problem = error
            self._reactor.stop()
            return
        spare_garbage_collection()
        for line in sockets(self._daemon.config):
            _say(line)
        self._notify("READY=1")

    def _stop(self) -> Deferred[None]:
        self._notify("STOPPING=1")
        if self._problem is None:
            _say("letting all guests go")
        stopped: Deferred[None] = Deferred.fromCoroutine(self._daemon.stop())
        stopped.addTimeout(STOP_SECONDS, self._reactor)
        return stopped

    def _reload(self) -> None:
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        changes: Deferred[Difference] = Deferred.fromCoroutine(self._daemon.reload())
        changes.addCallbacks(self._reloaded, self._not_reloaded)
        changes.addBoth(lambda _: self._notify("READY=1"))

    def _reloaded(self, changes: Difference) -> None:
        _say(change_words(changes.appeared, changes.gone, changes.changed))

    def _not_reloaded(self, failure: Failure) -> None:
        failure.trap(KbridgeError)
        _say(f"not reloaded: {failure.value}")

    def _notify(self, state: str) -> None:
        """Tell systemd, where it started us (sd_notify(3)); it does not answer."""
        if not self._notify_path:
            return
        address = "\0" + self._notify_path[1:] if self._notify_path.startswith("@") else self._notify_path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            try:
                notify.sendto(state.encode(), address)
            except OSError as error:
                _say(f"systemd cannot be told {state!r}: {error}")


def sockets(config: Config) -> list[str]:
    """Return lines that say what is served where."""
    runtime = config.relay.runtime_dir
    width = max((len(name) for name in config.guests), default=0)
    lines = [f"kbridge {os.getpid()} serves {runtime / 'control'}"]
    for name, guest in config.guests.items():
        served = [
            str(runtime / name / socket_name)
            for socket_name, there in (
                ("gdb", guest.stub is not configuration.StubKind.NONE),
                ("console", guest.console is not None),
            )
            if there
        ]
        lines.append(f"  {name:{width}}  {'  '.join(served) or 'no sockets'}")
    return lines


def change_words(appeared: Any, gone: Any, changed: Any) -> str:
    """Return what a reload changed, in words."""
    parts = [
        f"{what}: {', '.join(names)}"
        for what, names in (("added", appeared), ("removed", gone), ("changed", changed))
        if names
    ]
    return f"reloaded; {'; '.join(parts)}" if parts else "reloaded; nothing changed"


def _say(line: str) -> None:
    click.echo(line, err=True)
