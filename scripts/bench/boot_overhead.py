"""`kbridge boot --single-user` against the same boot with its command line preset and the loader's time-out at 0.

    .venv/bin/python scripts/bench/boot_overhead.py [--quick] [--firmware bios|efi|uboot] [--by-stub]

Preset: the machine is reset by its monitor and a plain reader of its console waits until the root shell answers.  Ours:
the whole command, from its start to its end, which comes when the shell answered; the loader counts 5 s down, or with
--by-stub waits for nobody, and the debug stub changes the command line.  The same disk, in pairs, each in turn first.
The figure is the median of the differences.  Needs the `disk` guest (`scripts/guest build disk`).  U-Boot's time-out
is its own, of 2 s, in both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from console_lab import verdict
from gdb_session import ROOT, interval

GOAL_SECONDS = 1.5
BOOT_SECONDS = 300
WORDS = "single systemd.setenv=SYSTEMD_SULOGIN_FORCE=1"
KBRIDGE = str(Path(sys.executable).with_name("kbridge"))


def guest(stack: contextlib.ExitStack, *arguments: str) -> dict[str, Any]:
    """Start a guest that waits before its first instruction and ends with the stack."""
    process = subprocess.Popen(
        [str(ROOT / "scripts/guest"), "run", "disk", "--stopped", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    assert process.stdout is not None
    told: dict[str, Any] = json.loads(process.stdout.readline())
    return told


def preset(console: socket.socket, monitor: Any) -> float:
    """Boot by the monitor alone; return the seconds until the shell answers."""
    begin = time.perf_counter()
    for command in ("stop", "system_reset", "cont"):
        monitor.write(json.dumps({"execute": command}).encode() + b"\n")
        monitor.flush()
        while b'"return"' not in monitor.readline():
            pass
    heard = b""
    for mark, answer in ((b"/root # ", b"echo he''re\r"), (b"\nhere\r\n", b"")):
        while mark not in heard:
            if not select.select([console], [], [], BOOT_SECONDS)[0]:
                raise SystemExit(f"no {mark!r} after {heard[-500:]!r}")
            heard += console.recv(65536)
        heard = b""
        console.sendall(answer)
    return time.perf_counter() - begin


def ours(config: Path, way: str) -> float:
    """Boot by kbridge; return the seconds that the command takes."""
    begin = time.perf_counter()
    command = [KBRIDGE, "boot", "--config", str(config), "vm", "--single-user", "--no-console"]
    command += ["--way", way]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=BOOT_SECONDS, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - begin


def relay(stack: contextlib.ExitStack, folder: Path, said: dict[str, Any]) -> Path:
    """Start a relay for the guest; return its configuration."""
    config = folder / "kbridge.toml"
    config.write_text(
        f'[relay]\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n'
        f'[guests.vm]\nqmp = "{said["qmp"]}"\nconsole = "{said["console"]}"\n'
    )
    process = subprocess.Popen([KBRIDGE, "up", "--config", str(config)], stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    deadline = time.monotonic() + 30
    while (
        "paused"
        not in subprocess.run(
            [KBRIDGE, "ls", "--config", str(config)], capture_output=True, text=True, check=False
        ).stdout
    ):
        if time.monotonic() > deadline:
            raise SystemExit("the relay does not see the guest")
        time.sleep(0.1)
    return config


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs, for a first look")
    parser.add_argument("--firmware", default="bios", choices=["bios", "efi", "uboot"])
    parser.add_argument("--by-stub", action="store_true", help="by the debug stub instead of the boot loader")
    options = parser.parse_args()
    pairs = 3 if options.quick else 11
    folder = Path(tempfile.mkdtemp(prefix="kb-boot-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        firmware = ("--firmware", options.firmware)
        plain = guest(stack, *firmware, "--menu", "none", "--append", WORDS)
        menu = ("--menu", "none") if options.by_stub else ()
        config = relay(stack, folder, guest(stack, *firmware, *menu))
        console = stack.enter_context(socket.socket(socket.AF_UNIX))
        console.connect(plain["console"].removeprefix("unix:"))
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.connect(plain["qmp"].removeprefix("unix:"))
        monitor = stack.enter_context(connection.makefile("rwb"))
        monitor.readline()
        monitor.write(b'{"execute": "qmp_capabilities"}\n')
        monitor.flush()
        monitor.readline()
        took: dict[str, list[float]] = {"preset": [], "kbridge boot": []}
        for number in range(pairs):
            ways = {
                "preset": lambda: preset(console, monitor),
                "kbridge boot": lambda: ours(config, "stub" if options.by_stub else "loader"),
            }
            for name in list(ways)[:: 1 if number % 2 else -1]:
                took[name].append(ways[name]())
    more = [one - two for one, two in zip(took["kbridge boot"], took["preset"], strict=True)]
    low, high = interval(more)
    print(f"{pairs} pairs, {options.firmware}, seconds (medians)")
    for name, values in took.items():
        print(f"  {name:14} {statistics.median(values):.2f}")
    middle = statistics.median(more)
    print(f"  more {middle:.2f} ({low:.2f} .. {high:.2f})")
    sys.exit(not verdict("kbridge boot - preset, s", middle, GOAL_SECONDS, most=True))


if __name__ == "__main__":
    main()
