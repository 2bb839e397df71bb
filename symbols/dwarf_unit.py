"""The source line of one address by reading one compile unit's line program with pyelftools.

For what the index of lines does not know, such as assembler code: 0.5 s in a kernel's file, where the index takes
microseconds.

Source: DWARF 5, 6.1.2 (``.debug_aranges``) and 6.2 (line number information).
"""

from __future__ import annotations

from typing import IO, Any

from elftools.common.exceptions import DWARFError, ELFError
from elftools.construct.lib.container import Container
from elftools.elf.elffile import ELFFile

from symbols.errors import NotAnElf, SymbolError
from symbols.lines import Frame


def line_at(stream: IO[bytes], address: int) -> Frame | None:
    """Return file and line of an address as linked; None where the file has no unit or no line for it.

    Raises ``SymbolError`` for a file that cannot be read.
    """
    try:
        file = ELFFile(stream)
        if not file.has_dwarf_info():
            return None
        # Relocations of a linked kernel are kept and were applied: to apply them again takes minutes.
        dwarf = file.get_dwarf_info(relocate_dwarf_sections=False)
        aranges = dwarf.get_aranges()
        offset = None if aranges is None else aranges.cu_offset_at_addr(address)
        if offset is None:
            return None
        return _line(dwarf.line_program_for_CU(dwarf.get_CU_at(offset)), address)
    except ELFError as error:
        raise NotAnElf(str(error) or "it is no ELF file that can be read") from error
    except (
        DWARFError,
        AssertionError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        # pyelftools does not check all that a damaged file may say.
        raise SymbolError(f"its DWARF is damaged: {error}") from error


def _line(program: Any, address: int) -> Frame | None:
    if program is None:
        return None
    before = None
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if before is not None and before.address <= address < state.address and not before.end_sequence:
            return Frame(None, _file(program.header, before.file), before.line or None)
        before = state
    return None


def _file(header: Container, number: int) -> str | None:
    """Return the name of a file of a line program: numbered from 0 since DWARF 5, from 1 before."""
    old = header["version"] < 5
    files = header["file_entry"]
    index = number - 1 if old else number
    if not 0 <= index < len(files):
        return None
    entry = files[index]
    name = _text(entry["name"])
    folders = header["include_directory"]
    folder = entry["dir_index"]
    if name.startswith("/") or (old and not folder):
        return name
    place = folder - 1 if old else folder
    if not 0 <= place < len(folders):
        return name
    return f"{_text(folders[place])}/{name}" if (old or place) else name


def _text(text: bytes | str) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text
