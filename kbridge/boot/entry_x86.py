"""A Linux kernel at its entry, as its boot loader has left it: its command line, and another one put in its place.

in:      the registers of a processor that stands where a kernel may begin; what the memory holds that is read
out:     reads, writes; the ``Change`` that was made and read back; None where no kernel begins; ``CannotChange``
states:  is it an entry? · what lives in memory · the place of the new text · written · read back
invariant: nothing is written before the whole of ``boot_params`` was found to be plausible, and nothing but the text
         and the pointers to it; no byte is written that the loader has not left free or used for the old text;
         whatever the memory holds, at most ``MOST_READS`` reads of ``MOST_BYTES`` are asked for

Where a kernel begins (``ENTRIES``) other programs run too: GRUB unpacks itself at 1 MiB and jumps there.  A kernel's
entry is known by what its loader hands over: a pointer to ``boot_params``, which name their own entry.

Addresses are physical, which is what a debugger reads there: a 32-bit entry has no paging, a 64-bit one maps the first
gigabytes to themselves.

Sources: Linux, Documentation/arch/x86/boot.rst and arch/x86/include/uapi/asm/bootparam.h; the UEFI Specification, 7.2,
for memory descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from gdbstubs.modes import LONG_MODE, PAGING, PROTECTION

MOST_READS: Final = 128
MOST_BYTES: Final = 1 << 16

LOADED: Final = (0x10_0000, 0x100_0000)
"""Where loaders put a kernel: at 1 MiB, or where it wants to be: at 16 MiB unless it was built otherwise."""
ENTRY_64: Final = 0x200
"""The 64-bit entry, from where the kernel was loaded."""
ENTRIES: Final = (*LOADED, *(one + ENTRY_64 for one in LOADED))
"""Where kernels begin that a BIOS's boot loaders start: as many places as a processor has hardware breakpoints."""

PARAMS_BYTES: Final = 4096
_MAGIC: Final = b"HdrS"
_EFI_SIGNATURES: Final = (b"EL32", b"EL64")
_E820_RAM: Final = 1
_E820_MOST: Final = 128
_E820_BYTES: Final = 20
_SETUP_DATA_MOST: Final = 32
_SETUP_DATA_BYTES: Final = 16
_SETUP_INDIRECT_BYTES: Final = 24
_SETUP_INDIRECT: Final = 1 << 31
_LOADED_HIGH: Final = 1
_X86_LIMIT: Final = 2047
_OLD_LIMIT: Final = 255
"""Bytes of a command line before protocol 2.06."""
_EFI_CONVENTIONAL: Final = 7
_EFI_PAGE: Final = 4096
FOUR_GIB: Final = 1 << 32
_LOW: Final = (0x1_0000, 0x9_0000)
"""Where a new place is looked for first: above what firmware keeps, and below what it may keep at their end."""
_UNPACKED: Final = 64 << 20
"""What a kernel is given that does not say what it takes."""
_ALIGNMENT: Final = 16


@dataclass(frozen=True, slots=True)
class Read:
    """``length`` bytes at a physical address; what is sent back is shorter where memory ends."""

    address: int
    length: int


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes for a physical address; anything may be sent back."""

    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """A command line that was changed."""

    old: str
    new: str
    place: int
    """Where its command line is now."""
    moved: bool
    """Whether it is in another place than the loader's."""


class CannotChange(Exception):
    """A kernel begins here, and its command line cannot be changed: the words say why."""


Editing: TypeAlias = Generator[Read | Write, bytes, Change | None]
Span: TypeAlias = tuple[int, int]
"""From the first address to the one after the last."""


