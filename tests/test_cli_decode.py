"""`kbridge decode`, as a user runs it: a program and a module made here, real captures, and oopses of a real kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_lab import Shell
from relay_lab import RelayProcess

from kbridge.debuginfo.building import build
from symbols import elf
from symbols.index import Index
from symbols.lines import Frame

OOPSES = Path(__file__).resolve().parent / "data/oops"
RELEASE = "6.1.0-test"
HEAD = f"[    1.000000] CPU: 0 PID: 1 Comm: sh Not tainted {RELEASE} #1\n"
PROGRAM = """
static inline __attribute__((always_inline)) int inner(volatile int *at)
{
    return *at;
}
__attribute__((noinline)) int reads(volatile int *at)
{
    return inner(at) + 1;
}
__attribute__((noinline)) int calls(volatile int *at)
{
    int one = reads(at);
    return one + *at;
}
"""
ASSEMBLER = """
.text
.globl entry
.type entry, @function
entry:
    nop
    call calls
    hlt
.size entry, . - entry
"""
MODULE = "int outer(int (*to)(void)) { int one = to();\\n return one + 1; }\\n".replace("\\n", "\n")

Decode = Callable[..., "subprocess.CompletedProcess[str]"]


def compile_all(folder: Path) -> None:
    (folder / "program.c").write_text(PROGRAM)
    (folder / "entry.S").write_text(ASSEMBLER)
    (folder / "module.c").write_text(MODULE)
    flags = ["-g", "-O2", "-fno-pic", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"]
    linked = ["-static", "-nostdlib", "-no-pie", "-Wl,--build-id,-e,entry", "-Wl,-Ttext=0x1000000"]
    subprocess.run(["gcc", *flags, *linked, "-o", "vmlinux", "program.c", "entry.S"], cwd=folder, check=True)
    subprocess.run(["gcc", "-c", *flags, "-o", "module.o", "module.c"], cwd=folder, check=True)
    subprocess.run(["ld", "-r", "--build-id", "-o", "some-module.ko", "module.o"], cwd=folder, check=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    compile_all(folder)
    return folder


@pytest.fixture
def decode(tmp_path: Path) -> Decode:
    """Runs the command with a cache of its own."""

    def run(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kbridge", "decode", *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )

    return run


def indexed(path: Path) -> Index:
    build_id = elf.build_id(path.read_bytes())
    assert build_id is not None
    return Index(memoryview(b"".join(build(path, build_id))), build_id)


def sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Where each function begins, and how long it is."""
    return {one.name: (one.address, one.size) for one in indexed(path).symbols() if one.kind == "function"}


def after_call(path: Path, name: str) -> int:
    """How far into a function its call returns to."""
    text = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True).stdout
    part = text.split(f"<{name}>:\n")[1]
    after = re.search(r"\tcall[^\n]*\n *([0-9a-f]+):", part)
    assert after is not None
    begin = re.search(rf"([0-9a-f]+) <{name}>:\n", text)
    assert begin is not None
    return int(after[1], 16) - int(begin[1], 16)


