"""`kbridge boot` on Debian with systemd: rescue, emergency, both kinds of initramfs, root with and without password."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from boot_real_lab import ask, brought, refused, relay_of

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartGuest

# U-Boot where it does not matter which loader it is: GRUB on a BIOS takes 5 s more under emulation.
pytestmark = [pytest.mark.guest, pytest.mark.slow]


def test_rescue_mode_of_a_system_whose_root_is_locked(debian_guest: StartGuest) -> None:
    with relay_of(debian_guest("--stopped", "--root", "locked", "--firmware", "uboot")) as relay:
        run = brought(relay, "--single-user")
        assert ("systemd", "systemd") in run.states, run.told()
        assert "-active-" in ask(relay, "systemctl is-active rescue.target")


def test_emergency_mode_with_roots_password(debian_guest: StartGuest, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("kbridge\n")
    wrong.write_text("guess\n")
    with relay_of(debian_guest("--stopped", "--root", "password", "--firmware", "uboot")) as relay:
        refusal = refused(relay, "--emergency", "--secret", f"root={wrong}")
        assert "root's password is wrong" in refusal.errors
        assert "--init /bin/sh" in refusal.errors
        done = brought(relay, "--emergency", "--secret", f"root={right}")
        assert "-active-" in ask(relay, "systemctl is-active emergency.target")
        assert "guess" not in refusal.told() + relay.run("log", "vm", "--json").stdout
        assert "***" in done.told()


def test_the_shell_of_initramfs_tools(debian_guest: StartGuest) -> None:
    with relay_of(debian_guest("--stopped", "--firmware", "uboot")) as relay:
        run = brought(relay, "--break", "premount")
        assert run.states[-1] == ("shell", "initramfs-tools"), run.told()
        assert "-no-" in ask(relay, "grep -q ' /root ' /proc/mounts || echo no")


def test_the_shell_of_dracut(debian_guest: StartGuest) -> None:
    with relay_of(debian_guest("--stopped")) as relay:
        run = brought(relay, "--break", "pre-mount", "--entry", "dracut")
        assert run.states[-1][0] == "shell", run.told()
        assert "-no-" in ask(relay, "grep -q ' /sysroot ' /proc/mounts || echo no")
