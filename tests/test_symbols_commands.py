"""`kbridge symbols` on compiled programs: separate debug files, build-ids, no index, and indexes that are damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbridge.cli import main
from kbridge.debuginfo import separate
from symbols import elf

ROOT = Path(__file__).resolve().parent.parent
SOURCE = """
static inline __attribute__((always_inline)) int inner(volatile int *at) { return *at + 1; }
__attribute__((noinline)) int outer(volatile int *at)
{
    return 3 * inner(at);
}
void entry(void) { static int one; outer(&one); }
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program, its separate debug file, and both for a module; two builds, of which `other` is the second."""
    folder = tmp_path_factory.mktemp("programs")
    for name, flags in (("whole", ["-g"]), ("other", ["-g", "-DX", "-O1"])):
        source = folder / f"{name}.c"
        source.write_text(SOURCE)
        command = ["gcc", "-O2", *flags, "-static", "-nostdlib", "-no-pie", "-fcf-protection=none"]
        command += ["-Wl,--build-id,-e,entry", "-o", folder / name, source]
        subprocess.run(command, check=True, cwd=folder)
        split(folder / name)
    command = ["gcc", "-c", "-g", "-O2", "-fno-pic", "-mcmodel=kernel", "-o", "module.o", "whole.c"]
    subprocess.run(command, check=True, cwd=folder)
    subprocess.run(["ld", "-r", "--build-id", "-o", "module.ko", "module.o"], check=True, cwd=folder)
    split(folder / "module.ko")
    return folder


def split(path: Path) -> None:
    debug, bare = path.with_name(f"{path.name}.debug"), path.with_name(f"{path.name}.bare")
    subprocess.run(["objcopy", "--only-keep-debug", path, debug], check=True)
    subprocess.run(["objcopy", "--strip-debug", f"--add-gnu-debuglink={debug}", path, bare], check=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/kbridge/symbols"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["symbols", *map(str, arguments)])


def build_id(path: Path) -> str:
    found = elf.build_id(path.read_bytes())
    assert found is not None
    return found


def address(path: Path) -> str:
    """Where `outer` does what was inlined."""
    return hex(elf.symbol_values(path.read_bytes(), ["outer"])["outer"])


def frames(*arguments: str | Path) -> list[tuple[str, int]]:
    done = run("addr2line", "--json", *arguments)
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    return [(one["function"], one["line"]) for one in json.loads(line)["frames"]]


EXPECTED = [("inner", 2), ("outer", 5)]


def test_a_stripped_file_has_the_lines_of_the_file_that_it_links_to(programs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "usr"
    folder.mkdir()
    stripped = folder / "program"
    shutil.copy(programs / "whole.bare", stripped)
    outer = address(programs / "whole")
    # Indexed first without lines: that must not stay so.
    assert frames("--vmlinux", stripped, outer) == []
    (folder / ".debug").mkdir()
    # Another build's, under the name that is meant.
    shutil.copy(programs / "other.debug", folder / ".debug/whole.debug")
    assert frames("--vmlinux", stripped, outer) == []
    shutil.copy(programs / "whole.debug", folder / ".debug/whole.debug")
    assert frames("--vmlinux", stripped, outer) == EXPECTED
    # What was made of it is kept, also when the file has gone.
    shutil.rmtree(folder / ".debug")
    assert frames("--vmlinux", stripped, outer) == EXPECTED


def test_a_link_with_another_checksum_is_not_followed(programs: Path, tmp_path: Path) -> None:
    shutil.copy(programs / "whole.bare", tmp_path / "program")
    damaged = bytearray((programs / "whole.debug").read_bytes())
    (text,) = [one for one in elf.sections(bytes(damaged)) if one.name == ".debug_str"]
    damaged[text.offset] ^= 1
    (tmp_path / "whole.debug").write_bytes(damaged)
    assert frames("--vmlinux", tmp_path / "program", address(programs / "whole")) == []


def test_a_link_is_looked_for_below_a_folder_too(programs: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "bin/program"
    below = tmp_path / "debug" / stripped.parent.relative_to("/")
    stripped.parent.mkdir()
    below.mkdir(parents=True)
    shutil.copy(programs / "whole.bare", stripped)
    shutil.copy(programs / "whole.debug", below)
    found = ("--debug-dir", tmp_path / "debug", "--vmlinux", stripped, address(programs / "whole"))
    assert frames(*found) == EXPECTED


def test_a_module_that_was_stripped_has_lines_once_its_debug_file_is_there(
    programs: Path, tmp_path: Path
) -> None:
    module = tmp_path / "module.ko"
    shutil.copy(programs / "module.ko.bare", module)
    assert "without lines" in run("index", module).stdout
    (tmp_path / "debug/.build-id").mkdir(parents=True)
    own = build_id(module)
    named = tmp_path / "debug/.build-id" / own[:2] / f"{own[2:]}.debug"
    named.parent.mkdir()
    shutil.copy(programs / "module.ko.debug", named)
    looked = run("lookup", "--json", "--vmlinux", module, "outer")
    where = json.loads(looked.stdout)["address"]
    assert frames("--debug-dir", tmp_path / "debug", "--vmlinux", module, where) == EXPECTED
    assert "with lines" in run("index", module).stdout


def test_by_build_id(programs: Path, tmp_path: Path) -> None:
    whole = programs / "whole"
    own, outer = build_id(whole), address(whole)
    done = run("addr2line", "--build-id", own, outer)
    assert done.exit_code == 1
    assert "no file of build-id" in done.output
    # Found by the notes of the files in a folder, whatever they are called.
    (tmp_path / "files").mkdir()
    shutil.copy(whole, tmp_path / "files/vmlinux-of-somebody")
    assert frames("--debug-dir", tmp_path / "files", "--build-id", own.upper(), outer) == EXPECTED
    # And without the file, by the index that is kept.
    assert frames("--build-id", own, outer) == EXPECTED
    assert run("lookup", "--build-id", own, "outer").exit_code == 0
    for wrong in ((), ("--build-id", own, "--vmlinux", whole), ("--build-id", "xyz"), ("--build-id", "abc")):
        assert run("addr2line", *wrong, outer).exit_code == 2


def test_without_an_index(programs: Path, cache: Path) -> None:
    whole = programs / "whole"
    assert frames("--no-index", "--vmlinux", whole, address(whole)) == [("outer", 2)]
    assert not cache.exists()
    assert run("addr2line", "--no-index", "--build-id", build_id(whole), "0").exit_code == 2
    done = run("addr2line", "--no-index", "--vmlinux", programs / "whole.c", "0")
    assert done.exit_code == 1
    assert "cannot be read" in done.output


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cached_index_with_a_flipped_byte_is_made_anew(
    programs: Path, cache: Path, data: st.DataObject
) -> None:
    whole = programs / "whole"
    outer = address(whole)
    by_id = data.draw(st.booleans())
    source = ("--vmlinux", whole)
    assert frames(*source, outer) == EXPECTED
    (kept,) = cache.glob("*.index")
    sound = kept.read_bytes()
    damaged = bytearray(sound)
    damaged[data.draw(st.integers(0, len(sound) - 1))] ^= data.draw(st.integers(1, 255))
    kept.write_bytes(damaged)
    if by_id:
        source = ("--debug-dir", programs, "--build-id", build_id(whole))
    assert frames(*source, outer) == EXPECTED
    assert kept.read_bytes() == sound


def test_what_is_no_file_is_no_separate_one(tmp_path: Path, programs: Path) -> None:
    own = elf.build_id((programs / "whole").read_bytes())
    assert own is not None
    (tmp_path / ".build-id" / own[:2]).mkdir(parents=True)
    (tmp_path / ".build-id" / own[:2] / f"{own[2:]}.debug").symlink_to(tmp_path)
    assert separate.with_lines(tmp_path / "gone", own, (tmp_path,)) is None
    assert separate.with_lines(programs / "whole.c", own, (tmp_path,)) is None


# -- what a cold start loads --------------------------------------------------------------------------------------


def loaded(code: str, *names: str) -> set[str]:
    """Those of some modules that a process has loaded at its end."""
    code += f"\nimport sys\nprint('loaded', *(one for one in {names!r} if one in sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(said.stdout.splitlines()[-1].split()[1:])


def test_the_library_loads_little_for_one_address(programs: Path, cache: Path) -> None:
    whole = programs / "whole"
    assert frames("--vmlinux", whole, address(whole)) == EXPECTED
    (kept,) = cache.glob("*.index")
    code = f"""
from symbols.index import Index
with open({str(kept)!r}, "rb") as file:
    index = Index(memoryview(file.read()))
assert [one.line for one in index.frames({address(whole)})] == [2, 5]
assert index.symbol({address(whole)})[0].name == "outer"
"""
    assert loaded(code, "typing", "dataclasses", "re", "enum", "pathlib", "symbolic") == set()


def test_the_command_loads_neither_reactor_nor_libraries(programs: Path, cache: Path) -> None:
    whole = programs / "whole"
    frames("--vmlinux", whole, address(whole))
    code = f"""
import sys
from kbridge.start import main
sys.argv = ["kbridge", "symbols", "addr2line", "--vmlinux", {str(whole)!r}, {address(whole)!r}]
try:
    main()
except SystemExit as end:
    assert not end.code
"""
    heavy = ("twisted", "pydantic", "symbolic", "elftools", "capstone", "tempfile", "json")
    assert loaded(code, *heavy) == set()