def test_a_log_is_explained(made: Path, decode: Decode) -> None:
    known = sizes(made / "vmlinux")
    module = sizes(made / "some-module.ko")
    calls, entry, outer = (
        f"{name}+{after_call(path, name):#x}/{size:#x}"
        for name, path, size in (
            ("calls", made / "vmlinux", known["calls"][1]),
            ("entry", made / "vmlinux", known["entry"][1]),
            ("outer", made / "some-module.ko", module["outer"][1]),
        )
    )
    reads = f"reads+0x0/{known['reads'][1]:#x}"
    log = made / "log"
    log.write_text(
        f"{HEAD}[    1.000001] RIP: 0010:{reads}\r\n"
        "[    1.000002] Code: <8b> 07 83 c0 01 c3\n"
        "[    1.000003] RSP: 0018:ffff92ad80163df8 EFLAGS: 00000246\n"
        "[    1.000003] RAX: 0000000000000000 RBX: ffff8fcec1025000 RDI: 0000000000000010\n"
        "[    1.000004] Call Trace:\n"
        f"[    1.000005]  {calls}\n[    1.000005]  {outer} [some_module]\n[    1.000006]  {entry}\nno newline"
    )
    for _ in range(2):
        done = decode("--vmlinux", made / "vmlinux", log)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            HEAD.rstrip(),
            f"[    1.000001] RIP: 0010:{reads} (inner at program.c:4, inlined at program.c:8)",
            "[    1.000002] Code: <8b> 07 83 c0 01 c3",
            "[    1.000002]   =>  <+0x0>  8b 07                    movl (%rdi), %eax",
            "[    1.000002]       <+0x2>  83 c0 01                 addl $1, %eax",
            "[    1.000002]       <+0x5>  c3                       retq",
            "[    1.000003] RSP: 0018:ffff92ad80163df8 EFLAGS: 00000246",
            "[    1.000003] RAX: 0000000000000000 RBX: ffff8fcec1025000 RDI: 0000000000000010",
            "[    1.000003]   -- it reads 4 bytes at 0x10 = rdi",
            "[    1.000003]   -- rdi is 0x10",
            "[    1.000003]   -- as of a member at 0x10 of a structure at NULL",
            "[    1.000004] Call Trace:",
            f"[    1.000005]  {calls}  program.c:12",
            f"[    1.000005]  {outer} [some_module]  module.c:1",
            f"[    1.000006]  {entry}  entry.S:7",
            "no newline",
        ]


def test_the_kernels_file_is_found_by_the_release_in_the_log(
    made: Path, decode: Decode, tmp_path: Path
) -> None:
    calls = f"calls+0x1/{sizes(made / 'vmlinux')['calls'][1]:#x}"
    text = f"hello\n{HEAD} {calls}\n"
    missing = decode("--debug-dir", tmp_path, text=text)
    assert missing.returncode == 1
    assert f"there is no vmlinux of {RELEASE}" in missing.stderr
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / f"vmlinux-{RELEASE}").symlink_to(made / "vmlinux")
    done = decode("--debug-dir", tmp_path, text=text)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"hello\n{HEAD} {calls}  program.c:1")
    unknown = decode(text=" f+0x1/0x2\n")
    assert unknown.returncode == 1
    assert "does not say which kernel it is of" in unknown.stderr
    assert "give --vmlinux" in unknown.stderr


def test_a_log_of_another_build_is_said_to_be(made: Path, decode: Decode) -> None:
    done = decode("--vmlinux", made / "vmlinux", text=" calls+0x1/0xfff\n reads+0x1/0xffe\n")
    assert done.returncode == 1
    assert done.stdout.count("of another build: in the file its size is") == 2
    assert "give that kernel's own vmlinux" in done.stderr


def test_what_is_missing_is_said_once_and_the_rest_explained(
    made: Path, decode: Decode, tmp_path: Path
) -> None:
    (tmp_path / "broken.ko").write_bytes((made / "some-module.ko").read_bytes()[:-200])
    calls = f"calls+0x1/{sizes(made / 'vmlinux')['calls'][1]:#x}"
    text = f" f+0x1/0x2 [absent]\n g+0x1/0x2 [absent]\n f+0x1/0x2 [broken]\n {calls}\n"
    done = decode("--vmlinux", made / "vmlinux", "--debug-dir", tmp_path, text=text)
    assert done.returncode == 0
    before, _, explained = done.stdout.partition(calls)
    assert before == text.partition(calls)[0]
    assert re.fullmatch(r"  program\.c:\d+\n", explained)
    assert done.stderr.count("no file of module absent") == 1
    assert done.stderr.count("kbridge: module broken: ") == 1


@pytest.mark.parametrize("contents", [b"", b"no ELF file" * 20, b"\x7fELF\x02\x01\x01" + bytes(200)])
def test_a_file_that_is_no_kernels_is_an_error_in_words(
    decode: Decode, tmp_path: Path, contents: bytes
) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(contents)
    done = decode("--vmlinux", path, text="x\n")
    assert done.returncode == 1
    assert done.stderr.startswith("kbridge: ")
    assert "Traceback" not in done.stderr


