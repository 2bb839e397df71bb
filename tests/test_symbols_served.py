"""A gdb that was told nothing, on a real kernel that KASLR has moved: with the kernel's files at hand, and without."""

from __future__ import annotations

import itertools
import json
import re
import signal
import socket
import subprocess
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from bridge_lab import ROOT, Bridge, wait_for
from debuggers_lab import GDB_13, GDB_18, Gdb, Make, Silent
from sharing_lab import Shared

pytestmark = [pytest.mark.guest, pytest.mark.gdb]

StartGuest = Callable[..., dict[str, Any]]
MAKES = (GDB_13, GDB_18)


_COUNT = itertools.count(1)
"""The consoles of a module's guest keep what earlier tests printed."""


class Console:
    """The root shell on the guest's console, beside which the guest prints its ticks."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(bridge.socket.with_name("console")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ignored: object) -> None:
        self._socket.close()

    def type(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\r")

    def run(self, line: str, seconds: float = 120) -> str:
        """Run a command and return what it printed."""
        number = next(_COUNT)
        # In two parts, so that the echo of the command is not taken for its end.
        self.type(f"{line}; echo @@'end{number}'@@")
        end = f"@@end{number}@@\r\n".encode()
        said = b""
        deadline = time.monotonic() + seconds
        while end not in (said := re.sub(rb"tick \d+\r\n", b"", self._bridge.console())):
            assert time.monotonic() < deadline, f"{line} did not end: {said[-2000:]!r}"
            time.sleep(0.1)
        before = said[: said.rindex(end)]
        return (
            before[before.rindex(f"'end{number}'@@".encode()) :]
            .partition(b"\n")[2]
            .decode()
            .replace("\r", "")
        )


class Linked:
    """The functions of the kernel's file, as `System.map` has them."""

    def __init__(self, guest: dict[str, Any]) -> None:
        lines = (Path(guest["vmlinux"]).with_name("System.map")).read_text().splitlines()
        known = sorted((int(address, 16), name) for address, _, name in map(str.split, lines))
        self.addresses = [address for address, _ in known]
        self.names = [name for _, name in known]
        self.by_name = {name: address for address, name in known}

    def at(self, address: int) -> set[str]:
        """The names of what is at an address."""
        start = self.addresses[bisect_right(self.addresses, address) - 1]
        return {name for one, name in zip(self.addresses, self.names, strict=True) if one == start}


@pytest.fixture(scope="module")
def files(shared_cloud_guest: StartGuest) -> Iterator[Shared]:
    """A guest whose files the host has."""
    with Shared(shared_cloud_guest) as bridge:
        yield bridge


@pytest.fixture(scope="module")
def bare(shared_cloud_guest: StartGuest) -> Iterator[Bridge]:
    """A guest of whose kernel the host has no file at all."""
    with Bridge(shared_cloud_guest) as bridge:
        yield bridge


@pytest.fixture(params=MAKES, ids=lambda make: make.name)
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


def booted(bridge: Bridge, times: int) -> bool:
    return bridge.ticks().count(1) == times


def libraries(gdb: Gdb) -> set[str]:
    return set(re.findall(r"/modules/[0-9a-f]+/(\w+)\.ko", gdb.run("info sharedlibrary")))


def slide_of(gdb: Gdb, linked: Linked) -> int:
    slide = gdb.value("&init_task") - linked.by_name["init_task"]
    assert 0 <= slide < 1 << 30
    assert slide % (1 << 21) == 0
    return slide


