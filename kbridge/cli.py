"""The command line: ``kbridge``.

Each command is a file of ``kbridge.commands``, loaded when it is asked for: ``kbridge ls`` is not to wait for
the reactor.  Only ``up`` needs that, and only this file imports it.

Exit status: 0 done; 1 it failed, with a line on stderr that says what, why and what to do; 2 usage.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from kbridge.errors import KbridgeError
from kbridge.options import config_option
from kbridge.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "The relay": {
        "up": "Run the relay in the foreground.",
        "reload": "Have the relay read its configuration again.",
        "ls": "Show the guests and who is at work on them.",
    },
    "A guest": {
        "console": "Look at, and type on, a guest's console.",
        "log": "Print what a guest's console said and what was done.",
        "triage": "Say how far a guest's last boot came, how long that took, what failed, and what to try.",
        "crash": "Show what guests died of, take the evidence of one, look at its memory.",
        "gdb": "Debug a guest's kernel with gdb.",
        "drgn": "Open drgn on a guest's memory, read-only.",
        "trace": "Show what debuggers and stub say to each other.",
        "power": "Switch, reset, pause or resume a guest.",
        "boot": "Restart a guest and bring it to a root shell, or where else it is to stop.",
        "expect": "Run a script on a guest's console: wait, send, branch.",
        "break": "Send BREAK and a SysRq key to a guest's kernel.",
    },
    "Symbols": {
        "decode": "Explain the oopses and backtraces in a kernel's log.",
        "symbols": "Look up names and source lines of a kernel.",
    },
    "Plumbing": {
        "attach": "Connect stdin and stdout to a stub: for `target remote |`.",
        "config": "Explain or check the configuration.",
        "doctor": "Say what is missing on this machine, and how to get it.",
    },
}
_NAME_WIDTH: Final = max(len(name) for commands in SECTIONS.values() for name in commands)


class Failed(click.ClickException):
    """An error for the operator, on its way out."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        """Print it on stderr."""
        click.echo(f"kbridge: {self.message}", file=file, err=file is None)


class Commands(click.Group):
    """Loads a command when it is asked for, and shows them in sections."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the sections."""
        return [name for commands in SECTIONS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in self.list_commands(ctx):
            return own
        command = import_module(f"kbridge.commands.{cmd_name}_command").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of the help; nothing is loaded for that."""
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name.ljust(_NAME_WIDTH), words) for name, words in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it raises for the operator ends it with status 1."""
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        try:
            return super().invoke(ctx)
        except KbridgeError as error:
            raise Failed(str(error)) from error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="KBRIDGE_CONFIG and KBRIDGE_CONTROL stand in for --config and --control.",
)
@click.version_option(VERSION, message="kbridge %(version)s")
def main() -> None:
    """Put a debugger on a virtual machine that nobody can log in to.

    `kbridge up` runs beside the hypervisor and owns the debug stub, serial line and machine monitor of each
    guest in its configuration; all other commands talk to it.
    """


@main.command("up")
@config_option
@click.option("-v", "--verbose", is_flag=True, help="Also print what is of use when looking for a fault.")
def up(config: str | None, verbose: bool) -> None:
    """Run the relay in the foreground.

    Prints the sockets it serves, then a line for each event, on stderr.  SIGTERM or Ctrl-C ends it: all
    guests go on.  SIGHUP has it read its configuration again.  Under systemd use Type=notify.
    """
    # Slow to load, and installing the reactor is final: for this command only.
    from twisted.internet import reactor  # noqa: PLC0415

    from kbridge.commands.running import run  # noqa: PLC0415

    run(reactor, config, os.environ, verbose=verbose)
