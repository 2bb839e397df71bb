"""System.map: the list of a kernel's symbols that its build leaves beside it, as the same table that kallsyms gives.

Source: Linux, scripts/mksysmap, which sorts the output of ``nm -n``.  A line is an address of 16 hexadecimal digits,
``nm``'s letter for the type, and a name.  Addresses are as linked.  What is between ``__per_cpu_start`` and
``__per_cpu_end`` is an offset into each processor's area: data to ``nm``, absolute (``A``) to kallsyms and to us.
"""

from __future__ import annotations

import re
from typing import Final

from symbols.errors import SymbolError
from symbols.kallsyms import Kallsyms

MOST_BYTES: Final = 64 << 20
_LINE: Final = re.compile(rb"([0-9a-fA-F]{16}) ([A-Za-z?-]) (\S{1,1024})\n")
_PER_CPU_START: Final = "__per_cpu_start"
_PER_CPU_END: Final = "__per_cpu_end"
_ELSEWHERE: Final = b"The real System.map is in the"


class SystemMapError(SymbolError):
    """The bytes are no System.map."""


def parse(data: bytes) -> Kallsyms:
    """Return the symbols, in the order of the file, which is by address.  Raises ``SystemMapError``."""
    if len(data) > MOST_BYTES:
        raise SystemMapError(f"a System.map of {len(data)} bytes is larger than any kernel's")
    if _ELSEWHERE in data[:200]:
        # Debian has this in /boot.
        raise SystemMapError(f"it says: {data[:200].strip().decode('utf-8', 'replace')}")
    if data and not data.endswith(b"\n"):
        raise SystemMapError("it is cut off in a line")
    found = _LINE.findall(data)
    lines = data.count(b"\n")
    if not found or len(found) != lines or sum(len(name) for _, _, name in found) + 20 * lines != len(data):
        raise SystemMapError(_first_bad(data))
    addresses = tuple([int(address, 16) for address, _, _ in found])
    names = tuple([name.decode("utf-8", "replace") for _, _, name in found])
    types = bytearray(b"".join([kind for _, kind, _ in found]))
    if _PER_CPU_START in names and _PER_CPU_END in names:
        start, end = (addresses[names.index(one)] for one in (_PER_CPU_START, _PER_CPU_END))
        for index, address in enumerate(addresses):
            if start <= address <= end:
                types[index] = ord("A")
    return Kallsyms(addresses, bytes(types), names)


def _first_bad(data: bytes) -> str:
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        if not _LINE.fullmatch(line):
            return f"line {number} is not an address, a type and a name: {line[:60]!r}"
    return "it has no symbols"
