"""ORC tables and what is made of them: an interpreter of DWARF's instructions says that each address unwinds alike."""

from __future__ import annotations

import io
import struct
from random import Random

import pytest
from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs
from hypothesis import given, settings
from hypothesis import strategies as st

from symbols import orc
from symbols.debug_frame import debug_frame
from symbols.orc import Entry, OrcError, OrcLayout, Shape

OLD = OrcLayout((32, 4), (36, 4), (40, 2), (42, 1))
NEW = OrcLayout((32, 4), (36, 4), (40, 3), None)
BASE = 0xFFFFFFFF81000000
NUMBERS = {orc.DX: 1, orc.DI: 5, orc.BP: 6, orc.SP: 7, orc.R10: 10, orc.R13: 13}


def written(sp: int, sp_offset: int, bp: int, bp_offset: int, kind: int, *, end: bool = False) -> bytes:
    return struct.pack("<hhH", sp_offset, bp_offset, sp | bp << 4 | kind << 8 | end << 10)


CALL = written(orc.SP, 8, 0, 0, 0)
END = written(0, 0, 0, 0, 0, end=True)
NOTHING = written(0, 0, 0, 0, 0)


def parsed(section: bytes) -> list[FDE]:
    """The descriptions in a section, as pyelftools reads them."""
    structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8, dwarf_version=4)
    entries = CallFrameInfo(io.BytesIO(section), len(section), 0, structs).get_entries()
    return [one for one in entries if isinstance(one, FDE)]


def rules(section: bytes) -> dict[int, dict[object, str]]:
    """The rules at each address where they change: of the frame's address (`cfa`) and of registers."""
    found: dict[int, dict[object, str]] = {}
    for description in parsed(section):
        start, length = description["initial_location"], description["address_range"]
        for row in description.get_decoded().table:
            said: dict[object, str] = {}
            for key, value in row.items():
                if key == "cfa":
                    said["cfa"] = (
                        f"expr {bytes(value.expr).hex()}" if value.expr else f"r{value.reg}{value.offset:+d}"
                    )
                elif key != "pc":
                    said[key] = f"{value.type} {value.arg}"
            found[row["pc"]] = said
        found.setdefault(start + length, {})
    return found


def test_a_call_frame_and_the_base_pointer_saved_in_it() -> None:
    rows = [
        CALL,
        written(orc.SP, 16, orc.PREVIOUS_SP, -16, 0),
        written(orc.BP, 16, orc.PREVIOUS_SP, -16, 0),
        CALL,
        NOTHING,
    ]
    places = [BASE, BASE + 1, BASE + 4, BASE + 90, BASE + 91]
    found = rules(debug_frame(OLD, b"".join(rows), places))
    assert found[BASE] == {"cfa": "r7+8", 16: "OFFSET -8"}
    assert found[BASE + 1] == {"cfa": "r7+16", 16: "OFFSET -8", 6: "OFFSET -16"}
    assert found[BASE + 4] == {"cfa": "r6+16", 16: "OFFSET -8", 6: "OFFSET -16"}
    assert found[BASE + 90]["cfa"] == "r7+8"
    assert "OFFSET" not in found[BASE + 90].get(6, "")


def test_registers_of_an_exception_and_the_end_of_a_stack() -> None:
    rows = [written(orc.SP, 0, 0, 0, 1), written(orc.SP, 8, 0, 0, 2), END, CALL]
    section = debug_frame(OLD, b"".join(rows), [BASE, BASE + 70, BASE + 140, BASE + 210])
    found = rules(section)
    assert found[BASE]["cfa"] == "r7+0"
    assert found[BASE][16] == "OFFSET 128"  # pt_regs: rip, rsp, rbp, r15
    assert found[BASE][7] == "OFFSET 152"
    assert found[BASE][6] == "OFFSET 32"
    assert found[BASE][15] == "OFFSET 0"
    assert found[BASE + 70] == {"cfa": "r7+8", 16: "OFFSET 0", 49: "OFFSET 16", 7: "OFFSET 24"}
    assert found[BASE + 140][16].startswith("UNDEFINED")
    augmentations = {one["initial_location"]: one.cie["augmentation"] for one in parsed(section)}
    assert augmentations[BASE] == augmentations[BASE + 70] == b"zS"
    assert augmentations[BASE + 140] == b""


def test_stacks_that_are_switched() -> None:
    rows = [
        written(orc.SP_INDIRECT, 8, 0, 0, 0),
        written(orc.BP_INDIRECT, -8, 0, 0, 0),
        written(orc.R10, 0, 0, 0, 0),
        NOTHING,
    ]
    found = rules(debug_frame(OLD, b"".join(rows), [BASE, BASE + 1, BASE + 2, BASE + 100]))
    assert found[BASE]["cfa"] == "expr " + bytes((0x77, 0, 0x06, 0x11, 8, 0x22)).hex()
    assert found[BASE + 1]["cfa"] == "expr " + bytes((0x76, 0x78, 0x06)).hex()
    assert found[BASE + 2]["cfa"] == "r10+0"


