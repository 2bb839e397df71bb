"""A kernel's command line changed by the debug stub, where EFI firmware, a boot loader of EFI's or U-Boot starts it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from boot_by_stub_lab import RelayCase, reached

if TYPE_CHECKING:
    from kbridge.guest import Guest

OVMF = Path("/usr/share/OVMF")


@pytest.mark.guest
@pytest.mark.slow
class ByFirmware(RelayCase):
    timeout = 280

    @pytest.fixture(autouse=True)
    def _guests(self, disk_guest: Any, cloud_guest: Any) -> None:
        self.start_disk, self.start_cloud = disk_guest, cloud_guest

    async def obeyed(self, guest: Guest, old: str, more: str) -> None:
        change = await self.change(guest, lambda old: f"{old} {more}", 120)
        assert change.old.startswith(old)
        self.left_alone(guest)
        assert guest.state == "running"
        await self.shows(guest, f"Kernel command line: {change.old} {more}\r\n")

    async def test_grub_under_efi(self) -> None:
        guest = await self.serve(reached(self.start_disk("--stopped", "--menu", "none", "--firmware", "efi")))
        await self.obeyed(guest, "BOOT_IMAGE=/boot/vmlinuz", "single")
        assert any("a boot loader has the machine" in one for one in self.said)

    async def test_u_boot_that_is_not_asked(self) -> None:
        guest = await self.serve(reached(self.start_disk("--stopped", "--firmware", "uboot")))
        await self.obeyed(guest, "root=/dev/sdb3", "single")

    async def test_a_kernel_that_efi_firmware_starts_itself(self) -> None:
        variables = self.dir / "variables.fd"
        shutil.copyfile(OVMF / "OVMF_VARS_4M.fd", variables)
        said = self.start_cloud(
            "--stopped", "--",
            "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={OVMF}/OVMF_CODE_4M.fd",
            "-drive", f"if=pflash,format=raw,unit=1,file={variables}",
        )  # fmt: skip
        guest = await self.serve(reached(said))
        await self.obeyed(guest, "console=ttyS0", "maxcpus=1")
        # What the firmware has left in memory is not taken for the one that starts now.
        await self.obeyed(guest, "console=ttyS0", "rdinit=/bin/sh")
        assert any("EFI firmware starts" in one for one in self.said)
        await self.shows(guest, "Run /bin/sh as init process")
