"""What a processor's mode makes of its registers: a 32-bit view of them, for a debugger that meets real mode.

A stub of a 64-bit machine describes 64-bit registers whatever mode its processor is in.  With those a debugger decodes
64-bit instructions at ``ip``, without ``cs``: nonsense in firmware and boot loaders.  One that is given this view
instead shows what runs there.  In real mode its ``eip`` is the linear address, 16 times ``cs`` plus ``ip``: breakpoints
and memory are by linear address too.

in:      the stub's description, the text of all registers
out:     the mode; the view's description; registers translated to the view, and back

Source: Intel SDM volume 3, 2.5 (CR0.PE, CR0.PG), 2.2.1 (IA32_EFER.LMA), 20.1.1; GDB manual, "i386 Features".
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Final

from gdbstubs.registers import Description, Translation, parse_description

PROTECTION: Final = 1 << 0
"""CR0.PE."""
PAGING: Final = 1 << 31
"""CR0.PG."""
LONG_MODE: Final = 1 << 10
"""IA32_EFER.LMA: long mode is active, be the code that runs 64-bit or not."""


class Mode(Enum):
    """What a processor decodes; the value is its name for ``<architecture>``."""

    REAL = "i8086"
    PROTECTED = "i386"
    LONG = "i386:x86-64"


_GENERAL: Final = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di", "ip")
_SEGMENTS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
_X87: Final = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_POINTERS: Final = {"sp": "data_ptr", "bp": "data_ptr", "ip": "code_ptr"}
_WORD: Final = 0xFFFF_FFFF


def mode_of(description: Description | None, text: bytes) -> Mode:
    """Return the mode of a processor with these registers; long mode where they do not tell."""
    if description is None or not {"cr0", "efer", "rip"} <= description.names.keys():
        return Mode.LONG
    control = description.value(description.names["cr0"].of(text))
    efer = description.value(description.names["efer"].of(text))
    if control is None or efer is None or efer & LONG_MODE:
        return Mode.LONG
    return Mode.PROTECTED if control & PROTECTION else Mode.REAL


def _document(mode: Mode) -> bytes:
    lines = [
        '<?xml version="1.0"?>',
        f"<target><architecture>{mode.value}</architecture><osabi>none</osabi>",
        '<feature name="org.gnu.gdb.i386.core">',
    ]
    lines.extend(
        f'<reg name="e{name}" bitsize="32" type="{_POINTERS.get(name, "int32")}"/>' for name in _GENERAL
    )
    lines.extend(f'<reg name="{name}" bitsize="32" type="int32"/>' for name in ("eflags", *_SEGMENTS))
    lines.extend(f'<reg name="st{number}" bitsize="80" type="i387_ext"/>' for number in range(8))
    lines.extend(f'<reg name="{name}" bitsize="32" type="int" group="float"/>' for name in _X87)
    lines.append("</feature></target>\n")
    return "\n".join(lines).encode("ascii")


_DESCRIPTIONS: Final = {mode: parse_description(_document(mode)) for mode in (Mode.REAL, Mode.PROTECTED)}


class NarrowView:
    """A stub's 64-bit registers as a 32-bit debugger sees them, in a mode that is not long mode."""

    __slots__ = ("_renamed", "_translation", "description", "mode")

    def __init__(self, wide: Description, mode: Mode) -> None:
        self.mode = mode
        self.description = _DESCRIPTIONS[mode]
        names = {f"r{name}": f"e{name}" for name in _GENERAL}
        self._renamed = Description(
            wide.architecture,
            tuple(replace(one, name=names.get(one.name, one.name)) for one in wide.registers),
        )
        self._translation = Translation(self._renamed, self.description)

    def narrow(self, text: bytes) -> bytes:
        """Return the view's registers out of the stub's."""
        narrow = self._translation.translate(text)
        counter = self.description.names["eip"]
        offset, base = self.description.value(counter.of(narrow)), self._base(text)
        if offset is None:
            return narrow
        linear = ((offset + base) & _WORD).to_bytes(counter.size, "little").hex().encode("ascii")
        return narrow[: 2 * counter.offset] + linear + narrow[2 * (counter.offset + counter.size) :]

    def register(self, number: int, text: bytes) -> bytes | None:
        """Return one of the view's registers out of the stub's; None where it has none of this number."""
        wanted = self.description.numbers.get(number)
        return None if wanted is None else wanted.of(self.narrow(text))

    def widen(self, text: bytes, data: bytes) -> bytes:
        """Return the stub's registers ``text`` with the view's ``data`` written over them, as bytes.

        What is not available in ``text`` is zero.
        """
        counter = self.description.names["eip"]
        written = bytearray(data)
        place = slice(counter.offset, counter.offset + counter.size)
        if len(written[place]) == counter.size:
            # ``cs`` may be among what is written: the counter is of the one that stands then.
            segment = self.description.names["cs"]
            base = self._base_of(
                int.from_bytes(data[segment.offset : segment.offset + segment.size], "little")
            )
            linear = int.from_bytes(written[place], "little")
            written[place] = ((linear - base) & _WORD).to_bytes(counter.size, "little")
        wide = self._translation.overlay(text, bytes(written)).replace(b"x", b"0")
        return bytes.fromhex(wide.decode("ascii"))

    def wide_register(self, number: int, value: bytes, text: bytes) -> tuple[int, bytes] | None:
        """Return number and value, as the stub takes them, for one of the view's registers; None where it has none."""
        place = self._translation.register(number)
        if place is None:
            return None
        if place.name == "eip":
            linear = int.from_bytes(value, "little")
            value = ((linear - self._base(text)) & _WORD).to_bytes(len(value), "little")
        return place.number, self._translation.fit_to_source(place, value)

    def _base(self, text: bytes) -> int:
        segment = self._renamed.names.get("cs")
        return self._base_of((self._renamed.value(segment.of(text)) if segment else None) or 0)

    def _base_of(self, segment: int) -> int:
        return (segment & 0xFFFF) << 4 if self.mode is Mode.REAL else 0
