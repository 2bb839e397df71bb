"""Seekable zstd: read at any place, as any zstd reads it whole; damaged in any way."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from image_lab import packed, unpacked

from kbridge.crash import core_bytes, seekable
from kbridge.crash.core_bytes import open_bytes
from kbridge.crash.seekable import SeekableError
from kbridge.errors import ImageError

TEXT = b"".join(b"line %d of a guest's memory\n" % number for number in range(2000))


@given(
    data=st.binary(max_size=3000),
    size=st.integers(1, 700),
    reads=st.lists(st.tuples(st.integers(0, 3100), st.integers(0, 3100))),
)
@settings(max_examples=60, deadline=None)
def test_any_part_is_what_it_was_whatever_the_frames(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int, reads: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.zst"
    path.write_bytes(packed(data, size) if data else packed(b"x", 1))
    data = data or b"x"
    source = open_bytes(path)
    assert source.size == len(data)
    for offset, length in reads:
        assert source.read(offset, length) == data[offset : offset + length]
    source.close()


def test_any_zstd_reads_it_whole_with_frames_as_they_are_among_them() -> None:
    for size in (0, 1, 1 << 17, (1 << 17) + 1, 300_000):
        data = (TEXT * 8)[:size]
        assert unpacked(seekable.raw_frame(data) + seekable.write_table([(1, 1)])) == data
        # Of another content of the same length it takes the same room.
        assert len(seekable.raw_frame(data)) == len(seekable.raw_frame(bytes(size)))
        assert zstandard.frame_content_size(seekable.raw_frame(data)) == size


def test_a_plain_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(TEXT)
    source = open_bytes(tmp_path / "plain")
    assert source.read(10, 20) == TEXT[10:30]
    assert source.read(len(TEXT) - 3, 20) == TEXT[-3:]
    source.close()


@pytest.mark.parametrize("name", ["absent", "empty", "folder"])
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match="cannot be read"):
        open_bytes(tmp_path / name)


@given(at=st.integers(0, 10_000), value=st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_damaged_byte_is_an_error_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    whole = bytearray(packed(TEXT[:5000], 1000))
    whole[at % len(whole)] ^= value
    path = tmp_path_factory.getbasetemp() / "damaged.zst"
    path.write_bytes(whole)
    try:
        source = open_bytes(path)
        assert source.read(0, 5000) == TEXT[:5000] or whole[:4] != seekable.MAGIC
        source.close()
    except ImageError:
        pass


@given(end=st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_a_file_that_is_cut_off_is_no_seekable_one(end: int) -> None:
    whole = packed(TEXT[:5000], 1000)
    cut = whole[: end % len(whole)]
    with pytest.raises(SeekableError):
        seekable.read_table(len(cut), lambda offset, length: cut[offset : offset + length])


@given(tail=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_what_is_no_table_is_an_error_and_no_other(tail: bytes) -> None:
    whole = packed(TEXT[:5000], 1000)[: -len(tail) or None] + tail
    try:
        seekable.read_table(len(whole), lambda offset, length: whole[offset : offset + length])
    except SeekableError:
        pass


def test_a_frame_that_says_it_is_huge_takes_no_memory(tmp_path: Path) -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(1 << 20))
    path = tmp_path / "huge"
    path.write_bytes(frame + seekable.write_table([(len(frame), 16)]))
    source = open_bytes(path)
    with pytest.raises(ImageError, match="damaged at byte 0"):
        source.read(0, 16)
    source.close()
    path.write_bytes(frame + seekable.write_table([(len(frame), seekable.MOST_FRAME_BYTES + 1)]))
    with pytest.raises(ImageError, match="more than"):
        open_bytes(path)


def test_no_more_is_kept_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_bytes, "MOST_KEPT_BYTES", 3000)
    path = tmp_path / "many"
    path.write_bytes(packed(TEXT[:20_000], 1000))
    source = open_bytes(path)
    assert isinstance(source, core_bytes.SeekableBytes)
    for at in (0, 5000, 10_000, 15_000, 0, 19_000):
        assert source.read(at, 1000) == TEXT[at : at + 1000]
    assert sum(map(len, source._kept.values())) <= 3000
    source.close()
