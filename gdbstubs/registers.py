"""Registers as a target description tells them: their names, numbers, sizes and places in a ``g`` packet.

Source: GDB manual, "Target Descriptions".  Registers are numbered in the order of the document, from the last
``regnum`` on; a ``g`` packet holds them in the order of their numbers, each in the target's byte order, as hexadecimal
text with ``xx`` for a byte that is not available.

A session's debugger reads one description and judges every later ``g`` by it: gdb takes no longer one.  So the client
half freezes the first description that it served, and ``Translation`` puts the text of any other stub, such as kgdb's
short one, in that order.  Little-endian only where sizes differ; all else is independent of the byte order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from xml.etree import ElementTree as ET

from gdbstubs.errors import E2BIG, EIO, TargetError
from gdbstubs.target import Reply

LARGEST_DOCUMENT: Final = 1 << 20
"""Bytes of all documents of a description together."""
MOST_DOCUMENTS: Final = 32
MOST_REGISTERS: Final = 4096
LARGEST_REGISTER: Final = 1024
"""Bytes; the longest vectors of real machines have 256."""

PROGRAM_COUNTERS: Final = ("rip", "eip", "pc")
"""What the program counter is called: x86-64, i386, and AArch64, Arm, RISC-V and others."""

_PREFIX: Final = re.compile(rb"<(/?)xi:include\b")
_INCLUDE: Final = "xi.include"


class DescriptionError(ValueError):
    """A target description that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Register:
    """One register; ``size`` and ``offset`` (its place in the data of ``g``) are in bytes."""

    name: str
    number: int
    size: int
    offset: int

    def of(self, text: bytes) -> bytes:
        """Cut this register out of the text of a ``g`` packet; ``xx`` for what the text does not reach."""
        found = text[2 * self.offset : 2 * (self.offset + self.size)]
        return found if len(found) == 2 * self.size else b"xx" * self.size


@dataclass(frozen=True, slots=True)
class Description:
    """What a stub's or our own target description says.

    ``document`` is the whole of it as XML, without includes; empty where there is only a layout.
    """

    architecture: str
    registers: tuple[Register, ...]
    document: bytes = field(default=b"", repr=False, compare=False)
    names: Mapping[str, Register] = field(init=False, repr=False, compare=False)
    numbers: Mapping[int, Register] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", {one.name: one for one in self.registers})
        object.__setattr__(self, "numbers", {one.number: one for one in self.registers})

    @property
    def text_length(self) -> int:
        """How many characters the text of all registers has."""
        return 2 * sum(one.size for one in self.registers)

    @property
    def program_counter(self) -> Register | None:
        """The register that holds the address of the next instruction."""
        return next((self.names[name] for name in PROGRAM_COUNTERS if name in self.names), None)

    @property
    def byte_order(self) -> Literal["little", "big"]:
        """How registers are sent, as far as the architecture's name tells."""
        known = self.architecture.startswith(("i386", "i8086", "aarch64", "riscv", "arm"))
        return "little" if known or not self.architecture else "big"

    def value(self, text: bytes) -> int | None:
        """Return the value of one register's text; None where a byte of it is not available."""
        if not text or b"x" in text:
            return None
        return int.from_bytes(bytes.fromhex(text.decode("ascii")), self.byte_order)

    def values(self, text: bytes) -> dict[str, int | None]:
        """Return all registers' values out of the text of a ``g`` packet, by their names."""
        return {one.name: self.value(one.of(text)) for one in self.registers}


# -- translation --------------------------------------------------------------------------------------------


