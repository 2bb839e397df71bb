"""`kbridge drgn`: drgn on the memory of real guests, while they run and while they stand, beside other debuggers."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from bridge_lab import Bridge, Monitor, wait_for
from debuggers_lab import GDB_13
from relay_lab import RelayProcess
from sharing_lab import Shared, is_left_clean, leave, start
from test_kgdb_sharing import SharedKgdb
from test_symbols_served import Console

from kbridge.commands.drgn_command import read_arguments

StartGuest = Callable[..., dict[str, Any]]

LIST = """\
import json, sys
from drgn.helpers.linux.module import for_each_module
from drgn.helpers.linux.pid import find_task, for_each_task
from drgn.helpers.linux.mm import access_process_vm

init = find_task(prog, 1)
print(json.dumps({
    "comm": prog["init_task"].comm.string_().decode(),
    "jiffies": int(prog["jiffies"]),
    "tasks": {str(int(one.pid)): one.comm.string_().decode() for one in for_each_task(prog)},
    "modules": sorted(one.name.string_().decode() for one in for_each_module(prog)),
    "release": prog["init_uts_ns"].name.release.string_().decode(),
    "init": access_process_vm(init, init.mm.arg_start, 8).decode("latin-1"),
    "frames": [one.name for one in prog.stack_trace(init)],
    "arguments": sys.argv[1:],
}))
"""
FOLLOW = """\
import sys
for line in sys.stdin:
    print(int(prog["jiffies"]), flush=True)
"""


@pytest.fixture(scope="module")
def cloud(shared_cloud_guest: StartGuest) -> Iterator[Shared]:
    with Shared(shared_cloud_guest) as shared:
        yield shared


@pytest.fixture(scope="module")
def monitor(cloud: Shared) -> Monitor:
    return cloud.monitor()


@pytest.fixture
def web1(cloud: Shared, monitor: Monitor) -> Iterator[Shared]:
    """The guest, running, with nobody attached; and that again afterwards."""
    yield cloud
    is_left_clean(cloud, monitor)


@pytest.fixture(scope="module")
def kgdb_shared(shared_kgdb_guest: StartGuest) -> Iterator[SharedKgdb]:
    with SharedKgdb(shared_kgdb_guest) as shared:
        yield shared


@pytest.fixture(scope="module")
def kgdb_monitor(kgdb_shared: SharedKgdb) -> Monitor:
    return kgdb_shared.monitor()


@pytest.fixture
def kgdb(kgdb_shared: SharedKgdb, kgdb_monitor: Monitor) -> Iterator[SharedKgdb]:
    """As `web1`, with a kernel whose stub is its own."""
    yield kgdb_shared
    is_left_clean(kgdb_shared, kgdb_monitor)


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    path = tmp_path / "list.py"
    path.write_text(LIST)
    return path


def printed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def tasks_of(console: Console) -> dict[str, str]:
    """The guest's own list of processes, by what it says in /proc."""
    said = console.run(
        'for p in /proc/[0-9]*; do read -r c <$p/comm && echo "${p#/proc/} $c"; done 2>/dev/null'
    )
    rows = (line.partition(" ") for line in said.splitlines())
    # A task has 15 characters of its name; to a worker's is added what it works on.
    return {
        pid: (name.partition("-")[0] if name.startswith("kworker") else name)[:15] for pid, _, name in rows
    }


def jiffies_of(console: Console) -> int:
    return int(console.run("sed -n 's/^jiffies: //p;/^jiffies/q' /proc/timer_list").split()[0])


