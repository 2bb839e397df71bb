"""A cache entry is whole or absent, and made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lab import builds, cache, debian, kgdb
from lab.errors import LabError

SCRIPTS = Path(cache.__file__).resolve().parent.parent

# A builder that counts its runs and takes until the file `go` is there.
BUILDER = """
import sys, time
from pathlib import Path
from lab import cache

def make(folder):
    with (base / "runs").open("a") as runs:
        runs.write("x")
    deadline = time.monotonic() + 30
    while not (base / "go").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (folder / "guest.json").write_text("{}")

base = Path(sys.argv[1])
with cache.locked("fake") as folder:
    print(cache.ensure(folder, "1.0-abc", make))
"""


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kbridge"


def finish(folder: Path) -> None:
    (folder / "guest.json").write_text("{}")


def test_the_cache_is_where_the_specification_says(monkeypatch: pytest.MonkeyPatch, cache_home: Path) -> None:
    assert cache.root() == cache_home
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.root() == Path.home() / ".cache" / "kbridge"


def test_two_builds_at_once_build_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDER, str(tmp_path)]
    processes = [
        subprocess.Popen(command, env={"PYTHONPATH": str(SCRIPTS), "XDG_CACHE_HOME": str(tmp_path)},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] != ""
    assert (tmp_path / "runs").read_text() == "x"
    assert cache.current("fake") == Path(outputs[0][0].strip())


def test_the_second_says_that_it_waits(tmp_path: Path) -> None:
    with cache.locked("fake"):
        process = subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path)],
            env={"PYTHONPATH": str(SCRIPTS), "XDG_CACHE_HOME": str(tmp_path)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        assert "waiting for another build" in process.stderr.readline()
        assert not (tmp_path / "runs").exists()
    (tmp_path / "go").touch()
    assert process.communicate(timeout=60)[0]
    assert process.returncode == 0


def test_a_failed_build_leaves_nothing() -> None:
    def fail(folder: Path) -> None:
        (folder / "vmlinux").write_bytes(b"half")
        raise LabError("out of luck")

    with cache.locked("fake") as base:
        with pytest.raises(LabError, match="out of luck"):
            cache.ensure(base, "1.0-abc", fail)
        assert [path.name for path in base.iterdir()] == [".lock"]
    assert cache.current("fake") is None


def test_what_a_killed_build_left_is_not_used_and_is_removed() -> None:
    with cache.locked("fake") as base:
        for name in (".making-dead", "1.0-abc"):
            (base / name).mkdir()
            (base / name / "vmlinux").write_bytes(b"half")
        entry = cache.ensure(base, "1.0-abc", finish)
        assert [path.name for path in entry.iterdir()] == ["guest.json"]
        assert not (base / ".making-dead").exists()


def test_a_finished_build_is_not_made_again() -> None:
    with cache.locked("fake") as base:
        cache.ensure(base, "1.0-abc", finish)
        cache.ensure(base, "1.0-abc", lambda folder: pytest.fail("made again"))


def test_a_new_version_becomes_current_and_only_one_older_is_kept() -> None:
    with cache.locked("fake") as base:
        for version in ("1.0", "2.0", "3.0"):
            entry = cache.ensure(base, version, finish)
            assert cache.current("fake") == entry.resolve()
        assert sorted(path.name for path in base.iterdir() if path.is_dir() and not path.is_symlink()) == [
            "2.0", "3.0",
        ]  # fmt: skip
        # Going back, as a checkout with another recipe does, builds nothing.
        cache.ensure(base, "2.0", lambda folder: pytest.fail("made again"))
        current = cache.current("fake")
        assert current is not None
        assert current.name == "2.0"


def test_the_key_changes_with_each_part_of_the_recipe() -> None:
    keys = {builds.key("6.1-1", "a", "b"), builds.key("6.1-2", "a", "b"), builds.key("6.1-1", "ab", "")}
    assert len(keys) == 3
    assert builds.key("6.1-1", "a") == builds.key("6.1-1", "a")
    assert "/" not in builds.key("1:6.1~rc1", "a")


def test_a_damaged_description_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "guest.json").write_text('{"name": 3}')
    with pytest.raises(LabError, match=str(tmp_path)):
        builds.load(tmp_path)


RECORD = """Package: linux-image-cloud-amd64
Source: linux-signed-amd64 (6.1.192+2)
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), other | another
Description: Linux for x86-64 cloud (meta-package)
 with a second line: and a colon
Size: 1504

Package: linux-image-cloud-amd64
Version: 6.1.176-1
Size: 1
"""


def test_the_first_record_of_apt_cache_is_read() -> None:
    assert debian.parse_record(RECORD) == debian.Package(
        "linux-image-cloud-amd64", "6.1.192-2", 1504, ("linux-image-6.1.0-56-cloud-amd64", "other")
    )
    assert debian.parse_record("") is None
    assert debian.parse_record("N: Unable to locate package\n") is None


def test_a_failing_unpacker_is_reported_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"unpack failed: .*gone"):
        debian.unpack(tmp_path / "gone_1_amd64.deb", tmp_path, "*")


def test_a_folder_that_qemu_cannot_take_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one, two"))
    with pytest.raises(LabError, match="comma; set XDG_CACHE_HOME"), cache.locked("fake"):
        pytest.fail("it was locked")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["my cache", "a:b"])
def test_a_folder_that_the_kernels_makefile_refuses_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(LabError, match=f"{name}.*spaces and colons; set XDG_CACHE_HOME"):
        kgdb.require_path(tmp_path / name)
    kgdb.require_path(tmp_path / "cache")