def shows_the_kernel(gdb: Gdb, linked: Linked, modules: set[str]) -> int:
    """Check what a gdb shows of a guest that stands; return by how much its kernel was moved."""
    slide = slide_of(gdb, linked)
    for processor in (1, 2):
        gdb.run(f"thread {processor}")
        shown = gdb.run("frame")
        named = re.search(r"#0  (?:0x[0-9a-f]+ in )?(\w+)", shown)
        if "#0  <signal handler called>" in shown:
            # The kernel's entry code, where registers are saved as for a signal: gdb shows it so, whatever its name is.
            named = re.search(r"^(\w+)(?: \+ \d+)? in section", gdb.run("info symbol $pc"), re.MULTILINE)
        counter = gdb.register("rip") - slide
        # In a module or in user space there is no name of the kernel; a return from a signal there has none at all.
        if linked.addresses[0] <= counter <= linked.by_name["_etext"]:
            assert named is not None
            assert named.group(1) in linked.at(counter)
    gdb.run("thread 1")
    assert libraries(gdb) == modules
    # Per-CPU variables are offsets into each processor's area, wherever the kernel is.
    assert gdb.value("&runqueues") == linked.by_name["runqueues"]
    return slide


@pytest.mark.slow
def test_three_boots_with_three_slides_under_one_gdb(files: Shared, make: Make) -> None:
    linked = Linked(files.guest)
    slides = set()
    with Console(files) as console, Gdb(make, files.env) as gdb:
        modules = set(console.run("cut -d' ' -f1 /proc/modules").split())
        assert len(modules) > 10
        gdb.attach(files.socket)
        slides.add(shows_the_kernel(gdb, linked, modules))
        gdb.run("break __x64_sys_delete_module")
        for _ in range(2):
            gdb.go()
            boots = files.ticks().count(1)
            assert files.run("power", "web1", "reset").returncode == 0
            wait_for(partial(booted, files, boots + 1), "a guest that has booted again", 120)
            gdb.process.send_signal(signal.SIGINT)
            said = gdb.wait_stop()
            assert "executing new program: /kbridge/vmlinux-" in said
            assert "SIGINT" in said
            slide = shows_the_kernel(gdb, linked, modules)
            slides.add(slide)
            # The breakpoint has moved with the kernel, and is hit there.
            place = linked.by_name["__x64_sys_delete_module"] + slide
            assert f"{place:#x}" in gdb.run("info breakpoints")
            gdb.go()
            console.type("rmmod dummy; insmod /lib/modules/dummy.ko")
            assert "Breakpoint 1, " in gdb.wait_stop()
            assert gdb.pc == place
        gdb.run("delete")
        gdb.detach()
    # Two boots may be given the same place out of 500; three hardly.
    assert len(slides) > 1
    found = [event for event in files.events() if event["kind"] == "kernel.found"]
    assert {int(event["slide"], 16) for event in found} >= slides
    assert "the same kernel, booted again" in {event["what"] for event in found}
    files.goes_on()


def test_a_processor_in_user_mode_under_page_table_isolation(cloud_guest: StartGuest, make: Make) -> None:
    with Shared(cloud_guest, "--append", "kbridge.tick=0.2 pti=on") as bridge:
        linked = Linked(bridge.guest)
        with Console(bridge) as console:
            assert "Kernel/User page tables isolation" in console.run("dmesg")
            # Stops are the first processor's.
            console.type("exec taskset 1 sha256sum /dev/zero")
        for _ in range(50):
            with Gdb(make, bridge.env) as gdb:
                gdb.attach(bridge.socket)
                is_user = gdb.value("$cs") & 3 == 3
                if is_user:
                    assert slide_of(gdb, linked) >= 0
                    assert "virtio" in gdb.run("info sharedlibrary")
                gdb.detach()
            if is_user:
                break
        assert is_user


@pytest.mark.slow
def test_a_guest_that_reboots_under_a_waiting_gdb_hits_its_breakpoints(files: Shared, make: Make) -> None:
    linked = Linked(files.guest)
    with Gdb(make, files.env) as gdb:
        gdb.attach(files.socket)
        before = slide_of(gdb, linked)
        gdb.run("break alloc_netdev_mqs")
        gdb.go()
        # Nobody interrupts.  Two boots may be given the same place out of 500, and then there is nothing to be told.
        for _ in range(4):
            assert files.run("power", "web1", "reset").returncode == 0
            said = gdb.wait_stop(120)
            assert "Breakpoint 1, " in said
            assert gdb.pc == linked.by_name["alloc_netdev_mqs"] + slide_of(gdb, linked)
            if slide_of(gdb, linked) != before:
                break
            gdb.go()
        assert "executing new program: /kbridge/vmlinux-" in said
        assert slide_of(gdb, linked) != before
        assert "SIGINT" not in said
        gdb.run("delete")
        gdb.detach()
    files.goes_on()


