"""Lines of a real kernel against llvm-symbolizer: sampled addresses, all of the entry code, each kind of difference.

What differs is named in ``data/symbols/differences.json``: a kind, how it is known, and why.  A difference of no such
kind fails the test, and so does a kind that no longer explains anything.
"""

from __future__ import annotations

import json
import posixpath
import random
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from kbridge.debuginfo.building import build
from symbols import elf
from symbols.index import Index

ROOT = Path(__file__).resolve().parent.parent
KNOWN = {one["kind"]: one for one in json.loads((ROOT / "tests/data/symbols/differences.json").read_text())}
SAMPLED = 10_000
AGREE = 0.995

Calls = list[tuple[str | None, int | None]]
"""File and line of each, the innermost first."""

KINDS: dict[str, Callable[[Calls, Calls], bool]] = {
    "an innermost call fewer": lambda ours, theirs: (
        0 < len(ours) < len(theirs) and theirs[-len(ours) :] == ours
    ),
    "the line before, in padding": lambda ours, theirs: (
        len(ours) == len(theirs) == 1 and ours[0][0] == theirs[0][0]
    ),
    "a file without a line": lambda ours, theirs: not ours and len(theirs) == 1 and theirs[0][1] is None,
}


@pytest.fixture(scope="module")
def vmlinux(cloud_built: str) -> Path:
    listed = subprocess.run(
        [ROOT / "scripts" / "guest", "list", "--json"], capture_output=True, timeout=60, check=True
    )
    return next(Path(one["vmlinux"]) for one in json.loads(listed.stdout) if one["name"] == cloud_built)


@pytest.fixture(scope="module")
def opened(vmlinux: Path) -> Index:
    build_id = elf.build_id(vmlinux.read_bytes())
    assert build_id is not None
    return Index(memoryview(b"".join(build(vmlinux, build_id))), build_id)


def path(name: str | None) -> str | None:
    """A file's path without what only says where the kernel was built."""
    if not name or name == "??":
        return None
    return re.sub(r"^(debian/build/[^/]+|/build/[^/]+/linux-[^/]+)/", "", posixpath.normpath(name))


def theirs(vmlinux: Path, addresses: list[int]) -> list[Calls]:
    said = subprocess.run(
        ["llvm-symbolizer", f"--obj={vmlinux}", "--inlines", "--output-style=JSON"],
        input="".join(f"{one:#x}\n" for one in addresses),
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    ).stdout
    found = []
    for address, line in zip(addresses, said.splitlines(), strict=True):
        told = json.loads(line)
        assert int(told["Address"], 16) == address
        calls = [(path(one["FileName"]), one["Line"] or None) for one in told["Symbol"]]
        found.append([] if calls == [(None, None)] else calls)
    return found


def ours(opened: Index, addresses: list[int]) -> list[Calls]:
    return [
        [] if not calls or calls[0].file is None else [(path(one.file), one.line) for one in calls]
        for calls in opened.frames_of(addresses)
    ]


def place(opened: Index, name: str) -> int:
    return opened.named(name)[0].address


@pytest.mark.slow
@pytest.mark.guest
def test_files_and_lines_are_those_of_llvm_symbolizer(vmlinux: Path, opened: Index) -> None:
    chosen = random.Random(6)
    start, end = place(opened, "_stext"), place(opened, "_etext")
    addresses = [chosen.randrange(start, end) for _ in range(SAMPLED)]
    # Code of the initialisation is no part of the sample that the figure is about, and has more of what differs.
    other = [
        chosen.randrange(place(opened, "_sinittext"), place(opened, "_einittext")) for _ in range(SAMPLED)
    ]
    other += range(place(opened, "startup_64"), place(opened, "startup_64") + 0x400)
    other += [address for name in KNOWN.values() for address in (int(one, 16) for one in name["seen"])]
    mine, expected = ours(opened, addresses + other), theirs(vmlinux, addresses + other)
    equal = sum(one == two for one, two in zip(mine[:SAMPLED], expected, strict=False))
    assert equal >= AGREE * SAMPLED, f"{equal} of {SAMPLED}"
    kinds: Counter[str] = Counter()
    for address, one, two in zip(addresses + other, mine, expected, strict=True):
        if one != two:
            kind = next((name for name, holds in KINDS.items() if holds(one, two)), None)
            assert kind is not None, f"{address:#x}: {one}, llvm-symbolizer says {two}"
            kinds[kind] += 1
    assert set(kinds) == set(KINDS) == set(KNOWN)
    assert sum(kinds.values()) <= (1 - AGREE) * len(mine)
    assert opened.frames_of(addresses) == [opened.frames(address) for address in addresses]
    known: dict[int, object] = {}
    for location, one in zip(opened.locations(addresses), mine, strict=False):
        assert known.setdefault(location, one) == one


@pytest.mark.slow
@pytest.mark.guest
def test_all_of_the_entry_code_is_as_llvm_symbolizer_has_it(vmlinux: Path, opened: Index) -> None:
    addresses = list(range(place(opened, "__entry_text_start"), place(opened, "__entry_text_end")))
    mine, expected = ours(opened, addresses), theirs(vmlinux, addresses)
    assert [hex(at) for at, one, two in zip(addresses, mine, expected, strict=True) if one != two] == []
    known = [one[0][0] for one in mine if one]
    assert len(known) > 0.8 * len(addresses)
    assert {"arch/x86/entry/entry_64.S", "arch/x86/entry/entry_64_compat.S"} <= set(known)
