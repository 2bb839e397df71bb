"""Images of real guests that have panicked, KASLR on, opened by gdb, drgn and crash: what the live guest showed."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from bridge_lab import wait_for
from image_lab import take
from sharing_lab import Shared
from test_symbols_served import Console

from gdbstubs.target import ThreadId
from kbridge.crash.core_bytes import Bytes
from kbridge.crash.core_file import CoreFile
from kbridge.crash.core_kernel import begin, read_tasks
from kbridge.crash.core_memory import CoreMemory
from kbridge.crash.core_target import CoreTarget, Threads
from kbridge.crash.lent_kernel import lend
from kbridge.debuginfo import kept_files
from kbridge.debuginfo.finders import Finder
from kbridge.debuginfo.kernel import GuestKernel
from kbridge.debuginfo.mapping import mapped
from kbridge.debuginfo.opening import at_once, result_of
from kbridge.debuginfo.separate import name_of
from symbols import elf, vmcoreinfo
from symbols.skeleton import vmlinux_skeleton

pytestmark = [pytest.mark.guest, pytest.mark.gdb]

StartGuest = Callable[..., dict[str, Any]]
PANIC = ("panic", "sysrq_handle_crash", "__handle_sysrq", "write_sysrq_trigger", "vfs_write", "ksys_write")
TASK = re.compile(
    r"(?m)^\*? +(\d+) +Thread (\d+) \((?:CPU#(\d+)(?: \[(\d+) (\S+)\])?|(\d+) (.+?) \[(\w+)\])\)"
)


@dataclass(frozen=True)
class Dead:
    """A guest that has panicked, its image, and what it showed before it was gone."""

    image: Path
    facts: dict[str, Any]
    live: str
    tasks: dict[int, str]
    files: tuple[str, ...]
    release: str
    gdb_scripts: bool

    def open(self, *arguments: str, image: Path | None = None, timeout: float = 100) -> str:
        done = self.run(*arguments, image=image, timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def run(
        self, *arguments: str, image: Path | None = None, timeout: float = 100, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        tool, rest = arguments[0], arguments[1:]
        return subprocess.run(
            [sys.executable, "-m", "kbridge", "crash", "open", "--with", tool, *self.files, str(image or self.image)]
            + (["--", *rest] if rest else []),
            capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, "DEBUGINFOD_URLS": "", "TMPDIR": str(self.image.parent), **environment},
        )  # fmt: skip

    def gdb(self, *commands: str) -> str:
        return self.open("gdb", "-nx", "-batch", *(word for one in commands for word in ("-ex", one)))


def beside(image: Path) -> Path:
    """Return where the same memory is in kdump's format: out of the folder in which tools leave nothing."""
    return image.parent.with_name(f"{image.parent.name}.kdump")


def die(start_guest: StartGuest, folder: Path, *arguments: str) -> Dead:
    with Shared(start_guest, *arguments) as shared:
        with Console(shared) as console:
            said = console.run(
                'for p in /proc/[0-9]*; do read -r c <$p/comm && echo "${p#/proc/} $c"; done 2>/dev/null'
            )
            console.type("echo c >/proc/sysrq-trigger")
        wait_for(lambda: shared.state() == "panicked", "a guest that has panicked")
        commands = ("-ex", "thread 1", "-ex", "bt", "-ex", "thread 2", "-ex", "bt")
        live = shared.run("gdb", "web1", "--", "-nx", "-batch", *commands).stdout
        facts = take(f"{shared.dir}/monitor", folder / "vmcore")
        shared.monitor().command(
            "dump-guest-memory",
            paging=False,
            protocol=f"file:{beside(folder / 'vmcore')}",
            format="kdump-zlib",
        )
        tasks = {int(pid): name for pid, _, name in (line.partition(" ") for line in said.splitlines())}
        guest = shared.guest
        scripts = Path(guest["vmlinux"]).with_name("vmlinux-gdb.py").exists()
        files = ("--vmlinux", guest["vmlinux"], "--debug-dir", guest["debug_dir"])
        return Dead(folder / "vmcore", facts, live, tasks, files, guest["release"], scripts)


@pytest.fixture(scope="module")
def cloud(shared_cloud_guest: StartGuest, tmp_path_factory: pytest.TempPathFactory) -> Dead:
    """Without the device that tells QEMU the kernel's VMCOREINFO."""
    return die(shared_cloud_guest, tmp_path_factory.mktemp("cloud"), "--no-vmcoreinfo")


@pytest.fixture(scope="module")
def kgdb(shared_kgdb_guest: StartGuest, tmp_path_factory: pytest.TempPathFactory) -> Dead:
    """With it."""
    return die(shared_kgdb_guest, tmp_path_factory.mktemp("kgdb"))


