"""The commands on real machines: power on a QEMU without a kernel; gdb, break and kernels on booted guests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from relay_lab import SECONDS, RelayProcess, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

BOOT_SECONDS = 180


@pytest.fixture
def machine() -> Iterator[RelayProcess]:
    """A relay with `vm`, a QEMU that waits before its first instruction."""
    relay = RelayProcess()
    qmp, serial = relay.dir / "qmp", relay.dir / "serial"
    relay.write_config(f'[guests.vm]\nqmp = "unix:{qmp}"\nconsole = "unix:{serial}"\n')
    qemu = subprocess.Popen(
        ["qemu-system-x86_64", "-S", "-M", "pc,accel=tcg", "-m", "32", "-nodefaults", "-display", "none",
         "-no-shutdown", "-qmp", f"unix:{qmp},server=on,wait=off", "-serial", "chardev:con",
         "-chardev", f"socket,id=con,path={serial},server=on,wait=off"],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(qmp.exists, "QEMU's monitor")
        relay.start(line=False)
        wait_for(lambda: state(relay, "vm") == "paused", "the machine's state")
        yield relay
    finally:
        relay.stop()
        qemu.kill()
        qemu.wait(SECONDS)
        relay.close()


def state(relay: RelayProcess, name: str) -> Any:
    return relay.json("GET", f"/guests/{name}")[1]["state"]


@pytest.mark.qemu
def test_power(machine: RelayProcess) -> None:
    assert machine.run("power", "vm", "resume").stdout == "vm is running\n"
    assert machine.run("power", "vm", "pause").stdout == "vm is paused\n"
    assert machine.run("power", "vm", "reset").returncode == 0
    assert machine.run("power", "vm", "nmi").returncode == 0
    assert machine.run("power", "vm", "on").stdout == "vm is running\n"
    assert machine.run("power", "vm", "off").stdout.startswith("vm was asked to shut down; it is ")
    entries = [json.loads(line) for line in machine.run("log", "vm", "--json").stdout.splitlines()]
    asked = [entry["action"] for entry in entries if entry["kind"] == "operator.power"]
    assert asked == ["resume", "pause", "reset", "nmi", "on", "off"]
    done = machine.run("power", "vm", "off", "--force")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: state(machine, "vm") in ("unknown", "off"), "the machine's end")
    assert "monitor" in machine.run("ls").stdout


@pytest.mark.qemu
def test_break_says_when_nothing_came_back(machine: RelayProcess) -> None:
    wait_for(lambda: machine.json("GET", "/guests/vm")[1]["console"]["state"] == "open", "the line")
    done = machine.run("break", "vm", "--sysrq", "h")
    assert done.returncode == 1
    assert "did not answer SysRq h: it is paused" in done.stderr
    plain = machine.run("break", "vm")
    assert plain.returncode == 0, plain.stderr
    assert "BREAK was sent" in plain.stderr


@pytest.mark.qemu
def test_the_kernel_of_a_machine_without_one_is_not_known(machine: RelayProcess) -> None:
    status, problem = machine.json("GET", "/guests/vm/kernel")
    assert status == 409
    assert "not booted" in problem["detail"]


@pytest.fixture(params=["cloud", "kgdb"])
def booted(request: pytest.FixtureRequest) -> Iterator[RelayProcess]:
    """A relay with `vm`, a booted Linux."""
    said = request.getfixturevalue(f"{request.param}_guest")("--stopped")
    relay = RelayProcess()
    relay.write_config(
        f'[guests.vm]\nqmp = "{said["qmp"]}"\nconsole = "{said["console"]}"\n'
        f'vmlinux = "{said["vmlinux"]}"\ndebug_dirs = ["{said["debug_dir"]}"]\n'
    )
    relay.start(line=False)
    try:
        wait_for(lambda: relay.json("GET", "/guests/vm")[1]["console"]["state"] == "open", "the line")
        assert relay.run("power", "vm", "resume").returncode == 0
        _wait_for_boot(relay)
        yield relay
    finally:
        relay.close()


def _wait_for_boot(relay: RelayProcess) -> None:
    def log() -> bytes:
        return relay.ask("GET", "/guests/vm/log?format=raw")[1]

    try:
        wait_for(lambda: b"kbridge-guest: ready" in log(), "the end of the boot", BOOT_SECONDS)
    except AssertionError as error:
        raise AssertionError(
            f"{error}; the machine is {state(relay, 'vm')} and said last: {log()[-2000:]!r}"
        ) from error


@pytest.mark.guest
@pytest.mark.gdb
@pytest.mark.slow
def test_break_and_gdb_on_a_booted_kernel(booted: RelayProcess) -> None:
    done = booted.run("break", "vm", "--sysrq", "h")
    assert done.returncode == 0, done.stderr
    assert "sysrq: HELP" in done.stdout

    first = booted.run(
        "gdb", "vm", "--", "-nx", "-batch", "-ex", "bt", "-ex", "info line start_kernel", timeout=120
    )
    assert first.returncode == 0, first.stderr
    # Whatever the processor was at, it came there from the kernel's entry or from a system call.
    assert re.search(r"^#\d+ .* in \w+ \(.*\) at .*\.[chS]:\d+$", first.stdout, re.MULTILINE), first.stdout
    assert "main.c" in first.stdout
    wait_for(lambda: state(booted, "vm") == "running", "the guest's going on")

    assert shutil.which("gdb")
    command = f"{sys.executable} -m kbridge attach vm"
    plain = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", f"target remote | {command}", "-ex", "info threads", "-ex", "detach"],
        env=booted.env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Thread 2" in plain.stdout, plain.stderr
    wait_for(lambda: state(booted, "vm") == "running", "the guest's going on")


@pytest.mark.guest
@pytest.mark.slow
def test_triage_of_a_booted_guest_and_of_its_next_boot(booted: RelayProcess) -> None:
    def triage() -> Any:
        done = booted.run("triage", "vm", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def is_up() -> Any:
        report = triage()
        return report if report["verdict"] == "up" else None

    first = wait_for(is_up, "the verdict", BOOT_SECONDS)
    assert [stage["state"] for stage in first["stages"]] == ["kernel", "initramfs", "shell"]
    assert all(stage["seconds_by"] == "record" for stage in first["stages"])
    kernel = first["stages"][0]
    # As long by the record's clock as by the kernel's own, to what emulation makes of that.
    assert 0 < kernel["seconds"] < BOOT_SECONDS
    assert first["release"] in kernel["text"]

    assert booted.run("power", "vm", "reset").returncode == 0
    wait_for(lambda: triage()["begun_by"] == "machine.reset", "the reset")
    again = wait_for(is_up, "the next verdict", BOOT_SECONDS)
    assert (again["begun_by"], again["boots"]) == ("machine.reset", first["boots"] + 1)
    assert [stage["state"] for stage in again["stages"]] == ["kernel", "initramfs", "shell"]
    assert again["begin_offset"] >= first["end_offset"]
