"""Backwards through a recorded run: QEMU records and replays a program of a few instructions, gdb goes back in it.

No kernel and no disk: a firmware of one jump, and a program that counts to a thousand in memory and ends QEMU.
``rrsnapshot`` needs an image that can hold snapshots, which the program never sees.  Going back loads a snapshot, which
resets all devices; in QEMU 7.2 the reset of ``vapic`` then waits for the processor, which waits for the replay (seen in
9 of 10 ``bc``), so it is switched off.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bridge_lab import Gdb
from relay_lab import RelayProcess, wait_for

pytestmark = [pytest.mark.qemu, pytest.mark.gdb]

# At the end of the firmware: the processor's first instruction, jmp 0:0x7c00.
FIRST = bytes.fromhex("ea007c0000")
PROGRAM = bytes.fromhex(
    "31c0 8ed8 b9e803"  # 7c00: xor ax, ax; mov ds, ax; mov cx, 1000
    "ff060005"          # 7c07: inc word [0x500]
    "90 90 e2f8"        # 7c0b: nop; 7c0c: nop; 7c0d: loop 7c07
    "ba0105 ee f4"      # 7c0f: mov dx, 0x501; out dx, al (isa-debug-exit); hlt
)  # fmt: skip
COUNTED, DONE = 0x7C0B, 0x7C0F
EXIT_STATUS = 1
"""QEMU's own, for the 0 that the program writes to isa-debug-exit."""


class Recording:
    """A recorded run in a folder of its own, and the QEMU that replays it."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="kb-rr-"))
        (self.dir / "bios").write_bytes(FIRST.rjust(0xFFF0 + len(FIRST), b"\xf4").ljust(0x10000, b"\xf4"))
        (self.dir / "program").write_bytes(PROGRAM)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.dir / "snapshots", "1M"], check=True)
        self.process: subprocess.Popen[bytes] | None = None
        recorded = subprocess.run(self._qemu("record"), timeout=60, check=False)
        assert recorded.returncode == EXIT_STATUS

    def _qemu(self, mode: str, *more: str) -> list[str]:
        return [
            "qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none",
            "-nic", "none", "-global", "apic-common.vapic=off", "-bios", f"{self.dir}/bios",
            "-device", f"loader,file={self.dir}/program,addr=0x7c00,force-raw=on", "-device", "isa-debug-exit",
            "-drive", f"file={self.dir}/snapshots,format=qcow2,if=none,id=snapshots",
            "-icount", f"shift=auto,rr={mode},rrfile={self.dir}/log,rrsnapshot=start", *more,
        ]  # fmt: skip

    @property
    def stub(self) -> Path:
        return self.dir / "gdb"

    @property
    def qmp(self) -> Path:
        return self.dir / "qmp"

    def replay(self) -> None:
        """Stand before the first instruction of the recorded run."""
        self.process = subprocess.Popen(
            self._qemu(
                "replay", "-S", "-gdb", f"unix:{self.stub},server=on,wait=off",
                "-qmp", f"unix:{self.qmp},server=on,wait=off",
            )
        )  # fmt: skip
        wait_for(lambda: self.stub.exists() and self.qmp.exists(), "QEMU's sockets")

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.dir)


@pytest.fixture
def recording() -> Iterator[Recording]:
    recording = Recording()
    try:
        recording.replay()
        yield recording
    finally:
        recording.close()


BACK_AND_FORTH = (
    f"break *{COUNTED:#x}",
    "continue",
    "continue",
    "continue",
    'printf "forward %#x counted %d\\n", $pc, *(short *)0x500',
    "reverse-stepi",
    'printf "stepped %#x counted %d\\n", $pc, *(short *)0x500',
    "stepi",
    'printf "again %#x counted %d\\n", $pc, *(short *)0x500',
    "reverse-continue",
    'printf "back %#x counted %d\\n", $pc, *(short *)0x500',
    "delete",
    f"hbreak *{DONE:#x}",
    "continue",
    'printf "end %#x counted %d\\n", $pc, *(short *)0x500',
    "watch *(short *)0x500",
    "reverse-continue",
    'printf "written %#x\\n", $pc',
    "delete",
    "reverse-continue",
    'printf "start %#x counted %d\\n", $pc, *(short *)0x500',
)


def check(said: str, *, at_reset: int) -> None:
    for line in (
        "forward 0x7c0b counted 3",
        # The increment is undone, and done again.
        "stepped 0x7c07 counted 2",
        "again 0x7c0b counted 3",
        "back 0x7c0b counted 2",
        "end 0x7c0f counted 1000",
        # The last write to what is watched: gdb is shown the instruction after it, or it itself.
        f"start {at_reset:#x} counted 0",
    ):
        assert f"\n{line}\n" in said, said
    assert re.search(r"\nwritten 0x7c0[7b]\n", said), said


def test_gdb_goes_backwards_straight_at_qemus_stub(recording: Recording) -> None:
    said = Gdb(dict(os.environ), [f"target remote {recording.stub}", *BACK_AND_FORTH, "detach"]).finish(20)
    # The instruction pointer, without the segment.
    check(said, at_reset=0xFFF0)


def test_gdb_goes_backwards_through_the_relay(recording: Recording) -> None:
    relay = RelayProcess(f'[guests.recorded]\nqmp = "unix:{recording.qmp}"\nstub = "unix:{recording.stub}"\n')
    try:
        relay.start()
        socket = relay.runtime / "recorded" / "gdb"
        said = Gdb(relay.env, [f"target remote {socket}", *BACK_AND_FORTH, "detach"]).finish(20)
        check(said, at_reset=0xFFFF0)
    finally:
        relay.close()