def test_a_base_pointer_saved_where_it_leads_itself() -> None:
    """Functions that align their stack: the frame's address is reached through another register, or through memory."""
    rows = [
        CALL,
        written(orc.R10, 0, orc.BP, 0, 0),
        written(orc.BP_INDIRECT, -24, orc.BP, 0, 0),
        written(orc.BP_INDIRECT, -24, orc.BP, -16, 0),
        written(orc.SP, 16, orc.PREVIOUS_SP, -16, 0),
        CALL,
        NOTHING,
    ]
    places = [BASE + 10 * number for number in range(len(rows) - 1)] + [BASE + 200]
    section = debug_frame(OLD, b"".join(rows), places)
    found = rules(section)
    assert 6 not in found[BASE]
    assert found[BASE + 10][6] == found[BASE + 20][6] == f"EXPRESSION {[0x76, 0]}"
    assert found[BASE + 20]["cfa"] == "expr " + bytes((0x76, 0x68, 0x06)).hex()
    assert found[BASE + 30][6] == f"EXPRESSION {[0x76, 0x70]}"
    assert found[BASE + 40][6] == "OFFSET -16"
    assert "OFFSET" not in found[BASE + 50].get(6, "")
    assert "EXPRESSION" not in found[BASE + 50].get(6, "")


def test_a_frame_below_a_register() -> None:
    section = debug_frame(OLD, written(orc.SP, -16, 0, 0, 0) + NOTHING, [BASE, BASE + 100])
    # DW_CFA_def_cfa_sf, register 7, 2 times the data alignment of -8.
    assert bytes((0x12, 7, 2)) in section


def test_a_gap_between_functions_is_passed_over_and_a_large_one_is_not() -> None:
    near = debug_frame(OLD, CALL + NOTHING + CALL + NOTHING, [BASE, BASE + 10, BASE + 16, BASE + 30])
    assert len(parsed(near)) == 1
    far = debug_frame(OLD, CALL + NOTHING + CALL + NOTHING, [BASE, BASE + 10, BASE + 400, BASE + 430])
    first = parsed(far)[0]
    assert (first["initial_location"], first["address_range"]) == (BASE, 10)


def test_addresses_are_counted_from_an_origin() -> None:
    section = debug_frame(OLD, CALL + CALL + END, [BASE - 200, BASE, BASE + 10], BASE)
    starts = [one["initial_location"] for one in parsed(section)]
    assert starts[0] == (1 << 64) - 200


def test_the_fields_of_newer_kernels() -> None:
    assert orc.entry(NEW, written(orc.SP, 8, 0, 0, 2)).shape is Shape.CALL
    assert orc.entry(NEW, written(orc.SP, 0, 0, 0, 3)).shape is Shape.REGISTERS
    assert orc.entry(NEW, written(orc.SP, 0, 0, 0, 4)).shape is Shape.PARTIAL
    assert orc.entry(NEW, written(0, 0, 0, 0, 1)).shape is Shape.END
    assert orc.entry(NEW, written(0, 0, 0, 0, 0)).shape is Shape.UNKNOWN
    assert orc.entry(OLD, END) == Entry(Shape.END, 0, 0, 0, 0)


def test_places_are_relative_to_themselves_and_sorted() -> None:
    at = BASE + 0x1000
    data = struct.pack("<3i", BASE - at, BASE + 5 - at - 4, BASE + 9 - at - 8)
    assert orc.places(data, at) == [BASE, BASE + 5, BASE + 9]
    with pytest.raises(OrcError, match="not sorted"):
        orc.places(struct.pack("<2i", 100, 0), at)
    with pytest.raises(OrcError, match="3 bytes"):
        orc.places(bytes(3), at)
    with pytest.raises(OrcError, match="2 places for 6"):
        debug_frame(OLD, CALL, [BASE, BASE + 1])
    with pytest.raises(OrcError, match="register 12"):
        debug_frame(OLD, written(12, 0, 0, 0, 0) + END, [BASE, BASE + 1])


@given(st.integers(0, 1 << 30), st.integers(2, 900))
@settings(max_examples=30, deadline=None)
def test_every_address_unwinds_as_its_entry_says(seed: int, count: int) -> None:
    random = Random(seed)
    rows, places, at = [], [], BASE
    for _ in range(count):
        base = random.choice(sorted(NUMBERS))
        saved = random.choice([0, orc.PREVIOUS_SP])
        rows.append(written(base, random.randrange(0, 4096, 8), saved, random.randrange(-512, 0, 8), 0))
        places.append(at)
        at += random.choice([1, 3, 63, 64, 255, 256, 70000])
    found = rules(debug_frame(OLD, b"".join([*rows, END]), [*places, at]))
    now: dict[object, str] = {}
    for row, place in zip(rows, places, strict=True):
        now = found.get(place, now)
        entry = orc.entry(OLD, row)
        assert now["cfa"] == f"r{NUMBERS[entry.base]}{entry.offset:+d}"
        assert now[16] == "OFFSET -8"
        if entry.bp:
            assert now[6] == f"OFFSET {entry.bp_offset}"
        else:
            assert "OFFSET" not in now.get(6, "")


@given(st.binary(max_size=240), st.sampled_from([OLD, NEW]))
def test_any_entries_are_described_or_refused(data: bytes, where: OrcLayout) -> None:
    data = data[: len(data) - len(data) % 6]
    try:
        section = debug_frame(where, data, [BASE + 16 * number for number in range(len(data) // 6)])
    except OrcError:
        return
    for one in parsed(section):
        assert one["address_range"] > 0