def test_one_gdb_from_the_reset_vector_to_user_space(cloud_guest: StartGuest, make: Make) -> None:
    with Shared(cloud_guest, "--stopped", "--no-kaslr") as bridge, Gdb(make, bridge.env) as gdb:
        linked = Linked(bridge.guest)
        gdb.attach(bridge.socket)
        # Real mode: the counter is linear, and what stands there is decoded as the processor does.
        assert gdb.value("$pc") == 0xFFFF0
        assert re.search(r"ljmp +\$0xf000,\$0xe05b", gdb.run("x/i $pc"))
        assert "0x000fe05b" in gdb.run("stepi")
        # Where QEMU's loader jumps to: the kernel's 16-bit setup, Documentation/arch/x86/boot.rst.
        gdb.run("tbreak *0x10200")
        gdb.go()
        gdb.wait_stop()
        assert re.search(r"=> 0x10200:\s+jmp +0x102", gdb.run("x/i $pc"))
        # Its 32-bit entry, then the 64-bit one 0x200 behind it.
        gdb.run("tbreak *0x100000")
        gdb.go()
        gdb.wait_stop()
        assert "i386)" in gdb.run("show architecture").replace('"', "")
        assert re.search(r"lea +0x1e8\(%esi\),%esp", gdb.run("x/3i $pc"))
        gdb.run("tbreak *0x100200")
        gdb.go()
        gdb.wait_stop()
        assert "i386:x86-64)" in gdb.run("show architecture").replace('"', "")
        assert gdb.value("$rip") == 0x100200
        # The kernel: its names are there at the first stop in it, in the same session.
        gdb.run(f"tbreak *{linked.by_name['start_kernel']:#x}")
        gdb.go()
        said = gdb.wait_stop()
        assert "executing new program: /kbridge/vmlinux-" in said
        assert "start_kernel" in gdb.run("info symbol $pc")
        # And on to where a system call returns to in user space.
        gdb.run("tbreak *&entry_SYSCALL_64")
        gdb.go()
        gdb.wait_stop()
        assert "entry_SYSCALL_64" in gdb.run("info symbol $pc")
        user = gdb.value("$rcx")
        assert user < 1 << 47
        gdb.run(f"tbreak *{user:#x}")
        gdb.go()
        gdb.wait_stop()
        assert gdb.pc == user
        assert gdb.value("$cs") == 0x33
        gdb.detach()


def test_a_module_that_is_loaded_is_known_at_the_next_stop(files: Shared, make: Make) -> None:
    with Console(files) as console, Gdb(make, files.env) as gdb:
        console.run("rmmod dummy")
        gdb.attach(files.socket)
        assert "dummy" not in libraries(gdb)
        assert "No symbol" in gdb.run("print dummy_get_stats64")
        gdb.run("set breakpoint pending on")
        gdb.run("break dummy_get_stats64")
        gdb.go()
        console.run("insmod /lib/modules/dummy.ko")
        gdb.process.send_signal(signal.SIGINT)
        gdb.wait_stop()
        assert "dummy" in libraries(gdb)
        assert "dummy_get_stats64" in gdb.run("info symbol dummy_get_stats64")
        gdb.go()
        console.type("cat /proc/net/dev")
        said = gdb.wait_stop()
        assert "Breakpoint 1, " in said
        assert re.search(r"dummy_get_stats64 .*/modules/[0-9a-f]+/dummy\.ko", said)
        gdb.run("delete")
        gdb.detach()
    files.goes_on()


def test_lines_come_from_the_debug_files_of_these_build_ids(files: Shared) -> None:
    with Gdb(GDB_13, files.env, "-ex", f"set debug-file-directory {files.guest['debug_dir']}") as gdb:
        gdb.attach(files.socket)
        assert "Line" in gdb.run("info line schedule")
        assert "kernel/sched/core.c" in gdb.run("info line schedule")
        assert "drivers/net/dummy.c" in gdb.run("info line dummy_setup")
        assert re.search(r"(?m)^#1 .* at \w+/", gdb.run("backtrace"))
        gdb.detach()
    files.goes_on()


