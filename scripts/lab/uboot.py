"""U-Boot's boot script, as it finds it on a disk: /boot/boot.scr, with what was set as `bootargs` in it.

As Debian's flash-kernel writes it: the words of the disk follow those of the environment, so that at U-Boot's prompt
`setenv bootargs single` and `boot` start the system with `single`.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

from lab import disksystem

SCRIPT: Final = "/boot/boot.scr"
# U-Boot's include/image.h: magic, header's checksum, time, size, load, entry, data's checksum, system, architecture,
# type, compression, name.
_HEADER: Final = struct.Struct(">7I4B32s")
_MAGIC: Final = 0x27051956
_LINUX, _SCRIPT_TYPE = 5, 6
# Where the initramfs is loaded, and how the kernel is started. On x86 U-Boot's own address for the initramfs is where
# the kernel unpacks itself.
_BOOT: Final = {
    "x86": ("0x8000000", "zboot ${kernel_addr_r} ${kernel_size} 0x8000000 ${filesize}"),
    "arm64": ("${ramdisk_addr_r}", "booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdtcontroladdr}"),
}


def script(architecture: str, words: Sequence[str]) -> str:
    """What the boot script does; `architecture` is x86 or arm64."""
    initrd_address, start = _BOOT[architecture]
    load = "load ${devtype} ${devnum}:${distro_bootpart}"
    return "\n".join(
        [
            f"setenv bootargs ${{bootargs}} {' '.join(words)}",
            f"{load} ${{kernel_addr_r}} {disksystem.KERNEL}",
            "setenv kernel_size ${filesize}",
            f"{load} {initrd_address} {disksystem.INITRD}",
            start,
            "",
        ]
    )


def image(text: str) -> bytes:
    """A script in the wrapping that U-Boot's `source` asks for; as mkimage makes it, without a time."""
    content = text.encode()
    data = struct.pack(">II", len(content), 0) + content

    def header(checksum: int) -> bytes:
        return _HEADER.pack(
            _MAGIC, checksum, 0, len(data), 0, 0, zlib.crc32(data), _LINUX, 0, _SCRIPT_TYPE, 0, b"boot"
        )

    return header(zlib.crc32(header(0))) + data
