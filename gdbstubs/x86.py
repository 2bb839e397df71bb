"""x86-64's registers: our own description of them, and the layout of kgdb's ``g`` packet.

The description has the registers, numbers and sizes that QEMU 7.2 gives to a 64-bit machine, so that a debugger
that was given it before the stub was asked is right afterwards.  All stand in one feature, as there: debuggers put
``g`` together in the order of the document.  Names and types: GDB manual, "i386 Features".

kgdb's layout: Linux, arch/x86/include/asm/kgdb.h.  Its ``g`` ends before ``fs`` (NUMREGBYTES is that short in
Linux 6.1), so these two read as not available.
"""

from __future__ import annotations

from typing import Final

from gdbstubs.registers import Description, Register, parse_description

_GENERAL: Final = (
    *((name, "int64") for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi")),
    ("rbp", "data_ptr"),
    ("rsp", "data_ptr"),
    *((f"r{number}", "int64") for number in range(8, 16)),
    ("rip", "code_ptr"),
)
_SEGMENTS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
_BASES: Final = ("fs_base", "gs_base", "k_gs_base")
_CONTROL: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
_X87: Final = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_EFLAGS: Final = (
    *(("CF", 0), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10), ("OF", 11)),
    *(("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("VIF", 19), ("VIP", 20), ("ID", 21)),
)
_MXCSR: Final = ("IE", "DE", "ZE", "OE", "UE", "PE", "DAZ", "IM", "DM", "ZM", "OM", "UM", "PM")
_VECTORS: Final = (
    ("v4f", "ieee_single", 4),
    ("v2d", "ieee_double", 2),
    ("v16i8", "int8", 16),
    ("v8i16", "int16", 8),
    ("v4i32", "int32", 4),
    ("v2i64", "int64", 2),
)
_UNION: Final = (
    ("v4_float", "v4f"),
    ("v2_double", "v2d"),
    ("v16_int8", "v16i8"),
    ("v8_int16", "v8i16"),
    ("v4_int32", "v4i32"),
    ("v2_int64", "v2i64"),
    ("uint128", "uint128"),
)


def _register(name: str, bits: int, kind: str, group: str = "") -> str:
    more = f' group="{group}"' if group else ""
    return f'<reg name="{name}" bitsize="{bits}" type="{kind}"{more}/>'


def _flags(name: str, size: int, bits: tuple[tuple[str, int], ...]) -> str:
    fields = "".join(f'<field name="{flag}" start="{bit}" end="{bit}"/>' for flag, bit in bits)
    return f'<flags id="{name}" size="{size}">{fields}</flags>'


def _document() -> bytes:
    lines = [
        '<?xml version="1.0"?>',
        "<target><architecture>i386:x86-64</architecture>",
        '<feature name="org.gnu.gdb.i386.core">',
        _flags("eflags_bits", 4, _EFLAGS),
        _flags("mxcsr_bits", 4, (*((flag, bit) for bit, flag in enumerate(_MXCSR)), ("FZ", 15))),
        *(f'<vector id="{name}" type="{kind}" count="{count}"/>' for name, kind, count in _VECTORS),
        f'<union id="vec128">{"".join(f"<field name={n!r} type={t!r}/>" for n, t in _UNION)}</union>',
        *(_register(name, 64, kind) for name, kind in _GENERAL),
        _register("eflags", 32, "eflags_bits"),
        *(_register(name, 32, "int32") for name in _SEGMENTS),
        *(_register(name, 64, "int64") for name in (*_BASES, *_CONTROL)),
        *(_register(f"st{number}", 80, "i387_ext") for number in range(8)),
        *(_register(name, 32, "int", "float") for name in _X87),
        *(_register(f"xmm{number}", 128, "vec128") for number in range(16)),
        _register("mxcsr", 32, "mxcsr_bits", "vector"),
        "</feature></target>\n",
    ]
    return "\n".join(lines).encode("ascii")


X86_64: Final = parse_description(_document())
"""What is served where the stub's own description is not known yet, or it has none."""


def _kgdb() -> Description:
    wide = [name for name, _ in _GENERAL]
    registers: list[Register] = []
    offset = 0
    for number, name in enumerate((*wide, "eflags", *_SEGMENTS)):
        size = 8 if number < len(wide) else 4
        registers.append(Register(name, number, size, offset))
        offset += size
    return Description("i386:x86-64", tuple(registers))


KGDB_X86_64: Final = _kgdb()
"""kgdb's registers, which it numbers as we do, but of which it has the first 24 only."""
