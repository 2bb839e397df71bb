"""Every way into real kernels, what keeps each from working in its words, and the way between kdb and gdb."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from debuggers_lab import GDB_13
from sharing_lab import Shared, leave, start

pytestmark = [pytest.mark.guest, pytest.mark.gdb]

StartGuest = Callable[..., dict[str, Any]]
PROMPT = re.compile(rb"\[[01]\]kdb> $")


class Configured(Shared):
    """A guest whose configuration a test changes."""

    def configure(self, text: str) -> None:
        """Replace what was configured last, and have the relay read it."""
        config = self.dir / "kbridge.toml"
        base = config.read_text().partition("# here\n")[0]
        config.write_text(f"{base}# here\n{text}\n")
        done = self.run("reload")
        assert done.returncode == 0, done.stderr

    def refused(self) -> str:
        """Attach in vain; return what the user reads."""
        said = self.gdb().finish()
        assert "was not broken into" in said
        return said


@pytest.fixture(scope="module")
def web1(shared_kgdb_guest: StartGuest) -> Iterator[Configured]:
    with Configured(
        shared_kgdb_guest,
        "--console-backend", "telnet", "--append", "kgdboc=ttyS0",
        more='stub = "kgdb"\n',
    ) as one:  # fmt: skip
        yield one


def runs_in_guest(web1: Configured, command: str, answer: str) -> None:
    script = f'send "{command}\\r"\nwait "{answer}" 30s\n'
    path = web1.dir / "script"
    path.write_text(script)
    done = web1.run("expect", "web1", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


# -- kdb and gdb ----------------------------------------------------------------------------------------------


def test_kdb_and_gdb_take_turns_on_the_consoles_line(web1: Configured) -> None:
    # The first stop of all is kdb's; then, after a debugger was there, kgdb's, in silence or not.
    for entered in ("telnet-break", "telnet-break"):
        done = web1.run("break", "web1", "--kdb")
        assert done.returncode == 0, done.stderr
        assert f"web1 was broken into by {entered}" in done.stderr
        assert "Entering kdb" in done.stdout
        assert PROMPT.search(web1.console())
        assert "stood in kgdb already" in web1.run("break", "web1", "--kdb").stderr
        # A debugger that comes takes over from kdb, and the guest runs when it has left.
        with start(GDB_13, web1) as a:
            assert "kgdb_breakpoint" in a.run("info symbol $pc")
            said = web1.run("break", "web1", "--kdb")
            assert said.returncode == 1
            assert "a debugger is attached" in said.stderr
            said = web1.run("break", "web1", "--sysrq", "h")
            assert said.returncode == 1
            assert "kgdb holds it and reads the line" in said.stderr
            leave(a, "detach")
        web1.goes_on()


def test_a_person_at_kdb_goes_to_kgdb_and_back_and_lets_it_run(web1: Configured) -> None:
    assert web1.run("break", "web1", "--kdb").returncode == 0
    runs_in_guest(web1, "pid", "KDB current process")
    runs_in_guest(web1, "kgdb", "Entering please attach debugger")
    # In the middle of nothing: the kernel waits for a debugger, or for a way back.
    assert "stood in kgdb already" in web1.run("break", "web1", "--kdb").stderr
    assert PROMPT.search(web1.console())
    runs_in_guest(web1, "kgdb", "Entering please attach debugger")
    with start(GDB_13, web1) as a:
        assert "kgdb_breakpoint" in a.run("info symbol $pc")
        leave(a, "detach")
    web1.goes_on()
    assert web1.run("break", "web1", "--kdb").returncode == 0
    runs_in_guest(web1, "go", "tick ")
    web1.goes_on()
    # No packet of all that reached the console; what kdb itself says is text.
    console = web1.console().replace(b"$3#33", b"").replace(b"$D#44+", b"")
    assert not re.search(rb"\$[^#$\r\n]*#[0-9a-f]{2}", console)


# -- each way -------------------------------------------------------------------------------------------------


def attach(web1: Configured) -> str:
    """Attach and leave; return the way in."""
    before = len(web1.events())
    with start(GDB_13, web1) as a:
        leave(a, "detach")
    web1.goes_on()
    (way,) = [one["way"] for one in web1.events()[before:] if one["kind"] == "debugger.break_in"]
    return str(way)


def test_each_break_is_a_way_of_its_own(web1: Configured) -> None:
    for ways in (["monitor-break", "telnet-break"], ["sysrq"]):
        web1.configure(f"break_in = {ways}")
        first = ways[0] if ways[0] != "sysrq" else "telnet-break"
        assert attach(web1) == first
        assert web1.listed()["debug"]["break_in"]["worked"] == first
    done = web1.run("break", "web1")
    assert "BREAK was sent (telnet-break)" in done.stderr


def test_what_masks_sysrq_is_said(web1: Configured) -> None:
    web1.configure("")
    try:
        # 4 is the keyboard, 8 would be kgdb.
        runs_in_guest(web1, "echo 4 > /proc/sys/kernel/sysrq; echo D'O'NE", "DONE")
        said = web1.refused()
        assert (
            "BREAK and g were sent (telnet-break): the kernel says that this SysRq operation is disabled"
            in said
        )
        assert "sysctl kernel.sysrq=1, or a value with bit 8" in said
        assert "monitor-break" not in said
        runs_in_guest(web1, "echo 0 > /proc/sys/kernel/sysrq; echo D'O'NE", "DONE")
        said = web1.refused()
        for way in ("telnet-break", "monitor-break"):
            assert f"BREAK and g were sent ({way}): no stop came within 2 s" in said
        assert "kernel.sysrq" in said
    finally:
        # What was sent as SysRq's key stands on the shell's line.
        runs_in_guest(web1, "\\recho 1 > /proc/sys/kernel/sysrq; echo D'O'NE", "DONE")
    assert attach(web1) == "telnet-break"


def test_a_kernel_that_takes_no_nmi_and_a_machine_that_is_paused(web1: Configured) -> None:
    web1.configure('break_in = ["nmi", "pause"]')
    said = web1.refused()
    # The first NMI after a stop in kgdb is swallowed: the kernel does not always complain.
    assert "an NMI was injected: " in said
    assert "the machine was paused as the last resort" in said
    assert web1.state() == "paused"
    assert web1.run("power", "web1", "resume").returncode == 0
    web1.goes_on()


# -- without kgdb, and where it is elsewhere ------------------------------------------------------------------


def test_a_kernel_without_kgdb_and_a_line_that_is_not_its_console(shared_cloud_guest: StartGuest) -> None:
    with Configured(shared_cloud_guest, "--second-serial", more='stub = "kgdb"\n') as cloud:
        said = cloud.refused()
        assert "BREAK and g were sent (monitor-break): the kernel knows no SysRq g: it has no kgdb" in said
        config = cloud.dir / "kbridge.toml"
        config.write_text(config.read_text().replace(cloud.guest["console"], cloud.guest["console2"]))
        assert cloud.run("reload").returncode == 0
        said = cloud.refused()
        assert "no stop came within 2 s, and the kernel said nothing of SysRq" in said
        assert "that this line is the kernel's console" in said
        said = cloud.run("break", "web1", "--kdb").stderr
        assert "was not broken into" in said