def test_what_the_relay_says_of_the_kernel(files: Shared) -> None:
    with Gdb(GDB_13, files.env) as gdb:
        gdb.attach(files.socket)
        said = gdb.monitor("symbols")
        build_id = re.search(r"build-id ([0-9a-f]{40})\n", said)
        assert build_id is not None
        assert f"file       {files.guest['vmlinux']}\n" in said
        assert re.search(r"slide      0x[0-9a-f]+\n", said)
        rows = gdb.monitor("modules").splitlines()
        assert rows[0].split() == ["name", "address", "bytes", "file"]
        assert {row.split()[0] for row in rows[1:]} == libraries(gdb)
        assert all(row.split()[3].startswith("/") for row in rows[1:])
        gdb.detach()


# -- nobody has a file --------------------------------------------------------------------------------------------


def test_the_same_with_no_file_anywhere(bare: Bridge, make: Make) -> None:
    linked = Linked(bare.guest)
    with Console(bare) as console, Gdb(make, bare.env) as gdb:
        modules = set(console.run("cut -d' ' -f1 /proc/modules").split())
        gdb.attach(bare.socket)
        shows_the_kernel(gdb, linked, modules)
        assert "none of this build-id" in gdb.monitor("symbols")
        said = gdb.run("backtrace")
        # To the kernel's first frame, or to the program that entered it, in whatever way.
        assert re.search(r"secondary_startup_64|ret_from_fork|#\d+ +0x0000", said), said
        gdb.run("break dummy_get_stats64")
        gdb.go()
        console.type("cat /proc/net/dev")
        assert "Breakpoint 1, " in gdb.wait_stop()
        assert "dev_get_stats" in gdb.run("backtrace 2")
        gdb.run("delete")
        gdb.detach()
    bare.goes_on()


@pytest.mark.slow
def test_ten_thousand_symbols_are_the_guests_own(bare: Bridge, tmp_path: Path) -> None:
    with Console(bare) as console, Gdb(GDB_13, bare.env) as gdb:
        lines = console.run("awk 'NR%8==1' /proc/kallsyms", 300).splitlines()
        wanted = {}
        for line in lines:
            match = re.fullmatch(r"([0-9a-f]{16}) (\w) (\S+)", line)
            if match is not None:
                wanted.setdefault(match.group(3), set()).add(int(match.group(1), 16))
        gdb.attach(bare.socket)
        assert len(wanted) > 9_000
        gdb.run(f"maint print msymbols {tmp_path / 'symbols'}", 120)
        gdb.detach()
    shown: dict[str, set[int]] = {}
    for line in (tmp_path / "symbols").read_text().splitlines():
        match = re.match(r"\[ *\d+\] \w (0x[0-9a-f]+) (\S+)", line)
        if match is not None:
            shown.setdefault(match.group(2), set()).add(int(match.group(1), 16))
    # What macros and the compiler name by numbers is left out; all else is there, and where the guest has it.
    numbered = re.compile(r".*\.\d+$|__UNIQUE_ID")
    sought = {name: places for name, places in wanted.items() if not numbered.match(name)}
    missing = sought.keys() - shown.keys()
    assert len(missing) < 0.12 * len(sought), sorted(missing)[:50]
    wrong = {name for name in sought.keys() - missing if not wanted[name] <= shown[name]}
    assert not wrong, sorted(wrong)[:20]


_FRAMES = """python
frame, found = gdb.newest_frame(), []
while frame is not None and len(found) < 60:
    if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
        found.append("%x" % frame.pc())
    frame = frame.older()
print("FRAMES " + " ".join(found))
end"""