class Params:
    """The fields of ``boot_params`` that matter here, out of its 4096 bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.version = self._number(0x206, 2)
        # A loader that did not clear what it does not know: the kernel clears it then, and so the high halves count 0.
        halves = 0 if self._number(0x1EF, 1) else 1 << 32
        self.text = self._number(0x228, 4) + halves * self._number(0xC8, 4)
        self.initrd = self._number(0x218, 4) + halves * self._number(0xC0, 4)
        self.initrd_bytes = self._number(0x21C, 4) + halves * self._number(0xC4, 4)
        self.loader = self._number(0x210, 1)
        self.code32 = self._number(0x214, 4)
        self.preferred = self._number(0x258, 8) if self.version >= 0x20A else LOADED[1]
        self.setup_data = self._number(0x250, 8) if self.version >= 0x209 else 0

    @property
    def are_there(self) -> bool:
        """Whether these bytes are ``boot_params`` that a boot loader has made, whose command line has a pointer."""
        return (
            len(self.data) == PARAMS_BYTES
            and self.data[0x202:0x206] == _MAGIC
            and self.version >= 0x202
            and bool(self._number(0x211, 1) & _LOADED_HIGH)
        )

    @property
    def efi_table(self) -> int | None:
        """Where the EFI system table is; None where no 64-bit EFI has started this, or its map is not there yet."""
        if len(self.data) < PARAMS_BYTES or self.data[0x1C0:0x1C4] != b"EL64":
            return None
        return self._number(0x1C4, 4) + (self._number(0x1D8, 4) << 32)

    @property
    def limit(self) -> int:
        """The most bytes of a command line, without its end."""
        if self.version == 0:
            # The kernel's EFI stub, which does not say.
            return _X86_LIMIT
        if self.version < 0x206:
            return _OLD_LIMIT
        return min(self._number(0x238, 4), MOST_BYTES - 1)

    def kernel(self, loaded: int) -> Span:
        """Return where the kernel is, and where it moves and unpacks itself to unless it chooses another place."""
        size = self._number(0x1F4, 4) * 16
        if self.version < 0x20A:
            return loaded, loaded + max(size, _UNPACKED)
        wanted, needs = self.preferred, self._number(0x260, 4)
        alignment = max(self._number(0x230, 4), 1)
        begin = max(-(-loaded // alignment) * alignment, wanted)
        return min(loaded, wanted), max(begin + needs, loaded + size)

    def memory(self) -> list[Span]:
        """Return what the firmware calls usable memory."""
        count = min(self._number(0x1E8, 1), _E820_MOST)
        entries = (
            (self._number(place, 8), self._number(place + 8, 8), self._number(place + 16, 4))
            for place in range(0x2D0, 0x2D0 + count * _E820_BYTES, _E820_BYTES)
        )
        spans = [(start, start + size, kind == _E820_RAM) for start, size, kind in entries]
        # What two entries disagree on is not usable.
        return without(
            [(start, end) for start, end, usable in spans if usable],
            [(start, end) for start, end, usable in spans if not usable],
        )

    def efi_map(self) -> tuple[Span, int] | None:
        """Return where the EFI memory map is and the bytes of one descriptor; None where no EFI has booted this."""
        if self.data[0x1C0:0x1C4] not in _EFI_SIGNATURES:
            return None
        start = self._number(0x1D0, 4) + (self._number(0x1DC, 4) << 32)
        return (start, start + self._number(0x1D4, 4)), self._number(0x1C8, 4)

    def _number(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")


def edit(registers: Mapping[str, int | None], new: Callable[[str], str]) -> Editing:
    """Change the command line of the kernel that begins where the processor stands; the module's text says how.

    ``new`` makes the new text out of the old one.  Bytes that are no UTF-8 are kept.  Raises ``CannotChange``.
    """
    counter, where = registers.get("rip"), registers.get("rsi")
    control, efer = registers.get("cr0"), registers.get("efer")
    if counter is None or where is None or control is None or efer is None or not control & PROTECTION:
        return None
    in_long_mode = bool(efer & LONG_MODE)
    if in_long_mode != bool(control & PAGING):
        return None
    loaded = counter - ENTRY_64 if in_long_mode else counter
    params = Params((yield Read(where, PARAMS_BYTES)))
    # A loader that uses the 64-bit entry need not name the other.
    if not params.are_there or (params.code32 != loaded and not (in_long_mode and loaded in LOADED)):
        return None
    return (yield from replace(params, where, loaded, new))


def linear(registers: Mapping[str, int | None]) -> int | None:
    """Return the address of the next instruction, as breakpoints have it; None where the registers do not tell."""
    counter, control, segment = registers.get("rip"), registers.get("cr0"), registers.get("cs")
    if counter is None or control is None or control & PROTECTION:
        return counter
    return None if segment is None else (segment << 4) + (counter & 0xFFFF)


def replace(params: Params, where: int, loaded: int, new: Callable[[str], str]) -> Editing:
    """Change the command line that ``params``, found at ``where``, point to; ``loaded``: where the kernel is."""
    limit = params.limit
    old = b""
    if params.text:
        data = yield Read(params.text, limit + 1)
        old, end, _ = data.partition(b"\0")
        if not end:
            raise CannotChange(
                f"the command line at {params.text:#x} has no end within the {limit} bytes that this kernel takes"
            )
    text = _encoded(new(_decoded(old)), limit)
    if text == old:
        return Change(_decoded(old), _decoded(old), params.text, moved=False)
    alive, memory = yield from _occupied(params, where, loaded)
    needs = len(text) + 1
    place = params.text
    if not place or (needs > len(old) + 1 and not _within((place, place + needs), memory, alive)):
        # The old text stays whole until the pointer is moved.
        moved = _free_place(limit + 1, memory, [*alive, (params.text, params.text + len(old) + 1)])
        if moved is None:
            raise CannotChange(
                f"the new command line has {len(text)} bytes, the old one {len(old)}, and no memory for it is known to "
                "be free"
            )
        place = moved
    yield Write(place, text + b"\0")
    if place != params.text:
        yield Write(where + 0x228, place.to_bytes(4, "little"))
        yield Write(where + 0xC8, bytes(4))
    after = Params((yield Read(where, PARAMS_BYTES)))
    shown = yield Read(place, needs)
    if after.text != place or shown != text + b"\0":
        raise CannotChange("what was written there does not stand in the guest's memory")
    return Change(_decoded(old), _decoded(text), place, moved=place != params.text)


def _encoded(text: str, limit: int) -> bytes:
    """Return a new command line as bytes, if it is one."""
    data = text.encode("utf-8", "surrogateescape")
    bad = next((one for one in data if one < 0x20 or one == 0x7F), None)
    if bad is not None:
        raise CannotChange(f"the new command line holds the control character {bad:#04x}")
    if len(data) > limit:
        raise CannotChange(f"the new command line has {len(data)} bytes, and this kernel takes {limit}")
    return data


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _occupied(
    params: Params, where: int, loaded: int
) -> Generator[Read | Write, bytes, tuple[list[Span], list[Span]]]:
    """Return what lives in memory, and what is free, which may hold some of that."""
    alive = [(0, 0x1000), (where, where + PARAMS_BYTES), params.kernel(loaded)]
    if params.initrd_bytes:
        alive.append((params.initrd, params.initrd + params.initrd_bytes))
    alive += yield from _setup_data(params.setup_data)
    memory = params.memory()
    found = params.efi_map()
    if found is not None:
        span, size = found
        alive.append(span)
        # What was never allocated: firmware and loader keep tables in memory of which the kernel hears later.
        free = yield from _conventional(span, size)
        # The kernel's EFI stub makes the other map later.
        memory = _both(memory, free) if memory else free
    return alive, memory


def _setup_data(address: int) -> Generator[Read | Write, bytes, list[Span]]:
    """Follow the list of what the loader hands over beside ``boot_params``."""
    spans: list[Span] = []
    while address:
        if len(spans) >= _SETUP_DATA_MOST or any(start <= address < end for start, end in spans):
            raise CannotChange("the loader's list of setup_data has no end")
        head = yield Read(address, _SETUP_DATA_BYTES)
        if len(head) < _SETUP_DATA_BYTES:
            raise CannotChange(f"the loader's setup_data at {address:#x} is in no memory")
        following = int.from_bytes(head[:8], "little")
        kind, size = int.from_bytes(head[8:12], "little"), int.from_bytes(head[12:16], "little")
        spans.append((address, address + _SETUP_DATA_BYTES + size))
        if kind == _SETUP_INDIRECT:
            # struct setup_indirect: type, reserved, len, addr.
            rest = yield Read(address + _SETUP_DATA_BYTES, _SETUP_INDIRECT_BYTES)
            if len(rest) < _SETUP_INDIRECT_BYTES:
                raise CannotChange(f"the loader's setup_data at {address:#x} is in no memory")
            there, length = int.from_bytes(rest[16:24], "little"), int.from_bytes(rest[8:16], "little")
            spans.append((there, there + length))
        address = following
    return spans


def _conventional(span: Span, size: int) -> Generator[Read | Write, bytes, list[Span]]:
    """Read an EFI memory map: the ranges that are free."""
    start, end = span
    if not 40 <= size <= 256 or not 0 < end - start <= MOST_BYTES:
        raise CannotChange(f"the EFI memory map at {start:#x} is none")
    data = yield Read(start, end - start)
    found = []
    for at in range(0, len(data) - size + 1, size):
        kind = int.from_bytes(data[at : at + 4], "little")
        first = int.from_bytes(data[at + 8 : at + 16], "little")
        pages = int.from_bytes(data[at + 24 : at + 32], "little")
        if kind == _EFI_CONVENTIONAL:
            found.append((first, first + pages * _EFI_PAGE))
    return _joined(found)


# -- ranges of memory ------------------------------------------------------------------------------------------


def without(spans: Iterable[Span], taken: Iterable[Span]) -> list[Span]:
    """Return what is left of ranges, by address, without those that are taken."""
    left = sorted(one for one in spans if one[0] < one[1])
    for start, end in taken:
        if start >= end:
            continue
        cut = []
        for first, last in left:
            cut += [one for one in ((first, min(last, start)), (max(first, end), last)) if one[0] < one[1]]
        left = cut
    return left


def _both(one: Iterable[Span], other: list[Span]) -> list[Span]:
    """Return what is in both."""
    cuts = ((max(start, first), min(end, last)) for start, end in one for first, last in other)
    return sorted(cut for cut in cuts if cut[0] < cut[1])


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Join ranges that touch."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _within(span: Span, memory: list[Span], alive: list[Span]) -> bool:
    start, end = span
    return any(first <= start and end <= last for first, last in _joined(memory)) and not any(
        first < end and start < last for first, last in alive
    )


def _free_place(needs: int, memory: list[Span], alive: list[Span]) -> int | None:
    """Return where so many bytes are free below 4 GiB, in low memory if there, else as low as possible."""
    free = without(_joined(memory), alive)
    for low, high in (_LOW, (0x10_0000, FOUR_GIB)):
        for start, end in _both(free, [(low, high)]):
            place = -(-start // _ALIGNMENT) * _ALIGNMENT
            if place + needs <= end:
                return place
    return None
