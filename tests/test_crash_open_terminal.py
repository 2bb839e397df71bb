"""`kbridge crash open` as a program on a terminal: gdb in front, interrupts, ends, and what is left of them."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_lab import STEXT, core, packed, small_machine

pytestmark = pytest.mark.gdb

SECONDS = 60.0


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Of a machine that no kernel is found in."""
    memory, notes = small_machine()
    path = tmp_path / "vmcore"
    path.write_bytes(packed(core(memory, notes), 100_000))
    return path


class Opened:
    """The command on a terminal of its own."""

    def __init__(self, image: Path, temporary: Path) -> None:
        self.temporary = temporary
        temporary.mkdir()
        self._terminal, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kbridge", "crash", "open", str(image), "--", "-nx", "-q", "-ex", "set confirm off"],
            stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
            # The terminal of a new session is the first that it opens.
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # noqa: PLW1509
            env={**os.environ, "TMPDIR": str(temporary), "TERM": "dumb", "DEBUGINFOD_URLS": ""},
        )  # fmt: skip
        os.close(inner)
        self.said = b""

    def until(self, text: bytes) -> None:
        deadline = time.monotonic() + SECONDS
        while text not in self.said:
            ready = select.select([self._terminal], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, self.said
            self.said += os.read(self._terminal, 65536)

    def type(self, text: bytes) -> None:
        self.said = b""
        os.write(self._terminal, text)

    def ends(self) -> int:
        """Return its exit status; nothing is left of it."""
        status = self.process.wait(SECONDS)
        assert list(self.temporary.iterdir()) == []
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._terminal)


@pytest.fixture
def opened(image: Path, tmp_path: Path) -> Iterator[Opened]:
    one = Opened(image, tmp_path / "temporary")
    try:
        one.until(b"(gdb) ")
        yield one
    finally:
        one.close()


def test_an_interrupt_is_gdbs_and_its_end_is_the_commands(opened: Opened) -> None:
    opened.type(b"\x03")
    opened.until(b"Quit")
    opened.type(b"info threads\n")
    opened.until(b"CPU#1")
    opened.type(b"x/s $pc\n")
    opened.until(b"the kernel's tex")
    opened.type(b"monitor status\n")
    opened.until(b"no kernel is found: ")
    opened.type(b"quit 7\n")
    assert opened.ends() == 7


def test_what_ends_the_command_ends_gdb(opened: Opened) -> None:
    gdb = int(Path(f"/proc/{opened.process.pid}/task/{opened.process.pid}/children").read_text().split()[0])
    opened.process.send_signal(signal.SIGTERM)
    assert opened.ends() == 128 + signal.SIGTERM
    assert not Path(f"/proc/{gdb}").exists()


def test_memory_is_read_where_no_kernel_is_found(image: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kbridge", "crash", "open", str(image), "--", "-nx", "-batch", "-ex", f"x/s {STEXT:#x}"],
        capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert f'{STEXT:#x}:\t"the kernel\'s tex"' in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gdb", "no-such-gdb"), "cannot run no-such-gdb: it is not installed"),
        (("--with", "crash"), "no kernel is found in "),
        (("--with", "drgn"), "no kernel is found in "),
    ],
)
def test_what_cannot_be_is_said(image: Path, arguments: tuple[str, ...], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kbridge", "crash", "open", *arguments, str(image)],
        capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"kbridge: {words}")