@pytest.fixture(scope="module", params=["cloud", "kgdb"])
def dead(request: pytest.FixtureRequest) -> Dead:
    found: Dead = request.getfixturevalue(request.param)
    return found


def backtraces(said: str) -> list[list[str]]:
    """Each backtrace as gdb prints it, innermost frame first; the line that names a thread begins one too."""
    found: list[list[str]] = []
    for line in said.splitlines():
        if line.startswith("#0 "):
            found.append([])
        if re.match(r"#\d+ ", line) and found:
            found[-1].append(line)
    return [one for one in found if len(one) > 1]


def functions(backtrace: list[str]) -> list[str]:
    found = (re.match(r"#\d+ +(?:0x[0-9a-f]+ in )?([\w.]+) \(", line) for line in backtrace)
    return [one[1] for one in found if one is not None]


def test_an_image_has_vmcoreinfo_with_the_device_and_without(cloud: Dead, kgdb: Dead) -> None:
    assert (cloud.facts["from"], kgdb.facts["from"]) == ("memory", "guest")
    for one in (cloud, kgdb):
        core = CoreFile.open(one.image)
        text = core.head.vmcoreinfo()
        core.close()
        assert text is not None
        assert text.startswith(f"OSRELEASE={one.release}\n".encode())
        assert one.facts["file_bytes"] < one.facts["memory_bytes"] / 4


def test_gdb_shows_what_it_showed_on_the_live_guest(dead: Dead) -> None:
    said = dead.gdb("thread 1", "bt", "thread 2", "bt")
    assert len(backtraces(said)) == 2
    # To the letter: functions, arguments, files and lines, of both processors.
    assert backtraces(said) == backtraces(dead.live)
    (of_panic,) = [one for one in backtraces(said) if "sysrq_handle_crash" in "".join(one)]
    assert [one for one in functions(of_panic) if one in PANIC] == list(PANIC)


def test_the_processor_that_panicked_is_shown_first_and_all_tasks_are_threads(dead: Dead) -> None:
    said = dead.gdb("bt", "info threads", "monitor status")
    assert "sysrq_handle_crash" in functions(backtraces(said)[0])
    threads = TASK.findall(said)
    processors = [one for one in threads if one[2]]
    assert [one[2] for one in processors] == ["0", "1"]
    # The other may have been at work too.
    assert "sh" in [one[4] for one in processors if one[3]]
    shown = {int(one[5]): one[6] for one in threads if one[5]}
    # What is short-lived may have ended between the list and the panic.
    lasting = {pid: name for pid, name in dead.tasks.items() if pid in shown}
    assert len(lasting) > 20
    assert len(dead.tasks) - len(lasting) < 5
    for pid, name in lasting.items():
        assert name[:15] == shown[pid] or "worker" in name
    assert f"tasks      {len(shown) + 2}" in said
    # Each of them stands where it was switched away from.
    assert "?? ()" not in said.partition("Target Id")[2].partition("image ")[0]


def test_an_image_in_kdumps_format_shows_the_same(dead: Dead) -> None:
    commands = [word for one in ("thread 1", "bt", "thread 2", "bt") for word in ("-ex", one)]
    kdump = beside(dead.image)
    assert kdump.read_bytes()[:12] == b"makedumpfile"
    said = dead.open("gdb", "-nx", "-batch", *commands, image=kdump)
    assert len(backtraces(said)) == 2
    assert backtraces(said) == backtraces(dead.live)


def test_a_kernel_that_was_opened_before_is_lent_to_gdb_and_shows_the_same(
    dead: Dead, tmp_path: Path
) -> None:
    commands = [word for one in ("thread 1", "bt", "thread 2", "bt", "info files") for word in ("-ex", one)]
    # gdb, which has read the symbols, asks for the threads again at once: unanswered it waits 30 s and asks once more.
    first, again = (
        dead.run("gdb", "-nx", "-batch", *commands, XDG_CACHE_HOME=str(tmp_path), timeout=29)
        for _ in range(2)
    )
    assert first.returncode == again.returncode == 0
    assert re.search(r"target:/kbridge/vmlinux-[0-9a-f]{12}@[0-9a-f]{16}'", first.stdout)
    assert re.search(r"`/\S+/kbridge-\w+/vmlinux'", again.stdout)
    assert backtraces(again.stdout) == backtraces(first.stdout) == backtraces(dead.live)
    # In another order, and by its other name.
    lines = [
        sorted(
            re.sub(
                r"(?:target:/kbridge/|/\S+/kbridge-\w+/)vmlinux(?:-\w+@\w+)?", "MAIN", one.stderr
            ).splitlines()
        )
        for one in (first, again)
    ]
    assert lines[0] == lines[1]
    # Nothing is left of what was lent.
    assert [one.name for one in dead.image.parent.iterdir()] == [dead.image.name]


def test_only_the_kernel_that_is_in_the_image_is_lent(kgdb: Dead, tmp_path: Path) -> None:
    kept, links, place = tmp_path / "kept", tmp_path / "links", tmp_path / "vmlinux"
    path = Path(kgdb.files[1])
    core = CoreFile.open(kgdb.image)
    said = vmcoreinfo.parse(core.head.vmcoreinfo() or b"")
    assert said.slide is not None
    assert said.build_id is not None

    def keep(slide: int, size: int) -> None:
        with mapped(path) as image:
            name = kept_files.main_file(said.build_id, slide, size)
            kept_files.kept(kept, name, lambda: vmlinux_skeleton(image, slide))

    def lent(of: vmcoreinfo.Vmcoreinfo = said, vmlinux: Path | None = path, *folders: Path) -> Path | None:
        return lend(core, of, vmlinux, folders, kept, links, place)

    # It was not opened before.
    assert lent() is None
    keep(said.slide, path.stat().st_size)
    assert lent() == place
    with mapped(place) as image:
        assert elf.build_id(image) == said.build_id
    assert name_of(links, said.build_id).resolve() == path.resolve()
    # Its file is found by its build-id too, and not in any other way.
    assert lent(said, None, tmp_path) is None
    assert lent(said, None, links) == place
    place.unlink()

    # It says of itself that it was moved otherwise: its VMCOREINFO is of a boot before.
    keep(said.slide + 0x200000, path.stat().st_size)
    assert lent(replace(said, slide=said.slide + 0x200000)) is None
    assert lent(replace(said, slide=None)) is None
    assert lent(replace(said, build_id=None)) is None
    # Another file is named, of the same size or not.
    other = tmp_path / "other"
    other.write_bytes(b"\x7fELF" + bytes(100))
    assert lent(said, other) is None
    keep(said.slide, 104)
    assert lent(said, other) is None
    assert lent(said, tmp_path / "none") is None
    # What was kept is damaged.
    for file in kept.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert lent() is None
    assert not place.exists()
    core.close()


def test_a_sleeping_task_has_its_stack(dead: Dead) -> None:
    said = dead.gdb("thread 3", "bt")
    assert "(Thread 1000001)" in said
    assert functions(backtraces(said)[0])[:4] == ["context_switch", "__schedule", "schedule", "do_wait"]


def test_a_task_has_its_own_memory(kgdb: Dead) -> None:
    task = "((struct task_struct *)((char *)init_task.tasks.next - (long)&((struct task_struct *)0)->tasks))"
    said = kgdb.gdb("thread 3", f"x/s {task}->mm->arg_start", "thread 4", f"x/s {task}->mm->arg_start")
    assert re.search(r'(?m)^0x[0-9a-f]+:\t"/bin/sh"$', said)
    # A thread of the kernel's own has none.
    assert "Cannot access memory at address" in said.rpartition("(Thread 1000002)")[2]


def test_with_no_file_anywhere_the_image_tells_names_and_unwinding_itself(cloud: Dead) -> None:
    bare = Dead(**{**vars(cloud), "files": ()})
    said = bare.gdb("bt", "thread 3", "bt", "info threads")
    of_processor, of_task = (functions(one) for one in backtraces(said))
    # Its first function is a module's.
    assert of_processor[0] == "pvpanic_panic_notify"
    assert "sysrq_handle_crash" in of_processor
    # Inlined calls have no names of their own.
    assert of_task[:3] == ["__schedule", "schedule", "do_wait"]
    assert len(TASK.findall(said)) > 30
    assert "?? ()" not in said.partition("Target Id")[2]


def test_nothing_can_be_changed_or_resumed_and_the_user_is_told(kgdb: Dead) -> None:
    said = kgdb.gdb(
        "set var $rip = 1",
        "set var jiffies = 1",
        "monitor status",
        "break panic",
        "continue",
        "stepi",
        "p $pc",
    )
    assert "is a memory image: its memory cannot be changed" in said
    assert said.count("is a memory image: nothing in it runs, forwards or backwards") >= 2
    assert "is a memory image: its registers cannot be changed" in said


def test_the_kernels_own_gdb_scripts_work(kgdb: Dead) -> None:
    assert kgdb.gdb_scripts
    said = kgdb.gdb(
        "lx-version", "lx-lsmod", "p $lx_task_by_pid(1)->comm", "monitor modules", "monitor symbols"
    )
    assert f"Linux version {kgdb.release}" in said
    assert re.search(r"(?m)^0x[0-9a-f]+ +dummy ", said)
    assert '"init' in said
    assert re.search(r"(?m)^dummy +0x", said)
    assert "its build-id was read back" in said


