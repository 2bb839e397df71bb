"""`kbridge boot` where it cannot be done: the right words, what else can be done, and exit status 1."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from boot_real_lab import ask, brought, refused, relay_of
from relay_lab import SECONDS, RelayProcess, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartGuest


@pytest.mark.guest
@pytest.mark.slow
def test_with_no_time_to_stop_it_the_debug_stub_is_another_way(disk_guest: StartGuest) -> None:
    with relay_of(disk_guest("--stopped", "--menu", "none")) as relay:
        words = refused(relay, "--single-user", "--way", "loader").errors
        assert "the boot loader cannot be stopped over the serial line" in words
        assert "timeout=0" in words
        assert "GRUB_TIMEOUT" in words
        run = brought(relay, "--single-user")
        assert [entry["by_stub"] for entry in run.entries if entry["kind"] == "reset"] == [False, True]
        assert " single" in ask(relay, "cat /proc/cmdline")


@pytest.mark.guest
@pytest.mark.slow
def test_a_loader_that_is_not_on_the_serial_line_is_said_to_be_so(disk_guest: StartGuest) -> None:
    with relay_of(disk_guest("--stopped", "--menu", "no-serial")) as relay:
        words = refused(relay, "--single-user", "--way", "loader").errors
        assert "the boot loader cannot be stopped over the serial line" in words
        assert "nothing of a boot loader came before the kernel's first line" in words
        assert "GRUB_TERMINAL" in words


@pytest.mark.guest
@pytest.mark.slow
def test_a_kernel_that_panics_at_once_is_an_end(disk_guest: StartGuest) -> None:
    with relay_of(disk_guest("--stopped", "--menu", "panic")) as relay:
        run = refused(relay, "--single-user")
        assert "the kernel panicked" in run.errors
        assert "root" in run.end["why"]
        assert run.states[-1] == ("panic", "Linux"), run.told()


@pytest.mark.qemu
def test_a_machine_without_anything_to_boot_is_an_end(tmp_path: Path) -> None:
    relay = RelayProcess()
    qmp, serial = relay.dir / "qmp", relay.dir / "serial"
    relay.write_config(f'[guests.vm]\nqmp = "unix:{qmp}"\nconsole = "unix:{serial}"\n')
    qemu = subprocess.Popen(
        ["qemu-system-x86_64", "-S", "-M", "pc,accel=tcg,graphics=off", "-m", "32", "-nodefaults", "-display", "none",
         "-qmp", f"unix:{qmp},server=on,wait=off", "-serial", "chardev:con",
         "-chardev", f"socket,id=con,path={serial},server=on,wait=off"],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(qmp.exists, "QEMU's monitor")
        relay.start(line=False)
        wait_for(lambda: relay.json("GET", "/guests/vm")[1]["state"] == "paused", "the machine's state")
        wait_for(lambda: relay.json("GET", "/guests/vm")[1]["console"]["state"] == "open", "the line")
        run = refused(relay, "--single-user")
        assert "SeaBIOS found nothing to boot" in run.errors
        assert run.states[-1] == ("failed", "SeaBIOS"), run.told()
    finally:
        relay.stop()
        qemu.kill()
        qemu.wait(SECONDS)
        relay.close()
