"""`kbridge boot` where no boot loader can be asked: by the debug stub, to a root shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from boot_real_lab import brought, relay_of

if TYPE_CHECKING:
    from relay_lab import RelayProcess

pytestmark = [pytest.mark.guest, pytest.mark.slow]


def console(relay: RelayProcess) -> str:
    return relay.ask("GET", "/guests/vm/log?format=raw")[1].decode("latin-1")


def test_a_kernel_that_qemu_starts_itself_comes_to_a_root_shell(cloud_guest: Any) -> None:
    with relay_of(cloud_guest("--stopped")) as relay:
        run = brought(relay, "--init", "/bin/sh")
        assert "the kernel starts with: console=ttyS0 init=/bin/sh" in run.notes, run.told()
        assert "Kernel command line: console=ttyS0 init=/bin/sh\r\n" in console(relay)


def test_grub_that_does_not_show_itself_on_the_line_is_passed_by(disk_guest: Any) -> None:
    with relay_of(disk_guest("--stopped", "--menu", "no-serial")) as relay:
        run = brought(relay, "--single-user", "--way", "stub")
        # GRUB unpacks itself to where kernels begin, too.
        assert "something else than a kernel runs at 0x100000" in run.notes, run.told()
        assert "the kernel starts with: BOOT_IMAGE=/boot/vmlinuz root=/dev/vda1" in run.notes
