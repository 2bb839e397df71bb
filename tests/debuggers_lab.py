"""Four real debuggers behind one set of verbs: Debian's gdb and LLDB, and the newer ones that scripts/setup installs.

Each runs on pipes, as a user's would on a terminal: a command goes in, its output comes out up to a marker that the
debugger itself prints.  gdb answers a resume when the guest stands again, LLDB at once; `go` and `wait_stop` hide that.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parent.parent
NEWER = ROOT / ".venv" / "debuggers" / "bin"
SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Make:
    """A debugger that is installed: its program's family is what decides how it is spoken to."""

    name: str
    program: str
    major: int

    @property
    def is_gdb(self) -> bool:
        return self.name.startswith("gdb")

    def path(self) -> str:
        found = shutil.which(self.program)
        assert found, f"{self.program} is not there; run scripts/setup"
        return found

    def version(self) -> str:
        done = subprocess.run(
            [self.path(), "--version"], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.splitlines()[0]


GDB_13 = Make("gdb-13", "gdb", 13)
GDB_18 = Make("gdb-18", str(NEWER / "gdb"), 18)
LLDB_14 = Make("lldb-14", "lldb", 14)
LLDB_23 = Make("lldb-23", str(NEWER / "lldb"), 23)
MAKES = (GDB_13, GDB_18, LLDB_14, LLDB_23)


class Silent(AssertionError):
    """A debugger did not say what was waited for."""


class Debugger:
    """One running debugger; use `debugger` to start one.  It is killed at the end of the `with`."""

    def __init__(self, make: Make, command: list[str], env: Mapping[str, str]) -> None:
        self.make = make
        self.process = subprocess.Popen(
            command, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.said = ""
        """All that it ever said."""
        self._heard = 0
        self._markers = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *ignored: object) -> None:
        if kind is not None:
            print(f"── {self.make.name} said:\n{self.said[-6000:]}")  # what pytest shows of a failure
        self.kill()

    # -- in and out -----------------------------------------------------------------------------------------

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def until(self, pattern: str, seconds: float = SECONDS) -> str:
        """Return what it says up to the end of `pattern`, from where the last answer ended."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while not (match := re.compile(pattern).search(self.said, self._heard)):
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.process.stdout], [], [], left)[0]
            piece = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not piece:
                why = "ended" if ready else "is silent"
                raise Silent(f"{self.make.name} {why} instead of {pattern!r}: {self.said[self._heard :]!r}")
            self.said += piece.decode(errors="replace")
        answer = self.said[self._heard : match.end()]
        self._heard = match.end()
        return answer

    def says(self, pattern: str, seconds: float) -> bool:
        """Whether it says something within some seconds; what it says is left for `until`."""
        heard = self._heard
        try:
            self.until(pattern, seconds)
        except Silent:
            return False
        self._heard = heard
        return True

    def run(self, command: str, seconds: float = SECONDS) -> str:
        """Give one command and return all that it says until the next can be given."""
        self.send(command)
        return self._settled(seconds)

    def _settled(self, seconds: float = SECONDS) -> str:
        """Return what it says until it takes the next command."""
        raise NotImplementedError

    # -- leaving --------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL, whatever it does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(SECONDS)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:  # a line that it did not read any more
                pass

    def quit(self, seconds: float = SECONDS) -> str:
        """Leave as a user does; return the last words.  What was attached is detached."""
        self.send("quit")
        said, _ = self.process.communicate(timeout=seconds)
        self.said += said.decode(errors="replace")
        return said.decode(errors="replace")

    # -- verbs ----------------------------------------------------------------------------------------------

    def attach(self, path: object) -> str: ...

    def register(self, name: str) -> int: ...

    def memory(self, address: int, length: int) -> bytes: ...

    def read(self, address: int) -> str:
        """Read eight bytes and return what the user sees, which may be a refusal."""
        raise NotImplementedError

    def step(self) -> str:
        """One instruction; return what is said up to the stop."""
        raise NotImplementedError

    def go(self) -> None:
        """Continue, without waiting for the stop."""
        raise NotImplementedError

    def wait_stop(self, seconds: float = SECONDS) -> str:
        """Return what is said from `go` to the next stop, or to the end of the session."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Ctrl-C.  Only once the guest runs: all four forget one that comes while they send the resume."""
        self.process.send_signal(signal.SIGINT)

    def break_at(self, address: int, *, hardware: bool = False) -> str: ...

    def unbreak(self) -> str: ...

    def watch(self, address: int) -> str: ...

    def detach(self) -> str: ...

    def kill_guest(self) -> str: ...

    def write_memory(self, address: int, byte: int) -> str: ...

    def write_register(self, name: str, value: int) -> str: ...

    def monitor(self, words: str) -> str: ...

    @property
    def pc(self) -> int:
        return self.register("rip")


class Gdb(Debugger):
    """gdb: a resume is answered when the guest stands again."""

    SETTINGS = (
        "set confirm off",
        "set pagination off",
        "set width 0",
        "set style enabled off",
        "set debuginfod enabled off",
    )

    def __init__(self, make: Make, env: Mapping[str, str], *arguments: str, guest: str = "") -> None:
        settings = [word for setting in self.SETTINGS for word in ("-iex", setting)]
        command = [make.path()]
        if guest:
            command = [sys.executable, "-m", "kbridge", "gdb", "--gdb", make.path(), guest, "--"]
        super().__init__(make, [*command, "-nx", "-q", *settings, *arguments], env)
        self._settled()

    def _settled(self, seconds: float = SECONDS) -> str:
        self._markers += 1
        self.send(f"echo \\n@@{self._markers}@@\\n")
        said = self.until(f"@@{self._markers}@@\n", seconds)
        return said.replace("(gdb) ", "").rpartition("@@" + str(self._markers))[0].strip("\n")

    def attach(self, path: object) -> str:
        return self.run(f"target remote {path}")

    def register(self, name: str) -> int:
        return self.value(f"${name}")

    def value(self, expression: str) -> int:
        said = self.run(f"output/x (unsigned long){expression}")
        assert said.startswith("0x"), said
        return int(said, 16)

    def memory(self, address: int, length: int) -> bytes:
        said = self.run(f"x/{length}xb {address:#x}")
        return bytes(int(one, 16) for one in re.findall(r"\t(0x[0-9a-f]{2})\b", said))

    def read(self, address: int) -> str:
        return self.run(f"x/xg {address:#x}")

    def step(self) -> str:
        return self.run("stepi")

    def go(self) -> None:
        self.command_and_go("continue")
        self.until(r"Continuing\.\n")

    def command_and_go(self, command: str) -> None:
        """Give a command that resumes, without waiting."""
        self.send(command)

    def wait_stop(self, seconds: float = SECONDS) -> str:
        return self._settled(seconds)

    def break_at(self, address: int, *, hardware: bool = False) -> str:
        return self.run(f"{'hbreak' if hardware else 'break'} *{address:#x}")

    def unbreak(self) -> str:
        return self.run("delete")

    def watch(self, address: int) -> str:
        return self.run(f"watch *(long *){address:#x}")

    def detach(self) -> str:
        return self.run("detach")

    def kill_guest(self) -> str:
        return self.run("kill")

    def write_memory(self, address: int, byte: int) -> str:
        return self.run(f"set var *(unsigned char *){address:#x} = {byte}")

    def write_register(self, name: str, value: int) -> str:
        return self.run(f"set var ${name} = {value:#x}")

    def monitor(self, words: str) -> str:
        return self.run(f"monitor {words}")


class Lldb(Debugger):
    """LLDB: a resume is answered at once, and the stop is told whenever it comes."""

    STOPPED = r"(?s)stop reason = [^\n]*\n|Process \d+ exited[^\n]*\n|error: [^\n]*\n"

    _since_go = ""

    def __init__(self, make: Make, env: Mapping[str, str], *arguments: str) -> None:
        super().__init__(make, [make.path(), "--no-lldbinit", "--no-use-colors", *arguments], env)
        self.run("settings set auto-confirm true")
        self.run("settings set stop-disassembly-display never")

    def _settled(self, seconds: float = SECONDS) -> str:
        # A word that it refuses: printed by every version, with Python in it or without.
        self._markers += 1
        self.send(f"@@{self._markers}@@")
        said = self.until(f"error: '@@{self._markers}@@' is not a valid command[^\n]*\n", seconds)
        said = said.rpartition("error: '@@")[0].replace(f"(lldb) @@{self._markers}@@\n", "")
        return re.sub(r"(?m)^\(lldb\) [^\n]*\n", "", said, count=1).strip("\n")

    def attach(self, path: object) -> str:
        self.send(f"process connect --plugin gdb-remote unix-connect://{path}")
        # A guest that runs and is observed has no reason to have stopped.
        return self.until(r"Process \d+ stopped\n|error: [^\n]*\n") + self._settled()

    def _until_stop(self, seconds: float) -> str:
        said = self.until(self.STOPPED, seconds)
        return said + self._settled(seconds)

    def register(self, name: str) -> int:
        said = self.run(f"register read --format hex {name}")
        match = re.search(rf"\b{name} = (0x[0-9a-f]+)", said)
        assert match, said
        return int(match[1], 16)

    def memory(self, address: int, length: int) -> bytes:
        said = self.run(f"memory read --force --format x --size 1 --count {length} {address:#x}")
        rows = re.findall(r"(?m)^0x[0-9a-f]+: (.*)$", said)
        return bytes(int(one, 16) for row in rows for one in re.findall(r"0x([0-9a-f]{2})\b", row))

    def read(self, address: int) -> str:
        return self.run(f"memory read --format x --size 8 --count 1 {address:#x}")

    def step(self) -> str:
        self.send("thread step-inst")
        return self._until_stop(SECONDS)

    def go(self) -> None:
        self.send("process continue")
        # What the relay says at once may come before.
        self._since_go = self.until(r"Process \d+ resuming\n")

    def wait_stop(self, seconds: float = SECONDS) -> str:
        return self._since_go + self._until_stop(seconds)

    def interrupt(self) -> None:
        """Ctrl-C, again and again as a user does: LLDB forgets one until it has printed that the guest runs."""
        for _ in range(10):
            super().interrupt()
            if self.says(self.STOPPED, 2):
                return
        raise Silent(f"{self.make.name} cannot be interrupted: {self.said[self._heard :]!r}")

    def break_at(self, address: int, *, hardware: bool = False) -> str:
        return self.run(f"breakpoint set {'--hardware ' if hardware else ''}--address {address:#x}")

    def unbreak(self) -> str:
        return self.run("breakpoint delete --force")

    def watch(self, address: int) -> str:
        return self.run(f"watchpoint set expression --watch write --size 8 -- {address:#x}")

    def detach(self) -> str:
        self.send("process detach")
        return self.until(r"Process \d+ detached\n|error: [^\n]*\n") + self._settled()

    def kill_guest(self) -> str:
        self.send("process kill")
        return self.until(r"Process \d+ exited[^\n]*\n|error: [^\n]*\n") + self._settled()

    def write_memory(self, address: int, byte: int) -> str:
        return self.run(f"memory write --size 1 {address:#x} {byte:#x}")

    def write_register(self, name: str, value: int) -> str:
        return self.run(f"register write {name} {value:#x}")

    def monitor(self, words: str) -> str:
        return self.run(f"process plugin packet monitor {words}")


def kbridge_gdb(make: Make, env: Mapping[str, str], guest: str, *arguments: str) -> Gdb:
    """Start a gdb by `kbridge gdb`: attached, with the guest's symbols where KASLR put them."""
    return Gdb(make, env, *arguments, guest=guest)


def debugger(make: Make, env: Mapping[str, str], *arguments: str) -> Any:
    """Start one of `MAKES`, attached to nothing."""
    return (Gdb if make.is_gdb else Lldb)(make, env, *arguments)
