"""`kbridge boot` on real boot loaders: GRUB on a BIOS and under UEFI, U-Boot on two architectures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from boot_real_lab import answered, ask, brought, refused, relay_of
from relay_lab import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartGuest

pytestmark = [pytest.mark.guest, pytest.mark.slow]


@pytest.mark.parametrize("firmware", ["bios", "efi"])
def test_grub_is_stopped_and_boots_to_a_root_shell(firmware: str, disk_guest: StartGuest) -> None:
    with relay_of(disk_guest("--stopped", "--firmware", firmware)) as relay:
        run = brought(relay, "--single-user")
        states = [state for state in run.states if state[0] in ("countdown", "editor", "kernel", "shell")]
        assert states == [
            ("countdown", "GRUB"), ("editor", "GRUB"), ("kernel", "Linux"), ("shell", ""),
        ], run.told()  # fmt: skip
        assert " single" in ask(relay, "cat /proc/cmdline")


def test_u_boot_on_x86_boots_a_shell_as_init(disk_guest: StartGuest) -> None:
    with relay_of(disk_guest("--stopped", "--firmware", "uboot")) as relay:
        run = brought(relay, "--init", "/bin/sh")
        assert ("command", "U-Boot") in run.states, run.told()
        assert "-1-" in ask(relay, "echo $PPID; echo $$").replace("-0 1-", "-1-")


def test_u_boot_on_arm64_boots_to_a_root_shell(arm64_guest: StartGuest) -> None:
    with relay_of(arm64_guest("--stopped")) as relay:
        run = brought(relay, "--single-user", "--append", "kbridge.test=1")
        assert ("command", "U-Boot") in run.states, run.told()
        assert "-aarch64-" in ask(relay, "uname -m")
        assert " kbridge.test=1 " in ask(relay, "cat /proc/cmdline")


def test_a_command_line_of_several_lines_and_rows_is_changed_at_its_end(disk_guest: StartGuest) -> None:
    with relay_of(disk_guest("--stopped", "--menu", "continued")) as relay:
        brought(relay, "--append", "kbridge.test=1", "--stop-at", "kernel")
        wanted = (
            rb"ommand line: BOOT_IMAGE=\S+ root=/dev/vda1 ro console=ttyS0,115200"
            rb" kbridge.long=\S{100,200} kbridge.test=1\r\n"
        )
        # The kernel says it twice. It waits 10 ms at most for a character to leave, and then drops it.
        wait_for(
            lambda: re.search(wanted, relay.ask("GET", "/guests/vm/log?format=raw")[1]),
            "the kernel's command line",
        )


@pytest.mark.parametrize(
    ("menu", "firmware", "prompt"),
    [
        ("no-config", "bios", "grub> "),
        ("no-config", "efi", "grub> "),
        ("wrong-prefix", "bios", "grub rescue> "),
    ],
)
def test_a_grub_that_lost_its_way_is_led_to_a_root_shell(
    menu: str, firmware: str, prompt: str, disk_guest: StartGuest
) -> None:
    with relay_of(disk_guest("--stopped", "--firmware", firmware, "--menu", menu)) as relay:
        run = brought(relay, "--single-user")
        assert prompt.encode() in relay.ask("GET", "/guests/vm/log?format=raw")[1]
        assert ("command", "GRUB") in run.states, run.told()
        assert " single" in ask(relay, "cat /proc/cmdline")


@pytest.mark.parametrize("menu", ["hidden", "countdown"])
def test_a_menu_that_is_not_shown_is_brought_up(menu: str, disk_guest: StartGuest) -> None:
    with relay_of(disk_guest("--stopped", "--menu", menu)) as relay:
        run = brought(relay, "--entry", "recovery", "--stop-at", "loader")
        assert run.states[-1] == ("menu", "GRUB"), run.told()
        assert "entry 2: kbridge GNU/Linux (recovery mode)" in run.notes


def test_grubs_password_is_asked_for_and_checked(disk_guest: StartGuest, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("guess\n")
    wish = ("--single-user", "--loader-user", "admin")
    with relay_of(disk_guest("--stopped", "--menu", "password")) as relay:
        without = refused(relay, *wish)
        assert "GRUB asks for a user's name and password" in without.errors
        assert "--secret loader=FILE" in without.errors
        refusal = refused(relay, *wish, "--secret", f"loader={wrong}")
        assert "GRUB refused the password of 'admin'" in refusal.errors
        done, terminal = answered(relay, "kbridge", *wish, "--stop-at", "kernel")
        assert (done.status, done.end["end"]) == (0, "done"), done.told()
        assert "password of the boot loader's user admin" in terminal
        # It is not echoed, in no transcript, and not on the time line.
        assert "kbridge" not in terminal
        assert "guess" not in refusal.told() + done.told()
        assert "***" in done.told()
        assert "guess" not in relay.run("log", "vm", "--json").stdout
