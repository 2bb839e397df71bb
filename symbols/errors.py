"""Errors of the symbol readers.

SymbolError
NotAnElf              the bytes are no ELF file, or a cut-off one
IndexDamaged          an index is of another version, or damaged
SlideUnknown          guest memory does not show where the kernel was put
"""

from __future__ import annotations


class SymbolError(Exception):
    """Symbols cannot be had from these bytes; nothing was changed."""


class NotAnElf(SymbolError):
    """The bytes are no ELF file that we can read, or are cut off."""


class IndexDamaged(SymbolError):
    """An index of ours that cannot be trusted: it is to be made anew."""


class SlideUnknown(SymbolError):
    """Guest memory does not show where KASLR put the kernel."""
