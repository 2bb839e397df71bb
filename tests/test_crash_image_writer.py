"""Images that come by a pipe: whole on the disk under their name, or not there; within limits; with VMCOREINFO."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_lab import OTHERS, TEXT, core, small_machine, unpacked

from kbridge.crash import image_file, image_writer
from kbridge.crash.core_file import CoreFile
from kbridge.crash.elf_core import Note
from kbridge.crash.image_file import ImageLimits, remove_unfinished
from kbridge.crash.image_frames import Packer
from kbridge.crash.image_writer import ImageWriter
from kbridge.crash.seekable import FRAME_BYTES, raw_frame
from kbridge.errors import ImageError

ENOUGH = ImageLimits(1 << 30, 0)


def fed(
    data: bytes, path: Path, limits: ImageLimits = ENOUGH, *, closes: bool = True, **more: Any
) -> ImageWriter:
    """A writer that gets bytes from a thread, which does not mind when it wants no more."""
    reading, writing = os.pipe()

    def feed() -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(writing, view[:50_000]) :]
        except BrokenPipeError:
            pass
        if closes:
            os.close(writing)

    threading.Thread(target=feed, daemon=True).start()
    more.setdefault("progress", lambda done, total: None)
    return ImageWriter(reading, path, limits, **more)


def whole(*texts: bytes, note: bytes | None = None) -> tuple[bytes, bytes]:
    memory, notes = small_machine(*texts, size=3 << 20)
    if note is not None:
        notes.append(Note(b"VMCOREINFO", 0, note))
    # What does not pack well, beside zeroes.
    memory = memory[: 5 << 19] + os.urandom(len(memory) - (5 << 19))
    return core(memory, notes), memory


@pytest.mark.parametrize(
    ("note", "texts", "given", "origin"),
    [
        (TEXT, (OTHERS,), None, "guest"),
        (None, (OTHERS, TEXT), None, "memory"),
        (None, (), TEXT, "caller"),
        (None, (OTHERS,), None, ""),
    ],
)
def test_an_image_is_its_memory_with_vmcoreinfo_and_is_read_by_any_zstd(
    tmp_path: Path, note: bytes | None, texts: tuple[bytes, ...], given: bytes | None, origin: str
) -> None:
    data, memory = whole(*texts, note=note)
    path = tmp_path / "vmcore"
    seen: list[tuple[int, int]] = []
    writer = fed(data, path, text=given, progress=lambda done, total: seen.append((done, total)))
    written = writer.write()
    assert not path.exists()
    writer.keep()
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600
    assert (written.memory_bytes, written.file_bytes, written.processors) == (
        len(memory),
        path.stat().st_size,
        2,
    )
    assert (written.vmcoreinfo, written.vmcoreinfo_from) == (TEXT if origin else None, origin)
    assert seen[-1] == (len(memory), len(memory))
    found = CoreFile.open(path)
    assert b"".join(piece for _, piece in found.scan()) == memory
    assert found.head.vmcoreinfo() == written.vmcoreinfo
    found.close()
    plain = tmp_path / "plain"
    plain.write_bytes(unpacked(path.read_bytes()))
    again = CoreFile.open(plain)
    assert b"".join(piece for _, piece in again.scan()) == memory
    again.close()


def test_noise_is_kept_as_it_is_and_the_rest_is_packed() -> None:
    noise, text = os.urandom(FRAME_BYTES), (b"all that compresses " * FRAME_BYTES)[:FRAME_BYTES]
    found = []
    with Packer() as packer:
        for piece in (noise, text, bytes(FRAME_BYTES), noise[:5000]):
            buffer = packer.buffer()
            buffer[: len(piece)] = piece
            packer.put(buffer, len(piece))
        found += packer.packed(all_of_it=True)
    assert [size for _, size in found] == [FRAME_BYTES, FRAME_BYTES, FRAME_BYTES, 5000]
    frames = [frame for frame, _ in found]
    assert frames[0] == raw_frame(noise)
    assert all(len(frame) < FRAME_BYTES // 20 for frame in frames[1:3])
    assert unpacked(b"".join(frames)) == noise + text + bytes(FRAME_BYTES) + noise[:5000]


@pytest.mark.parametrize("end", [0, 10, 100, 2000, 500_000, -1])
def test_an_image_that_is_cut_off_is_not_there(tmp_path: Path, end: int) -> None:
    data, _ = whole()
    writer = fed(data[:end], tmp_path / "vmcore")
    with pytest.raises(ImageError, match=r"came of .* bytes|cut off|there is no image"):
        writer.write()
    assert writer.is_cut_off
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_core_file_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="makes no sense"):
        fed(b"no core file" * 100, tmp_path / "vmcore").write()
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_its_size_ends_it_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "LOOK_BYTES", 1 << 16)
    data, _ = whole()
    writer = fed(data, tmp_path / "vmcore", ImageLimits(100_000, 0))
    with pytest.raises(ImageError, match="more than 100,000 bytes"):
        writer.write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("later", [False, True])
def test_a_disk_that_fills_up_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: bool) -> None:
    free = shutil.disk_usage(tmp_path).free
    usage = [free, 1000] if later else [1000]

    def disk_usage(path: Path) -> Any:
        return type("Usage", (), {"free": usage.pop(0) if len(usage) > 1 else usage[0]})

    monkeypatch.setattr("kbridge.crash.image_file.shutil.disk_usage", disk_usage)
    monkeypatch.setattr(image_file, "LOOK_BYTES", 1 << 16)
    data, _ = whole()
    writer = fed(data, tmp_path / "vmcore", ImageLimits(1 << 30, 5000))
    with pytest.raises(ImageError, match=r"only 1,000 bytes are left .*: 5,000 are to be left"):
        writer.write()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    code = (
        "import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sys.path[:0] = ['tests']; import test_crash_image_writer as t; from pathlib import Path;"
        "data, _ = t.whole();"
        "t.fed(data, Path(sys.argv[1]) / 'vmcore').write()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "ImageError" in done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_not_wanted_any_more_ends_soon(tmp_path: Path) -> None:
    data, _ = whole()
    writer = fed(data[: 1 << 20], tmp_path / "vmcore", closes=False)
    threading.Timer(0.1, writer.abandon).start()
    with pytest.raises(ImageError, match="not wanted"):
        writer.write()
    assert not writer.is_cut_off
    assert list(tmp_path.iterdir()) == []


def test_one_that_comes_no_further_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_writer, "STALL_SECONDS", 0.5)
    data, _ = whole()
    with pytest.raises(ImageError, match=r"no more of it came for 0\.5 s"):
        fed(data[: 1 << 20], tmp_path / "vmcore", closes=False).write()
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_abandoned_before_it_has_its_name_never_gets_it(tmp_path: Path) -> None:
    data, _ = whole()
    writer = fed(data, tmp_path / "vmcore")
    writer.write()
    writer.abandon()
    with pytest.raises(ImageError, match="not wanted"):
        writer.keep()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_leaves_is_known_and_removed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = ['tests']; import test_crash_image_writer as t; from pathlib import Path;"
        "data, _ = t.whole(); w = t.fed(data, Path(sys.argv[1]) / 'vmcore'); w.write(); print('there', flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "report.md").touch()
    assert remove_unfinished(tmp_path) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["report.md"]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    data, _ = whole()
    with pytest.raises(ImageError, match="cannot be written: No such file"):
        fed(data, tmp_path / "absent" / "vmcore").write()


# -- encrypted --------------------------------------------------------------------------------------------------


@pytest.fixture
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("key") / "key"
    said = subprocess.run(["age-keygen", "-o", str(path)], capture_output=True, text=True, check=True).stderr
    return path, said.split()[-1]


def test_with_a_key_nothing_is_on_the_disk_in_the_clear(tmp_path: Path, key: tuple[Path, str]) -> None:
    data, memory = whole()
    path = tmp_path / "vmcore.age"
    writer = fed(data, path, text=TEXT, recipients=[key[1]])
    written = writer.write()
    writer.keep()
    assert path.read_bytes().startswith(b"age-encryption.org/v1")
    assert (written.vmcoreinfo_from, written.file_bytes) == ("caller", path.stat().st_size)
    plain = tmp_path / "plain"
    subprocess.run(["age", "--decrypt", "-i", str(key[0]), "-o", str(plain), str(path)], check=True)
    found = CoreFile.open(plain)
    assert b"".join(piece for _, piece in found.scan()) == memory
    assert found.head.vmcoreinfo() == TEXT
    found.close()


def test_a_key_that_is_none_is_said_in_ages_words(tmp_path: Path) -> None:
    data, _ = whole()
    with pytest.raises(ImageError, match=r"cannot be encrypted: age: error: unknown recipient type"):
        fed(data, tmp_path / "vmcore", recipients=["nonsense"]).write()
    assert list(tmp_path.iterdir()) == []


def test_without_age_it_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    data, _ = whole()
    with pytest.raises(ImageError, match="age is not installed; apt-get install age"):
        fed(data, tmp_path / "vmcore", recipients=["age1x"]).write()
    assert list(tmp_path.iterdir()) == []


def test_it_lets_go_of_the_pipe_whatever_happens(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    data, _ = whole()
    works: list[Callable[[], object]] = [
        lambda: fed(data[:5000], tmp_path / "a").write(),
        lambda: fed(data, tmp_path / "absent" / "b").write(),
        lambda: fed(data, tmp_path / "c", ImageLimits(10, 1 << 60)).write(),
    ]
    for work in works:
        with pytest.raises(ImageError):
            work()
    deadline = threading.Event()
    while len(list(Path("/proc/self/fd").iterdir())) > before:
        assert not deadline.wait(0.05)