def test_any_bytes_pass(made: Path, tmp_path: Path, decode: Decode) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\xff\xfe\x00 calls+0x1/0x2\x80\n" + b"x" * 200_000 + b"\n\n")
    done = subprocess.run(
        [sys.executable, "-m", "kbridge", "decode", "--vmlinux", made / "vmlinux", log],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert (
        done.stdout.startswith(b"\xff\xfe\x00 calls+0x1/0x2  (of another build: ")
        or b"\xff\xfe\x00" in done.stdout
    )
    assert done.stdout.replace(b"\n", b"").count(b"x" * 200_000) == 1


def test_assembler_code_has_lines(made: Path) -> None:
    index = indexed(made / "vmlinux")
    (entry,) = index.named("entry")
    assert index.frames(entry.address) == (Frame("entry", "entry.S", 6),)


# -- a real kernel ------------------------------------------------------------------------------------------------


@pytest.mark.guest
def test_oopses_of_a_real_kernel(kgdb_guest: Any, decode: Decode) -> None:
    said = kgdb_guest()
    log = ""
    with Shell(said["console"]) as shell:
        shell.booted()
        for fault in ("EXCEPTION", "WRITE_RO", "EXEC_NULL"):
            shell.type(f"sh -c 'echo {fault} > /sys/kernel/debug/provoke-crash/DIRECT' &")
            log += shell.until(rb"---\[ end trace [0-9a-f]+ \]---").decode("latin-1")
    done = decode("--vmlinux", said["vmlinux"], text=log)
    assert done.returncode == 0, done.stderr
    exception, read_only, null = re.split(r"Performing direct entry \w+", done.stdout)[1:]
    for one in (exception, read_only, null):
        assert re.search(r" vfs_write\+0x\w+/0x\w+  fs/read_write\.c:\d+", one)
        assert re.search(r" do_syscall_64\+0x\w+/0x\w+  arch/x86/entry/common\.c:\d+", one)
        assert re.search(r" entry_SYSCALL_64_after_hwframe\+0x\w+/0x\w+  arch/x86/entry/entry_64\.S:\d+", one)
        assert re.search(r"\] +do_syscall_x64  arch/x86/entry/common\.c:\d+ \(inlined\)", one)
    assert re.search(r"RIP: 0010:lkdtm_EXCEPTION\+0x\w+/0x\w+ \(drivers/misc/lkdtm/bugs\.c:\d+\)", exception)
    assert re.search(r"=> +<\+0x\w+>  \w\w .*mov\w* ", exception)
    assert "-- it writes 4 bytes at 0x0\n" in exception
    assert re.search(
        r"-- it writes 8 bytes at 0xffffffff\w+ \(CR2\) = rip \+ 0x\w+, which is rodata", read_only
    )
    assert "-- it went to 0x0, where no code is known" in null
    assert "of another build" not in done.stdout


# -- the record ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own_relay() -> Iterator[RelayProcess]:
    relay = RelayProcess()
    yield relay
    relay.close()


def test_a_guests_record_is_explained(made: Path, own_relay: RelayProcess, tmp_path: Path) -> None:
    calls = f"calls+0x1/{sizes(made / 'vmlinux')['calls'][1]:#x}"
    (tmp_path / f"vmlinux-{RELEASE}").symlink_to(made / "vmlinux")
    own_relay.write_config(
        f'[guests.web1]\nconsole = "unix:{own_relay.far.path}"\ndebug_dirs = ["{tmp_path}"]\n'
    )
    own_relay.env["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    own_relay.start()
    own_relay.recorded(f"[    0.000000] Linux version {RELEASE} (someone)\r\n login: \r\n".encode())
    own_relay.recorded(f"[    1.000005]  {calls}\r\n".encode())
    done = own_relay.run("log", "web1", "--symbols", "-n", "1")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\[    1\.000005\]  calls\+0x1/0x\w+  program\.c:\d+\n", done.stdout)
    # What is not of the kernel comes as it does without.
    assert " login: \n" in own_relay.run("log", "web1", "--symbols").stdout
    assert own_relay.run("log", "web1", "--symbols", "--raw").returncode == 2


def test_a_record_of_an_unknown_kernel_is_said_to_be(own_relay: RelayProcess) -> None:
    own_relay.start()
    own_relay.recorded(b"nothing of a kernel\r\n")
    done = own_relay.run("log", "web1", "--symbols")
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not say which kernel it is of" in done.stderr
