"""``kbridge crash``: what is left of guests that died."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Final

import click

from kbridge.options import debug_dir_option, relay_options

REPORTS: Final = ("ls", "show", "export", "capture", "watch")


class Crash(click.Group):
    """Loads the commands for reports when one is asked for: gdb on an image is not to wait for what they need."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        return [*REPORTS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        if cmd_name not in REPORTS:
            return super().get_command(ctx, cmd_name)
        command = getattr(import_module("kbridge.commands.crash_reports"), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command


@click.group("crash", cls=Crash)
def command() -> None:
    """Show what guests died of, take the evidence of one, look at its memory.

    A crash is named by when it was and its guest; the beginning of a name will do where no other begins so, and `last`
    is the newest.
    """


@command.command("open")
@relay_options
@click.option(
    "--with",
    "tool",
    type=click.Choice(["gdb", "drgn", "crash"]),
    default="gdb",
    show_default=True,
    help="What is to look at it.",
)
@click.option(
    "--vmlinux",
    type=click.Path(path_type=Path),
    help="The kernel's file with symbols; else it is looked for by its build-id.",
)
@debug_dir_option
@click.option(
    "--identity",
    type=click.Path(path_type=Path),
    help="The file with age's secret key, for an encrypted image.",
)
@click.option("--gdb", "gdb", default="gdb", show_default=True, metavar="PROGRAM", help="The gdb to run.")
@click.argument("image")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def open_command(
    control: str | None,
    config: str | None,
    tool: str,
    vmlinux: Path | None,
    folders: tuple[Path, ...],
    identity: Path | None,
    gdb: str,
    image: str,
    arguments: tuple[str, ...],
) -> None:
    """Open a guest's memory image with gdb, drgn or crash.

    IMAGE is a crash's name, the folder of a crash, or an image's file.  gdb is served as on a live guest: names,
    source lines, types and modules with no set-up, first from the files that the crash's report names; processors are
    its first threads, then all tasks that sleep, each with its stack.  Nothing can be changed and nothing runs.  drgn
    and crash read a plain core file: an image that is compressed is unpacked for them into TMPDIR, without its
    zeroes, as long as they run.  What stands after `--` goes to the tool: `kbridge crash open vmcore -- -batch -ex
    bt`.
    """
    # Each is loaded for itself only.
    from kbridge.crash.decrypted import decrypted  # noqa: PLC0415
    from kbridge.crash.image_place import files_named_in, image_in  # noqa: PLC0415
    from kbridge.debuginfo.separate import DEBUG_DIRS  # noqa: PLC0415

    place = Path(image) if "/" in image or Path(image).exists() else _folder_of(control, config, image)
    named, named_folders = files_named_in(place)
    vmlinux = vmlinux or named
    places = (*folders, *named_folders, *DEBUG_DIRS)
    with decrypted(image_in(place), identity) as path:
        if tool == "gdb":
            from kbridge.commands.crash_gdb import run_gdb  # noqa: PLC0415

            status = run_gdb(path, place.name, vmlinux, places, gdb, arguments)
        else:
            from kbridge.commands.crash_tools import run_crash, run_drgn  # noqa: PLC0415

            run = run_drgn if tool == "drgn" else run_crash
            status = run(path, vmlinux, places, arguments)
    raise SystemExit(status)


def _folder_of(control: str | None, config: str | None, crash: str) -> Path:
    from kbridge.commands.crash_reports import folder_of  # noqa: PLC0415

    return folder_of(control, config, crash)