class Drgn:
    """A `kbridge drgn` that goes on, with what it prints for each line that it is sent."""

    def __init__(self, bridge: Bridge, script: Path) -> None:
        script.write_text(FOLLOW)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kbridge", "drgn", "web1", "--", str(script)],
            env=bridge.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.process.kill()
        self.process.communicate()

    def jiffies(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0


# -- a guest that runs ----------------------------------------------------------------------------------------


@pytest.mark.guest
def test_a_guest_that_runs_is_read_as_it_says_of_itself_and_is_not_stopped(
    web1: Shared, listing: Path
) -> None:
    stops = web1.stop_number(), web1.count("machine.stop")
    with Console(web1) as console:
        modules = console.run("cut -d' ' -f1 /proc/modules").split()
        release = console.run("uname -r").strip()
        tasks, before = tasks_of(console), jiffies_of(console)
        found = json.loads(printed(web1.run("drgn", "web1", "--", str(listing), "one", "-e", "two")))
        after, later = jiffies_of(console), tasks_of(console)
    assert found["comm"] == "swapper/0"
    assert found["arguments"] == ["one", "-e", "two"]
    assert found["release"] == release == web1.guest["release"]
    assert found["modules"] == sorted(modules)
    assert len(modules) > 10
    # The kernel's counter of 64 bits begins so that its lower half overflows soon.
    assert before & 0xFFFF_FFFF <= found["jiffies"] & 0xFFFF_FFFF <= after & 0xFFFF_FFFF
    lasting = {pid: name for pid, name in tasks.items() if later.get(pid) == name}
    assert len(lasting) > 30
    assert lasting.items() <= found["tasks"].items()
    # Of one process's own memory too, through its page tables in physical memory.
    assert found["init"] == "/bin/sh\0"
    assert "schedule" in found["frames"]
    assert (web1.stop_number(), web1.count("machine.stop")) == stops


@pytest.mark.guest
def test_what_is_not_mapped_is_a_fault_with_its_address(web1: Shared) -> None:
    code = (
        "for address, physical in ((0xffffffff00000000, False), (0x10, False), (1 << 45, True)):\n"
        "    try:\n"
        "        prog.read(address, 8, physical)\n"
        "    except FaultError as error:\n"
        "        print(hex(error.address))\n"
    )
    assert printed(web1.run("drgn", "web1", "--", "-e", code)).split() == [
        "0xffffffff00000000", "0x10", "0x200000000000",
    ]  # fmt: skip
    # A range that ends in the middle tells from where on there is nothing.
    code = (
        "end = prog['__per_cpu_offset'].address_ | 0xfff\n"
        "try:\n"
        "    prog.read(0xffffffff7ffffff8, 16)\n"
        "except FaultError as error:\n"
        "    print(hex(error.address))\n"
        "print(prog.read(end - 3, 8) == prog.read(end - 3, 4) + prog.read(end + 1, 4))\n"
    )
    assert printed(web1.run("drgn", "web1", "--", "-e", code)).split() == ["0xffffffff7ffffff8", "True"]


@pytest.mark.guest
def test_an_error_in_the_users_code_is_shown_as_python_does(web1: Shared) -> None:
    done = web1.run("drgn", "web1", "--", "-e", "prog.read(0xffffffff00000000, 8)")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "Traceback (most recent call last):"
    assert done.stderr.splitlines()[1] == '  File "<string>", line 1, in <module>'
    assert done.stderr.splitlines()[-1].endswith("FaultError: nothing is mapped there: 0xffffffff00000000")


@pytest.mark.guest
def test_code_comes_on_stdin_too(web1: Shared) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kbridge", "drgn", "web1"],
        env=web1.env, input="print(prog['init_task'].pid.value_())", capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert printed(done) == "0\n"


@pytest.mark.guest
def test_a_module_has_its_variables_and_types(web1: Shared) -> None:
    code = "print(prog['dummy_link_ops'].kind.string_(), prog['dummy_link_ops'].type_.tag)"
    assert printed(web1.run("drgn", "web1", "--", "-e", code)) == "b'dummy' rtnl_link_ops\n"


@pytest.mark.guest
def test_at_a_terminal_it_is_drgns_own_prompt(web1: Shared, tmp_path: Path) -> None:
    controlling, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "kbridge", "drgn", "web1"],
        env={**web1.env, "XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path), "TERM": "dumb"},
        stdin=terminal, stdout=terminal, stderr=terminal,
    ) as process:  # fmt: skip
        os.close(terminal)
        said = b""

        def until(pattern: bytes) -> None:
            nonlocal said
            while not re.search(pattern, said):
                assert select.select([controlling], [], [], 60)[0], said
                said += os.read(controlling, 65536)

        until(rb"drgn [0-9.]+ .*\r\n(.*\r\n)*>>> $")
        os.write(controlling, b"prog['init_task'].comm\n")
        until(rb'\(char \[16\]\)"swapper/0"\r\n>>> $')
        os.write(controlling, b"quit()\n")
        assert process.wait(60) == 0
    os.close(controlling)


@pytest.mark.guest
def test_what_is_read_physically_is_what_is_there(web1: Shared) -> None:
    code = (
        "comm = prog['init_task'].comm.address_of_().value_()\n"
        "print(prog.read(follow_phys(prog['init_mm'].address_of_(), comm), 9, True))\n"
    )
    assert printed(web1.run("drgn", "web1", "--", "-e", code)) == "b'swapper/0'\n"


# -- a guest that stands --------------------------------------------------------------------------------------


