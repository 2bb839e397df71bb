"""Made-up machines as core files: memory with page tables in it, processors, notes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import zstandard

from kbridge.crash import elf_core, seekable
from kbridge.crash.elf_core import Note

PAGE = 4096
IMAGE_MAP = 0xFFFF_FFFF_8000_0000
GENERAL = (
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rsp",
    "rbp",
    *(f"r{n}" for n in range(8, 16)),
    "rip",
    "rflags",
)
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")
STATUS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
    *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss"),
    *("fs_base", "gs_base", "ds", "es", "fs", "gs"),
)


def status_note(registers: Mapping[str, int]) -> Note:
    """`struct elf_prstatus` of one processor, as QEMU writes it."""
    data = bytes(112) + struct.pack("<27Q", *(registers.get(name, 0) for name in STATUS)) + bytes(8)
    return Note(b"CORE", 1, data)


def state_note(registers: Mapping[str, int], *, kernel_gs: bool = True) -> Note:
    """`QEMUCPUState` of one processor."""
    body = struct.pack("<18Q", *(registers.get(name, 0) for name in GENERAL))
    for name in SEGMENTS:
        body += struct.pack("<IIIIQ", registers.get(name, 0), 0, 0, 0, registers.get(f"{name}_base", 0))
    body += struct.pack("<5Q", *(registers.get(f"cr{n}", 0) for n in range(5)))
    if kernel_gs:
        body += struct.pack("<Q", registers.get("k_gs_base", 0))
    return Note(b"QEMU", 0, struct.pack("<II", 1, 8 + len(body)) + body)


class Memory:
    """Physical memory of a machine, from address 0 on, in which page tables are laid out."""

    def __init__(self, size: int, levels: int = 4) -> None:
        self.data = bytearray(size)
        self.levels = levels
        self._next = PAGE
        self.root = self.table()

    def table(self) -> int:
        at, self._next = self._next, self._next + PAGE
        return at

    def entry(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 8], "little")

    def put(self, at: int, value: int) -> None:
        self.data[at : at + 8] = value.to_bytes(8, "little")

    def map(self, virtual: int, physical: int, level: int = 1, root: int | None = None) -> None:
        """Map a page: of 4 KiB at level 1, of 2 MiB at 2, of 1 GiB at 3."""
        table = self.root if root is None else root
        for above in range(self.levels, level, -1):
            place = table + 8 * (virtual >> 12 + 9 * (above - 1) & 511)
            if not self.entry(place):
                self.put(place, self.table() | 0x67)
            table = self.entry(place) & 0xFFFFFFFFFF000
        place = table + 8 * (virtual >> 12 + 9 * (level - 1) & 511)
        self.put(place, physical | (0xE3 if level > 1 else 0x63))


def core(memory: bytes, notes: Iterable[Note], *, pieces: Iterable[tuple[int, int]] | None = None) -> bytes:
    """A core file as QEMU writes one; ``pieces``: the ranges of physical memory that ``memory`` holds, in order."""
    ranges = list(pieces or [(0, len(memory))])
    noted = b"".join(elf_core.write_note(one) for one in notes)
    at = 64 + 56 * (1 + len(ranges))
    first = at + len(noted)
    programs = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(noted), len(noted), 0)
    offset = first
    for physical, size in ranges:
        programs += struct.pack("<IIQQQQQQ", 1, 0, offset, 0, physical, size, size, 0)
        offset += size
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", identity, 4, 62, 1, 0, 64, 0, 0, 64, 56, 1 + len(ranges), 0, 0, 0
    )
    return header + programs + noted + memory


def packed(data: bytes, size: int = 4096) -> bytes:
    """A seekable zstd file, by frames of ``size`` bytes."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    frames = [zstandard.ZstdCompressor(write_checksum=True).compress(one) for one in pieces]
    table = seekable.write_table((len(frame), len(one)) for frame, one in zip(frames, pieces, strict=True))
    return b"".join(frames) + table


def unpacked(data: bytes) -> bytes:
    """What any zstd makes of a file."""
    return zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(data)


# -- a small machine with a kernel in it ---------------------------------------------------------------------------

STEXT = IMAGE_MAP + 0x1680_0000 + 0x100_0000
PHYSICAL = 0x20_0000
TEXT = (
    b"OSRELEASE=6.1.0-test\nBUILD-ID=0123456789abcdef0123456789abcdef01234567\nPAGESIZE=4096\n"
    b"NUMBER(phys_base)=%d\nSYMBOL(_stext)=%x\nKERNELOFFSET=16800000\n"
    % (PHYSICAL - (STEXT - IMAGE_MAP), STEXT)
)
"""VMCOREINFO of a kernel whose text is at ``STEXT``, in physical memory at ``PHYSICAL``."""
OTHERS = TEXT.replace(b"6.1.0-test", b"5.10.0-old").replace(b"SYMBOL(_stext)=ffff", b"SYMBOL(_stext)=efff")


def small_machine(*texts: bytes, size: int = 1 << 22) -> tuple[bytes, list[Note]]:
    """Memory of a machine whose kernel is mapped, with texts in it, and what is noted of its two processors."""
    memory = Memory(size)
    memory.map(STEXT, PHYSICAL, level=2)
    for number, text in enumerate(texts):
        at = 0x10_0000 + number * 0x1_0000
        memory.data[at : at + len(text)] = text
    memory.data[PHYSICAL : PHYSICAL + 16] = b"the kernel's text"[:16]
    paged = {"cr0": 0x8005_0033, "cr3": memory.root, "cr4": 0x6A0, "rip": STEXT, "rsp": 0xFFFF_8880_0000_1000}
    cpus = [paged, {**paged, "rip": STEXT + 4, "gs_base": 0xFFFF_8880_3EC0_0000}]
    return bytes(memory.data), [*map(status_note, cpus), *map(state_note, cpus)]


# -- images of real guests ---------------------------------------------------------------------------------------

TAKE = """\
import json, sys
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from kbridge.crash.image import take_image
from kbridge.crash.image_file import ImageLimits
from kbridge.hypervisors.qemu import QemuMachine
from kbridge.transports.endpoints import Unix

async def take(qmp, path, *recipients):
    machine, found = QemuMachine(reactor, Unix(qmp)), Deferred()
    end = machine.subscribe(lambda event: found.callback(None) if event.name == "machine.found" else None)
    machine.start()
    await found
    end()
    facts = await take_image(reactor, machine, Path(path), ImageLimits(8 << 30, 0), recipients=recipients)
    print(json.dumps({
        "seconds": facts.seconds, "file_bytes": facts.file_bytes, "memory_bytes": facts.memory_bytes,
        "processors": facts.processors, "from": facts.vmcoreinfo_from,
    }))
    await machine.stop()

Deferred.fromCoroutine(take(*sys.argv[1:])).addErrback(print).addBoth(lambda _: reactor.stop())
reactor.run()
"""


def take(qmp: str, path: Path, *recipients: str) -> dict[str, Any]:
    """Take an image in a process of its own, through a monitor that nobody uses; return the facts of it."""
    done = subprocess.run(
        [sys.executable, "-c", TAKE, qmp, str(path), *recipients],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts
