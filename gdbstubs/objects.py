"""Objects that debuggers read in pieces by ``qXfer``.

Source: GDB manual, "Thread List Format", "General Query Packets".
"""

from __future__ import annotations

from xml.sax.saxutils import escape as xml_escape
from xml.sax.saxutils import quoteattr

from gdbstubs.packets import format_thread
from gdbstubs.target import Thread
from gdbstubs.wire import escape


def threads_xml(threads: tuple[Thread, ...]) -> bytes:
    """Return the document of ``qXfer:threads:read``; it replaces three requests for each thread.

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