PLACES = (
    "vfs_read", "vfs_open", "do_sys_openat2", "kmem_cache_alloc", "__kmalloc", "schedule", "tick_sched_timer",
    "hrtimer_interrupt", "handle_mm_fault", "__alloc_pages", "do_exit", "copy_process", "wake_up_process",
    "try_to_wake_up", "pipe_read", "pipe_write", "dput", "path_openat", "iterate_dir", "__do_softirq",
    "run_timer_softirq", "exc_page_fault", "do_syscall_64", "__x64_sys_read", "load_elf_binary", "begin_new_exec",
    "mmap_region", "do_mmap", "free_pgtables", "unmap_vmas", "shmem_fault", "pick_next_task_fair", "enqueue_task_fair",
    "dequeue_task_fair", "update_curr", "mutex_lock", "down_read", "up_read", "fput", "__fput", "task_work_run",
    "exit_to_user_mode_prepare", "do_wait", "wait_consider_task", "release_task", "kfree", "kmem_cache_free",
    "__handle_mm_fault", "vma_merge", "generic_permission", "inode_permission", "alloc_fd", "fd_install",
    "get_arg_page", "flush_tlb_mm_range", "clockevents_program_event", "ktime_get", "sched_clock_cpu",
    "scheduler_tick", "calc_global_load_tick", "d_lookup", "__d_lookup_rcu", "lookup_fast", "step_into",
    "strncpy_from_user", "getname_flags", "irq_exit_rcu", "rcu_core", "seq_read_iter",
)  # fmt: skip


def frames(gdb: Gdb) -> list[str]:
    for line in _FRAMES.splitlines()[:-1]:
        gdb.send(line)
    said = gdb.run("end")
    assert "FRAMES " in said, said
    return said.rpartition("FRAMES ")[2].split()


@pytest.mark.slow
def test_backtraces_without_any_file_equal_those_with_dwarf(bare: Bridge) -> None:
    """At a hundred stops; where DWARF ends in assembler code, the kernel's own tables may lead on."""
    with (
        Console(bare) as console,
        Gdb(GDB_13, bare.env) as without,
        Gdb(GDB_13, bare.env, "-ex", f"set debug-file-directory {bare.guest['debug_dir']}") as dwarf,
    ):
        console.type(
            "while :; do find / -xdev -type f | head -300 | xargs cat >/dev/null 2>&1; ps | grep h >/dev/null; done &"
        )
        without.attach(bare.socket)
        dwarf.attach(bare.socket)
        stops = deep = 0
        for place in (PLACES * 3)[:150]:
            if stops == 100:
                break
            if "breakpoint" not in without.run(f"tbreak *&{place}"):
                continue
            without.send("continue")
            dwarf.send("continue")
            try:
                without.wait_stop(10)
            except Silent:
                without.process.send_signal(signal.SIGINT)
                without.wait_stop()
                without.run("delete")
                dwarf.wait_stop()
                continue
            dwarf.wait_stop()
            one, two = frames(without), frames(dwarf)
            assert one[: len(two)] == two, f"at {place}"
            stops += 1
            deep += len(two)
        assert stops == 100
        assert deep > 500
        without.run("delete")
        dwarf.detach()
        without.detach()
    bare.goes_on()


def test_another_kernels_file_is_refused_with_both_build_ids(
    shared_cloud_guest: StartGuest, kgdb_built: str
) -> None:
    listed = subprocess.run([ROOT / "scripts" / "guest", "list", "--json"], capture_output=True, check=True)
    vmlinux = next(one["vmlinux"] for one in json.loads(listed.stdout) if one["name"] == kgdb_built)
    bridge = Bridge(shared_cloud_guest, more=f'vmlinux = "{vmlinux}"\n')
    with bridge, Gdb(GDB_13, bridge.env) as gdb:
        gdb.attach(bridge.socket)
        said = gdb.monitor("symbols")
        own = re.search(r"kernel     build-id ([0-9a-f]{40})\n", said)
        other = re.search(r"not used   (\S+): it is of build-id ([0-9a-f]{40}), not of ([0-9a-f]{40})$", said)
        assert own is not None, said
        assert other is not None, said
        assert other.group(1) == vmlinux
        assert other.group(3) == own.group(1) != other.group(2)
        assert gdb.value("&init_task")
        gdb.detach()