def test_drgn_shows_the_same_task_and_backtrace(dead: Dead) -> None:
    code = (
        "thread = prog.crashed_thread(); print(thread.object.comm.string_().decode(), thread.object.pid.value_());"
        "print([frame.name for frame in thread.stack_trace()])"
    )
    said = dead.open("drgn", "-q", "-e", code)
    assert said.startswith("sh ")
    names = re.findall(r"'(\w+)'", said)
    assert [one for one in names if one in PANIC] == list(PANIC)
    (gdbs,) = [functions(one) for one in backtraces(dead.live) if "sysrq_handle_crash" in "".join(one)]
    assert [one for one in names if one in gdbs] == [one for one in gdbs if one in names]


@pytest.mark.slow
def test_crash_shows_the_same_task_and_backtrace(dead: Dead, tmp_path: Path) -> None:
    commands = tmp_path / "commands"
    commands.write_text("bt\nquit\n")
    said = dead.open("crash", "-s", "-i", str(commands), timeout=150)
    assert re.search(r'PID: \d+ +TASK: [0-9a-f]+ +CPU: \d +COMMAND: "sh"', said)
    names = re.findall(r"(?m)^ *#\d+ \[[0-9a-f]+\] (\w+)", said)
    assert [name for name in names if name in PANIC] == [name for name in PANIC if name in names]
    # What never returns is called last of all, so that crash, which goes by return addresses, may pass over its caller.
    assert set(PANIC) - set(names) <= {"sysrq_handle_crash"}
    # Nothing is left of what was unpacked.
    assert [one.name for one in dead.image.parent.iterdir()] == [dead.image.name]


def test_an_encrypted_image_in_the_folder_of_a_crash(kgdb: Dead, tmp_path: Path) -> None:
    key = tmp_path / "key"
    said = subprocess.run(["age-keygen", "-o", str(key)], capture_output=True, text=True, check=True).stderr
    folder = tmp_path / "crash"
    folder.mkdir()
    subprocess.run(
        ["age", "--encrypt", "-r", said.split()[-1], "-o", str(folder / "vmcore.age"), str(kgdb.image)],
        check=True,
    )
    done = kgdb.run("gdb", image=folder)
    assert (done.returncode, done.stderr) == (
        1,
        f"kbridge: {folder}/vmcore.age is encrypted; give the file with the secret key: --identity FILE\n",
    )
    dead = Dead(**{**vars(kgdb), "files": (*kgdb.files, "--identity", str(key))})
    said = dead.open("gdb", "-nx", "-batch", "-ex", "bt", image=folder)
    assert "sysrq_handle_crash" in said
    assert [one.name for one in kgdb.image.parent.iterdir()] == ["vmcore"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("absent", "absent cannot be read: No such file or directory"),
        ("folder", "folder has no memory image: none of vmcore, "),
        ("text", "text is no memory image that can be read: it is no 64-bit little-endian ELF file"),
    ],
)
def test_what_is_no_image_is_said(kgdb: Dead, tmp_path: Path, what: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("text " * 100)
    for tool in ("gdb", "drgn", "crash"):
        done = kgdb.run(tool, image=tmp_path / what)
        assert done.returncode == 1
        assert done.stderr.startswith("kbridge: ")
        assert words in done.stderr


class Damaged:
    """An image's bytes, some of which read as others."""

    def __init__(self, source: Bytes, seed: int) -> None:
        self._source, self._chance = source, random.Random(seed)
        self.size = source.size

    def read(self, offset: int, length: int) -> bytes:
        data = self._source.read(offset, length)
        if offset < 1 << 16 or self._chance.random() < 0.97:
            return data
        at = self._chance.randrange(max(len(data), 1))
        return data[:at] + self._chance.randbytes(min(8, len(data) - at)) + data[at + 8 :]

    def close(self) -> None:
        """It is another's to close."""


@pytest.mark.parametrize("seed", range(6))
def test_memory_that_is_not_what_it_was_is_told_in_words_and_never_raises(kgdb: Dead, seed: int) -> None:
    whole = CoreFile.open(kgdb.image)
    core = CoreFile(Damaged(whole.source, seed), "damaged")
    memory = CoreMemory(core)
    finder = Finder(Path(kgdb.files[1]), [Path(kgdb.files[3])])
    begun = result_of(begin(memory, GuestKernel(memory, finder, at_once), at_once))
    found = result_of(read_tasks(memory, begun, at_once))
    assert found.problem or found.tasks
    threads = Threads(core, ThreadId(1), lambda: None)
    threads.complete(core, found.tasks, memory.tables)
    target = CoreTarget(core, "damaged", threads)
    for one in tuple(threads.stacks)[:40]:
        target.read_registers(one, lambda text: None)
        target.read_memory(one, threads.stacks[one].registers.get("rsp", 0), 4096, lambda data: None)
    whole.close()
