"""Guests that boot from a disk: their menus, U-Boot's script, their machines; what needs no image."""

from __future__ import annotations

import re
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from lab import arm64, debianguest, disk, firmware, uboot
from lab.machine import Machine, Places
from lab.menus import MENUS, USER, Entry

GUEST = Path(__file__).resolve().parent.parent / "scripts" / "guest"
ENTRIES = (
    Entry("One", "/boot/k", "/boot/i", ("root=/dev/vda1", "ro")),
    Entry("Two", "/boot/k", "/boot/i", ("root=/dev/vda1", "single")),
)


def entries_of(text: str) -> list[tuple[str, str]]:
    """The entries outside of submenus: title and kernel's line."""
    return re.findall(r"^menuentry '(.*?)'.*?^\tlinux\t(.*?)$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", list(MENUS))
def test_a_menu_has_the_entries_and_the_default_first(name: str) -> None:
    text = MENUS[name].text(ENTRIES)
    assert "set default=0\n" in text
    titles = re.findall(r"^(?:menuentry|submenu) '(.*?)'", text, re.MULTILINE)
    # The submenu's entries come behind it; they begin at a line's start too.
    assert titles == ["One", "Two", "Advanced options", "One", "Two"]
    assert f"set timeout={MENUS[name].timeout}\n" in text
    assert ("terminal_output serial" in text) == (name not in ("no-serial", "firmware"))
    assert text.count("{\n") == text.splitlines().count("}")


def test_each_menu_is_what_it_says() -> None:
    assert entries_of(MENUS["menu"].text(ENTRIES))[0] == ("One", "/boot/k root=/dev/vda1 ro")
    assert f"set superusers={USER}\npassword_pbkdf2 {USER} grub.pbkdf2.sha512." in MENUS["password"].text(
        ENTRIES
    )
    assert len(entries_of(MENUS["long"].text(ENTRIES))[0][1]) > 160
    assert "\tlinux\t/boot/k \\\n\t\troot=/dev/vda1 \\\n\t\tro \\\n" in MENUS["continued"].text(ENTRIES)
    assert MENUS["panic"].text(ENTRIES).index("menuentry 'Two'") < MENUS["panic"].text(ENTRIES).index(
        "initrd\t"
    )
    assert entries_of(MENUS["no-init"].text(ENTRIES))[0][1].endswith(" init=/sbin/nothing")


def test_words_go_to_the_end_of_an_entry() -> None:
    assert ENTRIES[0].with_words("a", "b").words == ("root=/dev/vda1", "ro", "a", "b")


def test_u_boots_script_is_wrapped_as_its_source_command_wants_it() -> None:
    text = uboot.script("arm64", ("console=ttyAMA0", "quiet"))
    image = uboot.image(text)
    magic, checksum, _, size, _, _, data_checksum, system, _, kind, packed, name = struct.unpack(
        ">7I4B32s", image[:64]
    )
    assert (magic, system, kind, packed, name.rstrip(b"\0")) == (0x27051956, 5, 6, 0, b"boot")
    assert zlib.crc32(image[:4] + bytes(4) + image[8:64]) == checksum
    assert len(image) == 64 + size
    assert zlib.crc32(image[64:]) == data_checksum
    assert struct.unpack(">II", image[64:72]) == (len(text), 0)
    assert image[72:].decode() == text
    assert text.startswith("setenv bootargs ${bootargs} console=ttyAMA0 quiet\n")
    assert text.splitlines()[-1].startswith("booti ")


def test_a_machine_boots_from_its_disk_alone() -> None:
    places = Places(Path("/tmp/x"))
    command = Machine("disk", places, disk=places.disk).command()
    assert not {"-kernel", "-initrd", "-append"} & set(command)
    assert "driver=raw,node-name=disk0,file.driver=file,file.filename=/tmp/x/disk.img" in command


@pytest.mark.parametrize(
    ("name", "program", "words"),
    [
        (firmware.BIOS, "qemu-system-x86_64", "-machine pc"),
        (firmware.EFI, "qemu-system-x86_64", "if=pflash,format=raw,unit=1,file=/tmp/x/firmware.fd"),
        (firmware.UBOOT, "qemu-system-x86_64", "-bios /usr/lib/u-boot/qemu-x86/u-boot.rom"),
        (firmware.UBOOT_ARM64, "qemu-system-aarch64", "-machine virt -cpu cortex-a57"),
    ],
)
def test_a_firmware_is_a_board(name: str, program: str, words: str) -> None:
    board = firmware.board(name, Places(Path("/tmp/x")))
    assert board.program == program
    assert words in " ".join(board.arguments)


def test_consoles_are_named_as_each_architecture_does() -> None:
    assert "console=ttyS0,115200" in disk.WORDS
    assert "console=ttyAMA0,115200" in arm64.WORDS
    assert debianguest.shadow("locked").startswith(b"root:*:")
    assert debianguest.shadow("password").startswith(b"root:$6$")


@pytest.mark.guest
def test_a_firmware_that_a_guest_does_not_have_is_refused(arm64_built: str, cloud_built: str) -> None:
    for name, words in ((arm64_built, "starts from uboot-arm64"), (cloud_built, "needs no firmware")):
        done = subprocess.run(
            [str(GUEST), "run", name, "--firmware", "efi"],
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"guest: {name} {words}, not from efi\n"
