from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
import termios
import tty
from pathlib import Path

import pytest
import serial
from line_lab import LineTestCase, MemorySink, until

from kbridge.errors import LineError
from kbridge.transports import uart
from kbridge.transports.endpoints import Break, Pty, Serial
from kbridge.transports.lines import LineState


class PtyLines(LineTestCase):
    def master(self) -> tuple[int, str]:
        """A pty like QEMU's ``-chardev pty``: the master open, nobody at the slave."""
        master, slave = os.openpty()
        tty.setraw(master)
        name = os.ttyname(slave)
        os.close(slave)
        os.set_blocking(master, False)
        return master, name

    async def test_bytes_that_wait_are_kept_and_all_bytes_pass(self) -> None:
        master, name = self.master()
        early = bytes(range(256))
        os.write(master, early)
        sink = MemorySink()
        line = self.open_line(Pty(name), sink)
        await self.is_open(line)
        await until(lambda: len(sink.data) == 256)
        assert sink.data == early
        line.write(b"\x03typed\r\n\xff")
        got = bytearray()

        def arrived() -> bool:
            try:
                got.extend(os.read(master, 100))
            except BlockingIOError:
                pass
            return len(got) == 9

        await until(arrived)
        assert bytes(got) == b"\x03typed\r\n\xff"
        assert not line.breaks
        os.write(master, b"last")
        await until(lambda: sink.data.endswith(b"last"))
        os.close(master)
        await until(lambda: line.state is LineState.LOST)
        assert sink.notes[0] == "open"
        assert sink.notes[1].startswith("lost: ")

    async def test_nobody_there_and_no_terminal(self) -> None:
        with tempfile.NamedTemporaryFile() as plain:
            line = self.open_line(Pty(plain.name), MemorySink())
            await until(lambda: line.state is LineState.LOST)
            assert line.reason == "it is no terminal"
        line = self.open_line(Pty("/dev/pts/does-not-exist"), MemorySink())
        await until(lambda: line.state is LineState.LOST)
        assert line.reason == "No such file or directory"


class SerialLines(LineTestCase):
    """A pty stands in for the device: the kernel's line discipline is the same, its BREAK has no wire."""

    def device(self) -> tuple[subprocess.Popen[bytes], str]:
        """A device with a stable name, its far end on socat's standard streams."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        name = str(Path(folder.name) / "ttyX")
        child = subprocess.Popen(
            ["socat", f"PTY,link={name},rawer,wait-slave=0", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

        def end() -> None:
            child.kill()
            child.wait()
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.close()
            child.stdout.close()

        self.addCleanup(end)
        return child, name

    async def test_early_text_is_kept(self) -> None:
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        tty.setraw(slave)
        name = os.ttyname(slave)
        os.write(master, b"the guest's first words")
        sink = MemorySink()
        line = self.open_line(Serial(name, 115200), sink)
        os.close(slave)
        await until(lambda: sink.data == b"the guest's first words")
        assert line.state is LineState.OPEN

    async def test_pyserial_alone_would_lose_it(self) -> None:
        """Why ``_KeptInput`` is there; when this fails, pyserial has changed and it may go."""
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        self.addCleanup(os.close, slave)
        tty.setraw(slave)
        os.write(master, b"lost")
        with serial.Serial(os.ttyname(slave), timeout=0) as port:
            assert port.read(10) == b""

    async def test_speed_raw_mode_and_exclusive_use(self) -> None:
        child, name = self.device()
        assert child.stdin is not None
        await until(lambda: Path(name).exists())
        sink = MemorySink()
        line = self.open_line(Serial(name, 57600), sink)
        await self.is_open(line)
        fd = os.open(name, os.O_RDWR | os.O_NOCTTY)
        self.addCleanup(os.close, fd)
        settings = termios.tcgetattr(fd)
        assert settings[4:6] == [termios.B57600, termios.B57600]
        assert settings[3] & (termios.ICANON | termios.ECHO | termios.ISIG) == 0
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        second = self.open_line(Serial(name, 57600), MemorySink())
        await until(lambda: second.state is LineState.LOST)
        assert "lock" in second.reason
        child.stdin.write(bytes(range(256)))
        child.stdin.flush()
        await until(lambda: len(sink.data) == 256)
        assert sink.data == bytes(range(256))
        child.kill()
        await until(lambda: line.state is LineState.LOST)

    async def test_break_is_held_and_let_go(self) -> None:
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        self.addCleanup(os.close, slave)
        line = self.open_line(Serial(os.ttyname(slave), 9600), MemorySink())
        await self.is_open(line)
        states: list[bool] = []
        self.patch(uart._KeptInput, "_update_break_state", lambda port: states.append(port._break_state))
        assert line.breaks == (Break.SERIAL,)
        # What stands in for the device has no wire: the kernel's driver takes BREAK and carries it nowhere.
        with pytest.raises(LineError, match="is a pseudo terminal"):
            await line.send_break(Break.SERIAL)
        assert states == []
        self.patch(uart, "is_pseudo_terminal", lambda fd: False)
        await line.send_break(Break.SERIAL)
        assert states == [True, False]

    async def test_a_line_lost_within_break_says_so(self) -> None:
        master, slave = os.openpty()
        line = self.open_line(Serial(os.ttyname(slave), 9600), MemorySink())
        os.close(slave)
        await self.is_open(line)
        from twisted.internet.defer import Deferred

        self.patch(uart, "is_pseudo_terminal", lambda fd: False)
        breaking = Deferred.fromCoroutine(line.send_break(Break.SERIAL))
        os.close(master)
        with pytest.raises(LineError, match="lost meanwhile"):
            await breaking

    async def test_a_missing_device_is_waited_for(self) -> None:
        line = self.open_line(Serial("/dev/does-not-exist", 9600), MemorySink())
        await until(lambda: line.state is LineState.LOST)
        assert "No such file or directory" in line.reason