@pytest.mark.guest
def test_it_is_stopped_while_drgn_is_open_if_that_is_wanted(web1: Shared, listing: Path) -> None:
    code = "import time; a = prog['jiffies'].value_(); time.sleep(0.5); print(prog['jiffies'].value_() - a)"
    before = web1.stop_number()
    assert printed(web1.run("drgn", "--stop", "web1", "--", "-e", code)) == "0\n"
    assert web1.stop_number() == before + 1
    web1.goes_on()


@pytest.mark.guest
@pytest.mark.gdb
def test_an_observer_beside_a_gdb_sees_each_stop_and_what_is_between(web1: Shared, tmp_path: Path) -> None:
    at = web1.addresses("jiffies_64")["jiffies_64"]
    with start(GDB_13, web1) as a, Drgn(web1, tmp_path / "follow.py") as drgn:
        seen = []
        for _ in range(3):
            assert drgn.jiffies() == int.from_bytes(a.memory(at, 8), "little")
            roles = [one["role"] for one in web1.sessions()]
            assert sorted(roles) == ["controller", "observer"]
            seen.append(drgn.jiffies())
            a.go()
            web1.goes_on()
            seen.append(drgn.jiffies())
            a.interrupt()
            a.wait_stop()
        # It stands, and it went on in between.
        assert seen == sorted(seen)
        assert len(set(seen[::2])) == len(set(seen[1::2])) == 3
        number = web1.stop_number()
        a.step()
        assert web1.stop_number() == number + 1
        assert drgn.jiffies() == int.from_bytes(a.memory(at, 8), "little")
        drgn.end()
        wait_for(lambda: len(web1.sessions()) == 1, "a session that ended")
        # The other one still has its guest.
        assert a.register("rip") == a.pc
        leave(a, "quit")


@pytest.mark.guest
@pytest.mark.gdb
def test_what_another_controls_is_not_stopped(web1: Shared) -> None:
    with start(GDB_13, web1) as a:
        a.go()
        web1.goes_on()
        done = web1.run("drgn", "--stop", "web1", "--", "-e", "print(1)")
        assert (done.returncode, done.stdout) == (1, "")
        assert "web1 was not stopped: another debugger controls it" in done.stderr
        web1.goes_on()
        a.interrupt()
        a.wait_stop()
        leave(a, "quit")


