"""Target descriptions, our own and those of stubs, and registers put from one's order in another's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rsp import stub

from gdbstubs.errors import TargetError
from gdbstubs.registers import (
    LARGEST_DOCUMENT,
    Description,
    DescriptionError,
    DescriptionRead,
    Register,
    Translation,
    flatten,
    includes,
    parse_description,
)
from gdbstubs.x86 import KGDB_X86_64, X86_64

# What QEMU 7.2 serves for x86-64, written down from a running one.
QEMU_ORDER = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
    *("rip", "eflags", "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base", "k_gs_base"),
    *("cr0", "cr2", "cr3", "cr4", "cr8", "efer"),
    *(f"st{number}" for number in range(8)),
    *("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"),
    *(f"xmm{number}" for number in range(16)),
    "mxcsr",
)


def test_our_description_of_x86_64_is_that_of_qemu() -> None:
    assert tuple(one.name for one in X86_64.registers) == QEMU_ORDER
    assert [one.number for one in X86_64.registers] == list(range(66))
    assert X86_64.text_length == 1216
    assert X86_64.program_counter == Register("rip", 16, 8, 128)
    sizes = {
        name: X86_64.names[name].size for name in ("rax", "eflags", "gs", "gs_base", "efer", "st7", "fop")
    }
    assert sizes == {"rax": 8, "eflags": 4, "gs": 4, "gs_base": 8, "efer": 8, "st7": 10, "fop": 4}
    assert X86_64.names["xmm15"].size == 16
    assert X86_64.names["mxcsr"].offset == 604


def test_kgdb_numbers_its_registers_as_we_do() -> None:
    for one in KGDB_X86_64.registers:
        ours = X86_64.names[one.name]
        assert (ours.number, ours.size, ours.offset) == (one.number, one.size, one.offset)


def test_kgdb_s_short_text_is_filled_up() -> None:
    text = bytes(range(156)).hex().encode()
    translated = Translation(KGDB_X86_64, X86_64).translate(text)
    assert len(translated) == X86_64.text_length
    assert translated[: len(text)] == text
    assert set(translated[len(text) :]) == {ord("x")}, "fs, gs and all behind them are not available"


def test_equal_layouts_are_passed_on_as_they_are() -> None:
    same = Translation(X86_64, parse_description(X86_64.document))
    assert same.is_identity
    text = b"00" * 608
    assert same.translate(text) is text


def description(*registers: tuple[str, int], architecture: str = "i386:x86-64") -> Description:
    placed = []
    offset = 0
    for number, (name, size) in enumerate(registers):
        placed.append(Register(name, number, size, offset))
        offset += size
    return Description(architecture, tuple(placed))


def test_sizes_that_differ_are_fitted() -> None:
    wide, narrow = description(("a", 8), ("b", 4), ("c", 2)), description(("c", 2), ("a", 4))
    assert (
        Translation(narrow, wide).translate(b"aabb" + b"11223344")
        == b"1122334400000000" + b"xxxxxxxx" + b"aabb"
    )
    assert (
        Translation(wide, narrow).translate(b"1122334455667788" + b"99" * 4 + b"aabb")
        == b"aabb" + b"11223344"
    )
    big = description(("a", 8), architecture="powerpc:common64")
    assert Translation(narrow, big).translate(b"aabb11223344") == b"xx" * 8


NAMES = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 9)), unique_by=lambda one: one[0], min_size=1
)


@settings(deadline=None, max_examples=200)
@given(NAMES, NAMES, st.data())
def test_a_translated_text_has_the_target_s_length_and_the_source_s_values(
    source: list[tuple[str, int]], target: list[tuple[str, int]], data: st.DataObject
) -> None:
    one, other = description(*source), description(*target)
    length = data.draw(st.integers(0, one.text_length // 2))
    text = data.draw(st.binary(min_size=length, max_size=length)).hex().encode()
    translation = Translation(one, other)
    translated = translation.translate(text)
    if translation.is_identity:
        assert translated == text
        return
    assert len(translated) == other.text_length
    for name, register in other.names.items():
        there = one.names.get(name)
        if there is None or 2 * (there.offset + there.size) > len(text):
            assert set(register.of(translated)) <= {ord("x")}
        elif there.size <= register.size:
            assert other.value(register.of(translated)) == one.value(there.of(text))
    # What is written back changes nothing that it does not name.
    whole = text.ljust(one.text_length, b"0")
    full = Translation(one, other).translate(whole)
    if all(
        register.size == one.names[name].size for name, register in other.names.items() if name in one.names
    ):
        again = Translation(one, other).overlay(whole, bytes.fromhex(full.replace(b"x", b"0").decode()))
        assert again == whole


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────


def read(documents: dict[str, bytes]) -> Any:
    answers: list[Any] = []
    asked: list[str] = []

    def serve(name: str, done: Any) -> None:
        asked.append(name)
        done(documents.get(name, TargetError(2, f"there is no {name}")))

    DescriptionRead(serve, answers.append).start()
    assert len(answers) == 1
    assert len(asked) == len(set(asked)), "asked twice"
    return answers[0]


def test_a_description_is_put_together_from_what_it_includes() -> None:
    found = read({name.decode(): document for name, document in stub.DOCUMENTS.items()})
    assert [one.name for one in found.registers] == [
        "rax",
        "rbx",
        "rsp",
        "rip",
        "eflags",
        "cs",
        "cr3",
        "xmm0",
    ]
    assert found.architecture == "i386:x86-64"
    assert includes(found.document) == ()
    assert parse_description(found.document) == found
    assert b"the registers that there are" in found.document, "notices stay"


def test_numbers_go_on_from_the_last_one_given() -> None:
    found = parse_description(
        b'<target><feature name="a"><reg name="x" bitsize="8" regnum="7"/><reg name="y" bitsize="8"/></feature>'
        b'<feature name="b"><reg name="z" bitsize="16" regnum="0"/></feature></target>'
    )
    assert [(one.name, one.number, one.offset) for one in found.registers] == [
        ("z", 0, 0),
        ("x", 7, 2),
        ("y", 8, 3),
    ]


BAD = {
    "no XML": b"<target>",
    "empty": b"",
    "no registers": b"<target/>",
    "no target": b'<feature><reg name="a" bitsize="8"/></feature>',
    "no name": b'<target><reg bitsize="8"/></target>',
    "odd size": b'<target><reg name="a" bitsize="7"/></target>',
    "no size": b'<target><reg name="a"/></target>',
    "huge": b'<target><reg name="a" bitsize="80000"/></target>',
    "no number": b'<target><reg name="a" bitsize="8" regnum="-1"/></target>',
    "one number twice": b'<target><reg name="a" bitsize="8" regnum="1"/>'
    b'<reg name="b" bitsize="8" regnum="1"/></target>',
    "one name twice": b'<target><reg name="a" bitsize="8"/><reg name="a" bitsize="8"/></target>',
    "entities": b'<!DOCTYPE target [<!ENTITY a "aaaa">]><target><reg name="&a;" bitsize="8"/></target>',
    "hidden entities": '<!DOCTYPE target [<!ENTITY a "a">]><target/>'.encode("utf-16"),
    "too long": b"<target>" + b" " * LARGEST_DOCUMENT + b"</target>",
    "itself": b'<target><xi:include href="target.xml"/></target>',
    "elsewhere": b'<target><xi:include href="http://example.org/a.xml"/></target>',
    "not there": b'<target><xi:include href="b.xml"/></target>',
    "a thousand": b"<target>"
    + b"".join(b'<xi:include href="%d.xml"/>' % one for one in range(1000))
    + b"</target>",
}


@pytest.mark.parametrize("document", BAD.values(), ids=BAD.keys())
def test_a_description_that_makes_no_sense_is_an_error(document: bytes) -> None:
    assert isinstance(read({"target.xml": document}), TargetError)


def test_documents_that_include_each_other_end() -> None:
    one, other = (
        b'<target><xi:include href="b.xml"/></target>',
        b'<feature><xi:include href="target.xml"/></feature>',
    )
    assert isinstance(read({"target.xml": one, "b.xml": other}), TargetError)
    with pytest.raises(DescriptionError, match="includes itself"):
        flatten("target.xml", {"target.xml": one, "b.xml": other})


PIECES = st.sampled_from(
    [
        *(b"<target>", b"</target>", b"<feature name='a'>", b"</feature>", b"<reg name='a' bitsize='8'/>"),
        *(
            b"<xi:include href='a.xml'/>",
            b"<?xml version='1.0'?>",
            b"<!DOCTYPE target>",
            b"<!--",
            b"-->",
            b"&amp;",
        ),
        *(
            b"<reg name='b' bitsize='64' regnum='3'/>",
            b"<architecture>i386</architecture>",
            b"<![CDATA[",
            b"]]>",
        ),
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(PIECES, st.binary(max_size=6)), max_size=12), st.lists(PIECES, max_size=6))
def test_anything_is_a_description_or_an_error(main: list[bytes], included: list[bytes]) -> None:
    found = read({"target.xml": b"".join(main), "a.xml": b"".join(included)})
    assert isinstance(found, Description | TargetError)
    if isinstance(found, Description):
        assert parse_description(found.document) == found
