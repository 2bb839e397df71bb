"""The archive that the test guests boot from, against the format's own tool."""

from __future__ import annotations

import stat
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import cpio


def unpack(image: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """Another reading of the format: (name, mode, data, device) of each member, checking padding on the way."""
    members = []
    at = 0
    while True:
        assert image[at : at + 6] == b"070701"
        fields = [int(image[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = image[at + 110 : at + 110 + name_size - 1].decode()
        assert image[at + 110 + name_size - 1] == 0
        data_at = (at + 110 + name_size + 3) // 4 * 4
        at = (data_at + size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert not image[at:].strip(b"\0")
            return members
        members.append((name, fields[1], image[data_at : data_at + size], (fields[9], fields[10])))


names = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=20
)
files = st.builds(
    cpio.file,
    names.filter(lambda name: name not in (".", "..", "TRAILER!!!")),
    st.binary(max_size=50),
    st.integers(0, 0o7777),
)


@given(st.lists(files, max_size=8, unique_by=lambda entry: entry.name))
def test_whatever_goes_in_comes_out(entries: list[cpio.Entry]) -> None:
    image = cpio.archive(entries)
    assert len(image) % 512 == 0
    assert unpack(image) == [(entry.name, entry.mode, entry.data, entry.device) for entry in entries]


TREE = [
    cpio.directory("dev"),
    cpio.character_device("dev/console", 5, 1),
    cpio.directory("bin"),
    cpio.file("bin/busybox", b"\x7fELF" + bytes(range(256)), 0o755),
    cpio.symlink("bin/sh", "busybox"),
]


def test_the_real_cpio_lists_the_same() -> None:
    done = subprocess.run(
        ["cpio", "-itv", "--quiet", "--numeric-uid-gid"],
        input=cpio.archive(TREE),
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == [stat.filemode(entry.mode) for entry in TREE]
    assert lines[1].split()[4:6] == ["5,", "1"]
    assert lines[-1].endswith("bin/sh -> busybox")
    assert {tuple(line.split()[2:4]) for line in lines} == {("0", "0")}
    assert not done.stderr


@settings(max_examples=20)
@given(st.permutations(range(3)))
def test_the_same_entries_give_the_same_bytes(order: list[int]) -> None:
    entries = [cpio.file(str(number), bytes([number])) for number in order]
    assert cpio.archive(entries) == cpio.archive(list(entries))


@pytest.mark.parametrize("name", ["", "/init", "a//b", "a/", "./a", "a/../b", "TRAILER!!!", "a\0b"])
def test_a_name_that_would_be_lost_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"name"):
        cpio.file(name, b"")


def test_a_member_without_its_directory_or_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="comes before its directory bin"):
        cpio.archive([cpio.file("bin/sh", b"")])
    with pytest.raises(ValueError, match="twice"):
        cpio.archive([cpio.file("init", b""), cpio.file("init", b"")])
    with pytest.raises(ValueError, match="file type"):
        cpio.Entry("init", 0o755)
