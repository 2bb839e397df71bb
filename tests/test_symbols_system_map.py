"""System.map as the same table that kallsyms gives; made-up, real ones, and what is none."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.debuginfo.mapping import mapped
from symbols import elf, kallsyms, system_map
from symbols.kallsyms import Kallsyms
from symbols.system_map import SystemMapError

ROOT = Path(__file__).resolve().parent.parent
LINES = b"""\
0000000000000000 D __per_cpu_start
0000000000022a00 d runqueues
0000000000033000 D __per_cpu_end
ffffffff81000000 T _text
ffffffff81000000 T _stext
ffffffff81a00990 T asm_exc_divide_error
"""


def test_symbols_in_their_order_and_per_cpu_variables_as_absolute() -> None:
    found = system_map.parse(LINES)
    assert found.names == (
        "__per_cpu_start", "runqueues", "__per_cpu_end", "_text", "_stext", "asm_exc_divide_error",
    )  # fmt: skip
    assert found.types == b"AAATTT"
    assert found.find("_stext", "runqueues") == {"_stext": 0xFFFFFFFF81000000, "runqueues": 0x22A00}


def test_a_moved_kernel_keeps_what_is_absolute() -> None:
    linked = system_map.parse(LINES)
    moved = linked.moved(0x16800000)
    assert moved.find("_stext", "runqueues") == {"_stext": 0xFFFFFFFF97800000, "runqueues": 0x22A00}
    assert moved.moved(-0x16800000) == linked


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no symbols"),
        (b"\n", "line 1"),
        (LINES[:-1], "cut off"),
        (LINES + b"ffffffff81000000 T\n", "line 7"),
        (LINES + b"81000000 T short\n", "line 7"),
        (LINES.replace(b" T _text", b" T _te xt"), "line 4"),
        (b"\x7fELF\n" + LINES, "line 1"),
        (
            b"ffffffffffffffff B The real System.map is in the linux-image-6.1.0-39-cloud-amd64-dbg package\n",
            "dbg package",
        ),
    ],
)
def test_what_is_none_is_said_so(data: bytes, words: str) -> None:
    with pytest.raises(SystemMapError, match=words):
        system_map.parse(data)


@given(st.lists(st.tuples(st.integers(0, len(LINES) - 1), st.integers(0, 255)), max_size=6))
def test_a_damaged_one_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(LINES)
    for at, byte in changes:
        data[at] = byte
    try:
        found = system_map.parse(bytes(data))
    except SystemMapError:
        return
    assert len(found.names) == len(found.addresses) == len(found.types)
    assert found.names


@given(st.binary(max_size=200))
def test_any_bytes_are_none(data: bytes) -> None:
    with pytest.raises(SystemMapError):
        system_map.parse(data)


@pytest.mark.guest
@pytest.mark.parametrize("name", ["cloud", "kgdb"])
def test_a_real_one_is_what_kallsyms_says(name: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{name}_built")
    listed = subprocess.run(
        [ROOT / "scripts" / "guest", "list", "--json"], capture_output=True, timeout=60, check=True
    )
    (vmlinux,) = (Path(one["vmlinux"]) for one in json.loads(listed.stdout) if one["name"] == name)
    with mapped(vmlinux) as image:
        section = next(one for one in elf.sections(image) if one.name == ".rodata")
        own = kallsyms.decode(image[section.offset : section.offset + section.size])
    told = system_map.parse(vmlinux.with_name("System.map").read_bytes())
    assert not entries(own) - entries(told)
    # What scripts/kallsyms.c leaves out (is_ignored_symbol).
    beyond = {name for _, _, name in entries(told) - entries(own)}
    rest = {one for one in beyond if not one.startswith(("kallsyms_", "init_per_cpu__"))}
    assert rest <= {"kexec_control_code_size", "phys_startup_64", "text_size"}


def entries(table: Kallsyms) -> set[tuple[int, int, str]]:
    return set(zip(table.addresses, table.types, table.names, strict=True))
