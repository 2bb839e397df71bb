"""A kernel's own table of symbols: made-up ones of both arrangements, real ones, damaged ones."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symbols_lab import Image

from kbridge.debuginfo.mapping import mapped
from symbols import elf, kallsyms
from symbols.kallsyms import Kallsyms, KallsymsError

ROOT = Path(__file__).resolve().parent.parent
BASE = 0xFFFFFFFF9A000000
COUNT = 1500


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def tokens_of(pairs: dict[int, str]) -> tuple[list[str], bytes, bytes]:
    """256 tokens: characters as they are, and some pairs in the place of those that no name has."""
    tokens = [pairs.get(code, chr(code) if 0x21 <= code < 0x7F else f"tok{code}") for code in range(256)]
    text, offsets = b"", []
    for token in tokens:
        offsets.append(len(text))
        text += token.encode("latin-1") + b"\0"
    return tokens, text, struct.pack("<256H", *offsets)


def made(*, old: bool, absolute: bool, seed: int = 1, sequence: bool = True) -> tuple[bytes, Kallsyms]:
    """The tables of a kernel with random symbols, in a piece of memory, and what they say."""
    random = Random(seed)
    pairs = {0x80: "do_", 0x81: "sys", 0x82: "_lock"}
    codes = {text: code for code, text in pairs.items()}
    _, token_text, token_offsets = tokens_of(pairs)
    names, types, offsets, addresses = [], b"", [], []
    stored, markers = b"", []
    at = 0
    for number in range(COUNT):
        if number % 256 == 0:
            markers.append(len(stored))
        parts = [
            random.choice(["do_", "sys", "_lock", *"abcxyz_0123456789"]) for _ in range(random.randint(2, 12))
        ]
        if number == 700:
            parts = ["z"] * 200  # a length of two bytes
        letter = random.choice("TtDdBbrRWA")
        compressed = bytes([ord(letter), *(codes.get(part) or ord(part) for part in parts)])
        length = len(compressed)
        stored += (
            bytes([length]) if length < 0x80 else bytes([length & 0x7F | 0x80, length >> 7])
        ) + compressed
        names.append("".join(parts))
        types += letter.encode()
        at += random.randint(0, 4096)
        if absolute and number < 40:
            offsets.append(number * 64)
            addresses.append(number * 64)
        else:
            offsets.append(-1 - at if absolute else at)
            addresses.append(BASE + at)
    places = padded(struct.pack(f"<{COUNT}i", *offsets)) + struct.pack("<Q", BASE)
    tables = (
        struct.pack("<II", COUNT, 0) + padded(stored) + padded(struct.pack(f"<{len(markers)}I", *markers))
    )
    numbers = padded(bytes(3 * COUNT)) if sequence else b""
    text = padded(token_text) + padded(token_offsets)
    data = places + tables + numbers + text if old else tables + text + places + numbers
    noise = (
        random.randbytes(4096)
        + b"\x000\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00"
        + random.randbytes(997)
    )
    return padded(noise) + data + random.randbytes(4096), Kallsyms(tuple(addresses), types, tuple(names))


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("sequence", [True, False])
def test_every_arrangement_is_read(*, old: bool, absolute: bool, sequence: bool) -> None:
    data, wanted = made(old=old, absolute=absolute, sequence=sequence)
    assert kallsyms.decode(data) == wanted


def test_it_is_found_in_memory_behind_the_handlers() -> None:
    data, wanted = made(old=True, absolute=True)
    start = BASE + (12 << 20)
    gap = bytes(3 * (1 << 20) + 333 * 8)
    memory = Image({start: gap + data + bytes(1 << 20)})
    assert memory.run(kallsyms.search(start + 0x990)) == wanted
    assert memory.reads < 100


@pytest.mark.parametrize("size", [0, 100, 5 << 20])
def test_a_kernel_without_the_table_is_said_so(size: int) -> None:
    memory = Image({BASE: bytes(size)})
    with pytest.raises(KallsymsError, match="no table of symbols"):
        memory.run(kallsyms.search(BASE))


def test_of_several_of_one_name_the_first() -> None:
    table = Kallsyms((1, 2, 3), b"tTt", ("a", "b", "a"))
    assert table.find("a", "b", "c") == {"a": 1, "b": 2}


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=20), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_damaged_table_is_read_or_refused(changes: list[tuple[float, int]], seed: int) -> None:
    data, _ = made(old=seed % 2 == 0, absolute=seed > 2, seed=seed)
    damaged = bytearray(data)
    for place, byte in changes:
        damaged[int(place * (len(data) - 1))] = byte
    try:
        found = kallsyms.decode(bytes(damaged))
    except KallsymsError:
        return
    assert len(found.names) == len(found.addresses) == len(found.types) >= 1000


@given(st.binary(max_size=3000), st.integers(0, 3000))
@settings(deadline=None)
def test_any_bytes_are_no_table(noise: bytes, at: int) -> None:
    data = noise[:at] + b"\x000\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00" + noise[at:]
    with pytest.raises(KallsymsError):
        kallsyms.decode(data)


# -- a guest that means harm: bounded work, bounded memory ---------------------------------------------------------


def forged(unit: bytes, names: int, count: int, pairs: dict[int, str] | None = None) -> bytes:
    """Valid tokens behind ``names`` times ``unit``, and markers that fit each of them as a beginning."""
    _, text, offsets = tokens_of(pairs or {})
    markers = struct.pack(
        f"<{-(-count // 256)}I", *range(0, 256 * len(unit) * -(-count // 256), 256 * len(unit))
    )
    return unit * names + padded(markers) + padded(text) + offsets


def test_each_name_that_could_begin_a_table_is_not_walked_to_the_end() -> None:
    # Each number of names is followed by names up to the end, which a walk from each would take hours for.
    unit = struct.pack("<Q", 30_000) + b"\x0fTxxxxxx"
    with pytest.raises(KallsymsError, match=r"looks like a table|no table"):
        kallsyms.decode(forged(unit, 60_000, 30_000))


def test_a_walk_ends_where_its_budget_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kallsyms, "_MOST_WALKED", 10_000)
    unit = struct.pack("<Q", 30_000) + b"\x0fTxxxxxx"
    with pytest.raises(KallsymsError, match="looks like a table"):
        kallsyms.decode(forged(unit, 60_000, 30_000))


def test_a_flood_of_digits_is_not_looked_at_for_ever() -> None:
    digits = b"".join(b"%d\0" % digit for digit in range(10))
    with pytest.raises(KallsymsError, match="no table"):
        kallsyms.decode(b"\0" + digits * 400_000)


def test_names_that_would_fill_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data, wanted = made(old=True, absolute=True)
    monkeypatch.setattr(kallsyms, "_MOST_TEXT", sum(map(len, wanted.names)) // 2)
    with pytest.raises(KallsymsError, match="longer than any kernel's"):
        kallsyms.decode(data)


def test_a_search_that_finds_decoys_everywhere_is_given_up() -> None:
    digits = b"\0" + b"".join(b"%d\0" % digit for digit in range(10))
    memory = Image({BASE: (digits + bytes((1 << 20) - len(digits))) * 20})
    with pytest.raises(KallsymsError):
        memory.run(kallsyms.search(BASE))
    assert memory.batches == kallsyms.MOST_TRIES


@pytest.mark.guest
@pytest.mark.parametrize("name", ["cloud", "kgdb"])
def test_a_real_kernels_table_is_its_system_map(name: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{name}_built")
    listed = subprocess.run(
        [ROOT / "scripts" / "guest", "list", "--json"], capture_output=True, timeout=60, check=True
    )
    (vmlinux,) = (Path(one["vmlinux"]) for one in json.loads(listed.stdout) if one["name"] == name)
    with mapped(vmlinux) as image:
        section = next(one for one in elf.sections(image) if one.name == ".rodata")
        found = kallsyms.decode(image[section.offset : section.offset + section.size])
    known = {
        (int(address, 16), text)
        for address, _, text in map(str.split, vmlinux.with_name("System.map").read_text().splitlines())
    }
    own = set(zip(found.addresses, found.names, strict=True))
    assert not own - known
    # kallsyms leaves out its own tables and a few that are no addresses (scripts/kallsyms.c).
    assert len(known - own) < 40
