"""scripts/setup where something is missing: what it says, and what it leaves; Debian's tools are played by scripts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parent.parent / "scripts" / "setup"
# What Debian's base system has and the script uses.
BASE = (
    "bash", "cat", "dirname", "env", "find", "flock", "grep", "head", "mkdir", "mktemp", "python3", "readlink", "rm",
    "sed", "sha256sum", "sleep", "tail",
)  # fmt: skip
SECONDS = 30
UNREACHABLE = "Temporary failure resolving 'archive.example'"


@dataclass
class Machine:
    """A clone of the script on a machine whose PATH holds only the base system and what a test adds."""

    root: Path

    def program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": str(self.root / "bin"),
            "HOME": str(self.root),
            "TMPDIR": str(self.root / "tmp"),
        }
        return subprocess.Popen(
            [str(self.root / "clone" / "scripts" / "setup"), *arguments],
            env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        _, said = process.communicate(timeout=SECONDS)
        return process.returncode, said

    @property
    def log(self) -> str:
        path = self.root / "calls"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    for name in ("bin", "tmp", "clone/scripts"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(SETUP, tmp_path / "clone" / "scripts" / "setup")
    for name in BASE:
        found = shutil.which(name, path="/usr/bin:/bin") or shutil.which(name)
        assert found, name
        (tmp_path / "bin" / name).symlink_to(found)
    made = Machine(tmp_path)
    made.program("id", "echo 1000")
    made.program("apt-get", f'echo "$@" >> {tmp_path}/calls')
    return made


def test_without_root_it_names_all_packages_and_the_commands_and_does_nothing(machine: Machine) -> None:
    status, said = machine.run("--for", "test")
    assert status == 1
    lines = said.splitlines()
    assert lines[0] == "setup: some packages are missing; run:"
    assert lines[1] == "    sudo apt-get update"
    assert lines[2].startswith(
        "    sudo apt-get install --no-install-recommends qemu-system-x86 qemu-utils gdb "
    )
    assert {"gcc", "make", "dwarves", "bison", "socat"} <= set(lines[2].split())
    assert machine.log == ""
    assert not (machine.root / "clone" / ".venv").exists()
    assert list((machine.root / "tmp").iterdir()) == []


def test_the_demo_needs_no_compiler(machine: Machine) -> None:
    _, said = machine.run("--for=demo")
    assert "qemu-system-x86" in said
    assert not {"gcc", "make", "conserver-server"} & set(said.split())


def test_what_is_there_is_not_named(machine: Machine) -> None:
    machine.program("gdb", "exit 1")
    _, said = machine.run("--for=demo")
    assert "qemu-utils binutils" in said.replace(" busybox-static", "").replace(" dpkg", "")


def test_without_apt_it_says_so(machine: Machine) -> None:
    (machine.root / "bin" / "apt-get").unlink()
    status, said = machine.run("--for=demo")
    assert status == 1
    assert "there is no apt-get here: qemu-system-x86" in said


def test_without_a_network_it_says_what_could_not_be_reached(machine: Machine) -> None:
    machine.program("id", "echo 0")
    machine.program(
        "apt-get",
        f"""case "$*" in
        *update*) echo "W: Failed to fetch http://archive.example/InRelease  {UNREACHABLE}" ;;
        *) echo "E: Unable to locate package gdb"; exit 100 ;;
        esac""",
    )
    status, said = machine.run("--for=demo")
    assert status == 1
    assert "setup: cannot install qemu-system-x86 " in said
    assert "E: Unable to locate package gdb" in said
    assert said.splitlines()[-1] == f"http://archive.example/InRelease  {UNREACHABLE}"


def test_an_installation_that_was_interrupted_is_finished_first(machine: Machine) -> None:
    machine.program("id", "echo 0")
    machine.program("dpkg", f'echo "dpkg $*" >> {machine.root}/calls')
    machine.program(
        "apt-get",
        f"""echo "apt-get $*" >> {machine.root}/calls
        case "$*" in
        *update*) exit 0 ;;
        *) grep -q ^dpkg {machine.root}/calls && {{ echo "no disk"; exit 100; }}
           echo "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem."
           exit 100 ;;
        esac""",
    )
    status, said = machine.run("--for=demo")
    assert status == 1
    assert "dpkg --configure -a\n" in machine.log
    assert "no disk" in said


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupt_is_passed_on_and_waited_for(machine: Machine, number: int, status: int) -> None:
    machine.program("id", "echo 0")
    machine.program(
        "apt-get",
        f"""trap 'echo ended >> {machine.root}/calls; exit 1' INT
        echo started >> {machine.root}/calls
        while :; do sleep 0.05; done""",
    )
    process = machine.start("--for=demo")
    try:
        deadline = time.monotonic() + SECONDS
        while "started" not in machine.log:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == status
    assert machine.log == "started\nended\n"
    assert "interrupted" in said
    assert list((machine.root / "tmp").iterdir()) == []