@pytest.mark.guest
def test_drgn_that_is_killed_leaves_a_stopped_guest_running(
    web1: Shared, monitor: Monitor, tmp_path: Path
) -> None:
    script = tmp_path / "sleep.py"
    script.write_text("import time; print('open', flush=True); time.sleep(600)")
    with subprocess.Popen(
        [sys.executable, "-m", "kbridge", "drgn", "--stop", "web1", "--", str(script)],
        env=web1.env, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        web1.stands_still(monitor)
        process.send_signal(signal.SIGKILL)
    web1.goes_on()


# -- kgdb -----------------------------------------------------------------------------------------------------


@pytest.mark.guest
def test_a_kgdb_guest_is_read_as_it_says_of_itself(kgdb: SharedKgdb, listing: Path) -> None:
    with Console(kgdb) as console:
        modules = console.run("cut -d' ' -f1 /proc/modules").split()
        tasks, before = tasks_of(console), jiffies_of(console)
        for how in ((), ("--stop",)):
            stops = kgdb.stop_number()
            found = json.loads(printed(kgdb.run("drgn", *how, "web1", "--", str(listing))))
            assert kgdb.stop_number() == stops + len(how)
            after, later = jiffies_of(console), tasks_of(console)
            assert found["comm"] == "swapper/0"
            assert found["release"] == kgdb.guest["release"]
            assert found["modules"] == sorted(modules)
            assert before & 0xFFFF_FFFF <= found["jiffies"] & 0xFFFF_FFFF <= after & 0xFFFF_FFFF
            lasting = {pid: name for pid, name in tasks.items() if later.get(pid) == name}
            assert len(lasting) > 20
            assert lasting.items() <= found["tasks"].items()
            assert found["init"] == "/bin/sh\0"


@pytest.mark.guest
@pytest.mark.gdb
def test_a_kgdb_guest_at_another_debuggers_stop(kgdb: SharedKgdb, listing: Path) -> None:
    at = kgdb.addresses("jiffies_64")["jiffies_64"]
    with start(GDB_13, kgdb) as a:
        stops = kgdb.stop_number()
        found = json.loads(printed(kgdb.run("drgn", "web1", "--", str(listing))))
        assert found["jiffies"] == int.from_bytes(a.memory(at, 8), "little")
        assert found["init"] == "/bin/sh\0"
        assert kgdb.stop_number() == stops
        leave(a, "quit")


class LoneKgdb(Bridge):
    """A kgdb guest whose machine monitor the relay does not have."""

    def __init__(self, start_guest: StartGuest) -> None:
        super().__init__(start_guest, "--kgdb-port", monitor=False)

    def start_guest(self) -> None:
        super().start_guest()
        config = self.dir / "kbridge.toml"
        text = config.read_text().replace('stub = "None"', f'stub = "{self.guest["kgdb"]}"')
        config.write_text(f'{text}stub_kind = "kgdb"\nbreak_in = []\nvmlinux = "{self.guest["vmlinux"]}"\n')


@pytest.mark.slow
@pytest.mark.guest
def test_a_kgdb_guest_without_a_monitor_must_stand(shared_kgdb_guest: StartGuest, listing: Path) -> None:
    with LoneKgdb(shared_kgdb_guest) as bridge:
        done = bridge.run("drgn", "web1", "--", str(listing))
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(
            r"kbridge: web1 runs: it has no machine monitor, .*; stop it: .*--stop web1.*\n", done.stderr
        )
        bridge.goes_on()
        with Console(bridge) as console:
            console.type("echo g >/proc/sysrq-trigger")
            found = json.loads(printed(bridge.run("drgn", "--stop", "web1", "--", str(listing))))
        assert found["comm"] == "swapper/0"
        assert found["tasks"]["1"] == "init"
        bridge.goes_on()


# -- what is missing ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.guest
def test_a_kernel_whose_file_nobody_has_or_without_types(shared_cloud_guest: StartGuest) -> None:
    with Bridge(shared_cloud_guest) as bridge:
        done = bridge.run("drgn", "web1", "--", "-e", "print(1)")
        assert (done.returncode, done.stdout) == (1, "")
        assert re.match(
            r"kbridge: no file of web1's kernel is known: kernel build-id [0-9a-f]{40}; install its debug package",
            done.stderr,
        )
        assert done.stderr.count("\n") == 1

        bare = bridge.dir / "vmlinux"
        subprocess.run(["strip", "--strip-debug", "-o", str(bare), bridge.guest["vmlinux"]], check=True)
        config = bridge.dir / "kbridge.toml"
        config.write_text(f'{config.read_text()}vmlinux = "{bare}"\n')
        assert bridge.run("reload").returncode == 0
        done = bridge.run("drgn", "web1", "--", "-e", "print(1)")
        assert (done.returncode, done.stdout) == (1, "")
        said = done.stderr.splitlines()
        assert said[0].startswith("kbridge: drgn: missing debugging symbols for kernel ")
        assert said[1].startswith("kbridge: no file has the types of web1's kernel: ")
        assert len(said) == 2


@pytest.fixture
def relay() -> Iterator[RelayProcess]:
    relay = RelayProcess()
    relay.start()
    yield relay
    relay.close()


def test_errors_of_what_is_asked(relay: RelayProcess, tmp_path: Path) -> None:
    done = relay.run("drgn", "nobody", "--", "-e", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no guest 'nobody'" in done.stderr
    done = relay.run("drgn", "web1", "--", "-e", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "web1 has no debug stub; configure `qmp` or `stub` for it" in done.stderr
    for wrong in (["/no/such/script"], ["--no-such-option"], ["-e"], ["--log-level", "loud"]):
        done = relay.run("drgn", "web1", "--", *wrong)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "usage: kbridge drgn web1 -- " in done.stderr
    assert relay.run("drgn").returncode == 2


def test_without_drgn_it_says_what_to_install(relay: RelayProcess, tmp_path: Path) -> None:
    (tmp_path / "drgn.py").write_text("raise ModuleNotFoundError(\"No module named 'drgn'\")")
    relay.env["PYTHONPATH"] = os.pathsep.join((str(tmp_path), relay.env["PYTHONPATH"]))
    done = relay.run("drgn", "web1")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == "kbridge: drgn cannot be loaded: No module named 'drgn'; pip install 'kbridge[drgn]'\n"
    )


def test_what_stands_after_the_dashes_is_as_drgns(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("")
    task = read_arguments("web1", ["-q", "-s", "/a", "-s", "/b", str(script), "-e", "--x"])
    assert (task.code, task.script, task.symbols) == (
        None,
        (str(script), "-e", "--x"),
        (Path("/a"), Path("/b")),
    )
    task = read_arguments("web1", ["-e", "print(1)", "one"])
    assert (task.code, task.script) == ("print(1)", ("one",))
    assert read_arguments("web1", []).script == ()