class Translation:
    """Puts registers as one description orders them in the order of another one, by their names."""

    __slots__ = ("_pieces", "is_identity", "source", "target")

    def __init__(self, source: Description, target: Description) -> None:
        self.source = source
        self.target = target
        self.is_identity = source.registers == target.registers
        self._pieces = tuple((source.names.get(one.name), one.size) for one in target.registers)

    def translate(self, text: bytes) -> bytes:
        """Translate the text of a whole ``g`` packet; what the source lacks becomes ``xx``."""
        if self.is_identity:
            return text
        return b"".join(
            b"xx" * size if one is None else self._fit(one.of(text), size) for one, size in self._pieces
        )

    def register(self, number: int) -> Register | None:
        """Return the source's register that the target knows by a number; None where it has none."""
        wanted = self.target.numbers.get(number)
        return None if wanted is None else self.source.names.get(wanted.name)

    def overlay(self, text: bytes, data: bytes) -> bytes:
        """Return the source's ``text`` with the registers out of ``data``, which is in the target's order.

        What ``data`` does not reach, and what the source could not tell itself, stays as it is in ``text``.
        """
        written = bytearray(text)
        for one in self.target.registers:
            place = self.source.names.get(one.name)
            value = data[one.offset : one.offset + one.size]
            if place is None or len(value) < one.size or b"x" in place.of(text):
                continue
            written[2 * place.offset : 2 * (place.offset + place.size)] = self._fit(
                value.hex().encode("ascii"), place.size
            )
        return bytes(written)

    def fit_to_source(self, register: Register, value: bytes) -> bytes:
        """Return a value that the target's side wrote as the source's ``register`` takes it."""
        return bytes.fromhex(self._fit(value.hex().encode("ascii"), register.size).decode("ascii"))

    def fit_to_target(self, number: int, text: bytes) -> bytes:
        """Return the source's text of one register as the target's register ``number`` has it."""
        return self._fit(text, self.target.numbers[number].size)

    def _fit(self, text: bytes, size: int) -> bytes:
        if len(text) == 2 * size:
            return text
        if b"x" in text or self.target.byte_order != "little":
            return b"xx" * size
        return text[: 2 * size].ljust(2 * size, b"0")


# -- reading ------------------------------------------------------------------------------------------------


