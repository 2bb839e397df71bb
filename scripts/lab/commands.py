"""The command line of scripts/guest."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import arm64, builds, cloud, debianguest, disk, disks, firmware, kgdb, lostgrub, running, uboot
from lab.errors import LabError
from lab.machine import KGDB_PARAMETER, PC, ConsoleBackend, Machine, Places, command_line
from lab.menus import MENUS, PREFIX, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType


@dataclass(frozen=True, slots=True)
class Guest:
    """How a guest is built, and the kernel's parameters that are its own.

    One that boots from a disk has kinds of `firmware`, the usual one first; `entries` of GRUB's menu; and U-Boot's
    `script`, given the words to add to the kernel's command line.
    """

    build: Callable[[], builds.Build]
    append: str = ""
    firmware: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()
    script: Callable[[Sequence[str]], str] | None = None
    memory: int = 256
    processors: int = 2


GUESTS = {
    cloud.NAME: Guest(cloud.build, cloud.APPEND),
    kgdb.NAME: Guest(kgdb.build, kgdb.APPEND),
    disk.NAME: Guest(
        disk.build,
        firmware=(firmware.BIOS, firmware.EFI, firmware.UBOOT),
        entries=disk.ENTRIES,
        script=lambda words: uboot.script("x86", (*disk.WORDS, *words)),
        processors=1,
    ),
    debianguest.NAME: Guest(
        debianguest.build,
        firmware=(firmware.BIOS, firmware.EFI, firmware.UBOOT),
        entries=debianguest.ENTRIES,
        script=lambda words: uboot.script("x86", (*debianguest.WORDS, *words)),
        memory=debianguest.MEMORY,
        processors=1,
    ),
    arm64.NAME: Guest(
        arm64.build,
        firmware=(firmware.UBOOT_ARM64,),
        script=lambda words: uboot.script("arm64", (*arm64.WORDS, *words)),
        processors=1,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 it failed (one line on stderr), 2 wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # argparse takes what follows `--` for more options of its own where options came before.
    end = given.index("--") if "--" in given else len(given)
    options = _parser().parse_args(given[:end])
    options.qemu = given[end + 1 :]
    if options.qemu and options.command != "run":
        print(f"guest: `{options.command}` takes no QEMU arguments", file=sys.stderr)
        return 2
    try:
        match options.command:
            case "build":
                return _build(options)
            case "run":
                return _run(options)
            case _:
                return _list(options)
    except (LabError, OSError) as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("guest: interrupted", file=sys.stderr)
        return 1


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _build(options: argparse.Namespace) -> int:
    # What is half built takes gigabytes: remove it however we are asked to end.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    for name in GUESTS if options.name == "all" else (options.name,):
        made = GUESTS[name].build()
        print(
            f"{name}: {made.description.release} ({made.description.version}) in {made.folder}",
            file=sys.stderr,
        )
    return 0


def _run(options: argparse.Namespace) -> int:
    build = builds.find(options.name)
    guest = GUESTS[options.name]
    if build is None:
        raise LabError(f"{options.name} is not built yet; run: scripts/guest build {options.name}")
    if options.kgdb_port and options.name != kgdb.NAME:
        raise LabError(
            f"{options.name} has no kgdb (CONFIG_KGDB is not set); run: scripts/guest run {kgdb.NAME}"
        )
    temporary = options.dir is None
    if temporary:
        folder = running.make_folder()
    else:
        folder = Path(options.dir).absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    places = Places(folder)
    words = (
        guest.append,
        "nokaslr" if options.no_kaslr else "",
        KGDB_PARAMETER if options.kgdb_port else "",
        *options.append,
    )
    from_disk = build.disk is not None
    chosen = _firmware(guest, options)
    machine = Machine(
        name=options.name,
        places=places,
        kernel=None if from_disk else build.kernel,
        initrd=build.initrd,
        append="" if from_disk else command_line(*words),
        disk=places.disk if from_disk else None,
        board=firmware.board(chosen, places) if from_disk else PC,
        memory=options.memory or guest.memory,
        processors=options.smp or guest.processors,
        console=ConsoleBackend(options.console_backend),
        second_serial=options.second_serial,
        kgdb_port=options.kgdb_port,
        stub=options.stub,
        vmcoreinfo=options.vmcoreinfo,
        stopped=options.stopped,
        extra=tuple(options.qemu),
    )

    def prepare() -> None:
        if build.disk is not None:
            disks.copy(build.disk, places.disk, _files_on_disk(guest, options, words))
            firmware.prepare(chosen, places)
            if guest.entries and (lost := MENUS[options.menu].lost):
                lostgrub.lose(places.disk, chosen, prefix=lost == PREFIX)

    return running.run(machine, build, prepare, detach=options.detach, temporary=temporary)


def _files_on_disk(guest: Guest, options: argparse.Namespace, words: Sequence[str]) -> dict[str, bytes]:
    given = [word for word in words if word]
    files = {}
    if guest.entries:
        entries = tuple(entry.with_words(*given) for entry in guest.entries)
        files["/boot/grub/grub.cfg"] = MENUS[options.menu].text(entries).encode()
    if guest.script is not None:
        files[uboot.SCRIPT] = uboot.image(guest.script(given))
    if options.name == debianguest.NAME:
        files[debianguest.SHADOW] = debianguest.shadow(options.root)
    return files


def _firmware(guest: Guest, options: argparse.Namespace) -> str:
    if options.firmware is None:
        return guest.firmware[0] if guest.firmware else ""
    if options.firmware not in guest.firmware:
        takes = f"starts from {' or '.join(guest.firmware)}" if guest.firmware else "needs no firmware"
        raise LabError(f"{options.name} {takes}, not from {options.firmware}")
    return str(options.firmware)


def _list(options: argparse.Namespace) -> int:
    found = {name: builds.find(name) for name in GUESTS}
    if options.json:
        print(json.dumps([_row(name, build) for name, build in found.items()], indent=2))
        return 0
    for name, build in found.items():
        if build is None:
            print(f"{name:6} not built yet: scripts/guest build {name}")
            continue
        print(
            f"{name:6} {build.description.release} ({build.description.version}), {build.size() / 1e6:.0f} MB"
        )
        for label, path in _files(build).items():
            if path is not None:
                print(f"       {label:10} {path}")
    return 0


def _row(name: str, build: builds.Build | None) -> dict[str, object]:
    if build is None:
        return {"name": name, "built": False}
    return {
        "name": name,
        "built": True,
        "version": build.description.version,
        "release": build.description.release,
        "size_bytes": build.size(),
        **_files(build),
    }


def _files(build: builds.Build) -> dict[str, str | None]:
    return {"dir": str(build.folder), **build.files()}


def _count(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/guest", description="Builds and starts the guests that kbridge is tested with."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="build|run|list")

    build = commands.add_parser(
        "build",
        help="download or compile guests, once",
        description="Makes guests in the cache (${XDG_CACHE_HOME:-~/.cache}/kbridge/guests); does nothing "
        "for one that is there in its newest version. cloud: Debian's own kernel, a download of 310 MB. kgdb: compiled "
        "from Debian's linux-source, at most 8 minutes on 2 processors. disk, debian, arm64: disks that GRUB "
        "and U-Boot boot.",
    )
    build.add_argument("name", nargs="?", default="all", choices=[*GUESTS, "all"], help="default: all")

    listing = commands.add_parser("list", help="which guests there are, and their files")
    listing.add_argument("--json", action="store_true", help="a list of objects")

    _run_options(
        commands.add_parser(
            "run",
            help="start a guest under QEMU",
            description="Starts a guest and, once its machine monitor answers, prints one line of JSON: "
            "its sockets and files. Stays until the guest ends. Without --detach the guest ends with whoever "
            "started this command, at SIGTERM or SIGINT, and when standard input, if it is a pipe, is closed.",
            epilog="Arguments after -- go to QEMU as they are.",
        )
    )
    return parser


def _run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("name", choices=[*GUESTS])
    run.add_argument("-m", "--memory", type=_count(96, 65536), metavar="MIB", help="default: 256")
    run.add_argument(
        "--smp",
        type=_count(1, 8),
        metavar="N",
        help="processors, 1 to 8; default: 2, and 1 for what boots from a disk",
    )
    run.add_argument(
        "--append", action="append", default=[], metavar="ARGS",
        help="more of the kernel's command line, such as 'kbridge.tick=0.2' (prints a line at that pace)",
    )  # fmt: skip
    run.add_argument(
        "--menu", choices=[*MENUS], default="menu",
        help="the boot menu of a guest that boots from a disk: "
        + "; ".join(f"{name}: {menu.help}" for name, menu in MENUS.items()),
    )  # fmt: skip
    run.add_argument(
        "--firmware", choices=[firmware.BIOS, firmware.EFI, firmware.UBOOT, firmware.UBOOT_ARM64],
        help="what boots a guest's disk; default: bios, and uboot-arm64 for arm64",
    )  # fmt: skip
    run.add_argument(
        "--root", choices=[*debianguest.ROOTS], default="locked",
        help=f"whether root can log in to debian; the password is {debianguest.PASSWORD}; default: locked",
    )  # fmt: skip
    run.add_argument(
        "--no-kaslr", action="store_true", help="the kernel at its linked address; otherwise moved at boot"
    )
    run.add_argument(
        "--stopped", action="store_true", help="wait for the monitor's `cont` before the first instruction"
    )
    run.add_argument("--stub", action="store_true", help="a gdb stub from the start, on DIR/gdb.sock")
    run.add_argument(
        "--no-vmcoreinfo",
        dest="vmcoreinfo",
        action="store_false",
        help="no device by which the kernel tells QEMU its VMCOREINFO",
    )
    second = run.add_mutually_exclusive_group()
    second.add_argument(
        "--second-serial", action="store_true", help="a second serial port, ttyS1, on DIR/serial2.sock"
    )
    second.add_argument(
        "--kgdb-port", action="store_true",
        help="a second serial port, ttyS1, on DIR/kgdb.sock, which the kernel's own debugger serves (kgdb only)",
    )  # fmt: skip
    run.add_argument(
        "--console-backend", choices=[backend.value for backend in ConsoleBackend], default="unix",
        help="what the first serial port is connected to; default: unix",
    )  # fmt: skip
    run.add_argument(
        "--dir", metavar="DIR",
        help="folder for the sockets, made if needed and kept; default: a new one, removed at the end",
    )  # fmt: skip
    run.add_argument("--detach", action="store_true", help="leave the guest running and return")
