"""What debuggers are told of the target as a whole: objects that they read in pieces by ``qXfer``, the host for LLDB.

Source: GDB manual, "Thread List Format", "General Query Packets"; LLDB, "GDB Remote Protocol Extensions".
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final
from xml.sax.saxutils import escape as xml_escape
from xml.sax.saxutils import quoteattr

from gdbstubs.packets import format_thread
from gdbstubs.target import Thread
from gdbstubs.wire import escape


@lru_cache(maxsize=8)
def threads_xml(threads: tuple[Thread, ...]) -> bytes:
    """Return the document of ``qXfer:threads:read``; it replaces three requests for each thread.

    Sessions ask for the same list at each stop, most of them several times.

    gdb warns at every stop and loses the threads if it is not valid XML, so control characters go too.
    """
    lines = ['<?xml version="1.0"?>', "<threads>"]
    for thread in threads:
        said = xml_escape("".join(one if one.isprintable() else "?" for one in thread.extra))
        lines.append(f"<thread id={quoteattr(format_thread(thread.id).decode())}>{said}</thread>")
    lines.append("</threads>")
    return "\n".join(lines).encode()


def piece(data: bytes, offset: int, length: int) -> bytes:
    """Return the reply that carries ``data[offset:offset + length]``: ``m`` while more follows, else ``l``."""
    part = data[offset : offset + length]
    letter = b"m" if offset + len(part) < len(data) and part else b"l"
    return letter + escape(part)


_TRIPLES: Final = {b"i386:x86-64": b"x86_64-unknown-linux-gnu"}
_ARCHITECTURE: Final = re.compile(rb"<architecture>\s*([^<\s]*)\s*</architecture>")


def host_info(description: bytes | None) -> bytes:
    """Return the reply to ``qHostInfo`` for a target description, empty where its architecture is not known.

    Without it LLDB looks for a Darwin kernel in hundreds of small reads.
    """
    match = _ARCHITECTURE.search(description or b"")
    triple = _TRIPLES.get(match.group(1)) if match is not None else None
    if triple is None:
        return b""
    return b"triple:%s;ptrsize:8;endian:little;" % triple.hex().encode()


def process_info(description: bytes | None) -> bytes:
    """Return the reply to ``qProcessInfo``, which tells the same of the one process that a guest is shown as."""
    host = host_info(description)
    return b"pid:1;ostype:linux;" + host if host else b""