def parse_description(document: bytes) -> Description:
    """Read a description that includes nothing; raises ``DescriptionError``."""
    root = _parse(document)
    if root.tag != "target":
        raise DescriptionError(f"the document is a <{root.tag}>, not a <target>")
    architecture = (root.findtext("architecture") or "").strip()
    found: list[tuple[int, str, int]] = []
    number = 0
    for element in root.iter("reg"):
        name = element.get("name", "")
        number = _number(element, "regnum", number)
        bits = _number(element, "bitsize", 0)
        if not name or bits % 8 or not 0 < bits <= 8 * LARGEST_REGISTER:
            raise DescriptionError(f"register {name[:40]!r} has {bits} bits")
        found.append((number, name, bits // 8))
        number += 1
        if len(found) > MOST_REGISTERS:
            raise DescriptionError(f"there are more than {MOST_REGISTERS} registers")
    if not found:
        raise DescriptionError("it names no registers")
    found.sort()
    return Description(architecture, _placed(found), document)


def _placed(found: list[tuple[int, str, int]]) -> tuple[Register, ...]:
    registers: list[Register] = []
    offset = 0
    for number, name, size in found:
        registers.append(Register(name, number, size, offset))
        offset += size
    if len({one.number for one in registers}) < len(registers) or (
        len({one.name for one in registers}) < len(registers)
    ):
        raise DescriptionError("a register stands in it twice")
    return tuple(registers)


def _number(element: ET.Element, name: str, default: int) -> int:
    text = element.get(name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,6}", text):
        raise DescriptionError(f"{name} is {text[:40]!r}")
    return int(text)


def _parse(document: bytes) -> ET.Element:
    """Read XML of a peer: no entities of its own, nothing fetched, the usual prefix of includes left undeclared."""
    if len(document) > LARGEST_DOCUMENT:
        raise DescriptionError(f"it has more than {LARGEST_DOCUMENT} bytes")
    if b"<!ENTITY" in document:
        raise DescriptionError("it declares entities")
    builder = _Builder(insert_comments=True)
    # Without declarations of its own a document has the five usual entities only: nothing grows when it is read.
    parser = ET.XMLParser(target=builder)  # noqa: S314
    try:
        # As text, so that no encoding that the document declares can hide anything from the line above.
        parser.feed(_PREFIX.sub(rb"<\1xi.include", document).decode("utf-8"))
        root = parser.close()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise DescriptionError(f"it is no XML: {error}") from None
    if not isinstance(root, ET.Element):
        raise DescriptionError("it is empty")
    return root


class _Builder(ET.TreeBuilder):
    """Builds a tree that keeps the notices in front of a document: they move into it."""

    _early: tuple[str, ...] = ()
    _begun = False

    def start(self, tag: str, attrs: dict[str, str], /) -> ET.Element:
        self._begun = True
        return super().start(tag, attrs)

    def comment(self, text: str | None, /) -> ET.Element:
        if not self._begun:
            self._early = (*self._early, text or "")
        return super().comment(text)

    def close(self) -> ET.Element:
        root = super().close()
        for index, text in enumerate(self._early):
            root.insert(index, ET.Comment(text))
        return root


def includes(document: bytes) -> tuple[str, ...]:
    """Name the documents that one includes; raises ``DescriptionError``."""
    return tuple(_href(element) for element in _parse(document).iter(_INCLUDE))


def _href(element: ET.Element) -> str:
    href = element.get("href", "")
    if not href or not href.isascii() or not href.isprintable() or ":" in href:
        raise DescriptionError(f"it includes {href[:40]!r}")
    return href


def flatten(main: str, documents: Mapping[str, bytes]) -> bytes:
    """Put a description's documents in one: each include is replaced by what it names.

    Raises ``DescriptionError`` when a document includes itself, or together they are too large.
    """
    root = _flattened(main, documents, ())
    ET.indent(root, "")
    text: bytes = ET.tostring(root, encoding="us-ascii")
    return b'<?xml version="1.0"?>\n' + text


def _flattened(name: str, documents: Mapping[str, bytes], outer: tuple[str, ...]) -> ET.Element:
    if name in outer:
        raise DescriptionError(f"{name!r} includes itself")
    if len(outer) >= MOST_DOCUMENTS:
        raise DescriptionError("includes are nested too deeply")
    root = _parse(documents[name])
    for parent in list(root.iter()):
        for index, child in enumerate(list(parent)):
            if child.tag == _INCLUDE:
                parent[index] = _flattened(_href(child), documents, (*outer, name))
    return root


class DescriptionRead:
    """A stub's whole description: ``target.xml`` and all that it includes, read one after the other.

    ``read`` reads one document; ``done`` is called once.
    """

    def __init__(self, read: Callable[[str, Reply[bytes]], None], done: Reply[Description]) -> None:
        self._read = read
        self._done = done
        self._documents: dict[str, bytes] = {}
        self._wanted = ["target.xml"]

    def start(self) -> None:
        """Read the first document."""
        self._next()

    def _next(self) -> None:
        name = self._wanted[0]
        self._read(name, self._arrived)

    def _arrived(self, document: bytes | TargetError) -> None:
        if isinstance(document, TargetError):
            self._done(document)
            return
        self._documents[self._wanted.pop(0)] = document
        if sum(map(len, self._documents.values())) > LARGEST_DOCUMENT:
            self._done(TargetError(E2BIG, f"the target description has more than {LARGEST_DOCUMENT} bytes"))
            return
        try:
            for name in includes(document):
                if name not in self._documents and name not in self._wanted:
                    self._wanted.append(name)
            if len(self._documents) + len(self._wanted) > MOST_DOCUMENTS:
                raise DescriptionError(f"it consists of more than {MOST_DOCUMENTS} documents")
            if not self._wanted:
                self._done(parse_description(flatten("target.xml", self._documents)))
                return
        except DescriptionError as error:
            self._done(TargetError(EIO, f"the stub's target description makes no sense: {error}"))
            return
        self._next()
