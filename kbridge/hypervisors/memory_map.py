"""Which physical addresses are memory: QEMU's ``info mtree -f``, read; pure.

It shows one view for each group of address spaces that see the same, and what is where in it (seen with QEMU 7.2)::

    FlatView #2
     AS "memory", root: system
     AS "cpu-memory-0", root: system
     Root memory region: system
      0000000000000000-00000000000bffff (prio 0, ram): pc.ram
      00000000000c0000-00000000000c3fff (prio 0, rom): pc.ram @00000000000c0000
"""

from __future__ import annotations

import re
from typing import Final

from kbridge.errors import MachineError

COMMAND: Final = "info mtree -f"

_VIEW: Final = re.compile(r"^FlatView #\d+$", re.MULTILINE)
_IS_MEMORY: Final = re.compile(r'^ AS "memory", root: ', re.MULTILINE)
_RANGE: Final = re.compile(r"^  ([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ram\): ", re.MULTILINE)


def ram(text: str) -> tuple[tuple[int, int], ...]:
    """Return the ranges of memory that can be written, each up to the address after its last.

    ``MachineError`` for any other text.
    """
    for view in _VIEW.split(text):
        if _IS_MEMORY.search(view):
            return tuple((int(first, 16), int(last, 16) + 1) for first, last in _RANGE.findall(view))
    raise MachineError(
        "the monitor's answer to `info mtree` is not understood", why=repr(text[:80]), todo="is it QEMU's?"
    )
