"""A relay beside a guest that boots from a disk, and one `kbridge boot` on it."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relay_lab import RelayProcess, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BOOT_SECONDS = 280


@dataclass
class Run:
    """What one `kbridge boot` said; `entries` are those of its transcript."""

    status: int
    entries: list[dict[str, Any]]
    errors: str

    @property
    def end(self) -> Mapping[str, Any]:
        return self.entries[-1]

    @property
    def states(self) -> list[tuple[str, str]]:
        """The states that the guest went through, each named once as long as it lasts."""
        found: list[tuple[str, str]] = []
        for entry in self.entries:
            now = (entry["state"], entry["program"])
            if entry["kind"] == "state" and found[-1:] != [now]:
                found.append(now)
        return found

    @property
    def sent(self) -> list[str]:
        return [entry["keys"] for entry in self.entries if entry["kind"] == "sent"]

    @property
    def notes(self) -> str:
        return "\n".join(entry["text"] for entry in self.entries if entry["kind"] == "note")

    def told(self) -> str:
        """All of it, for a test that fails."""
        return self.errors + "\n".join(json.dumps(entry) for entry in self.entries)


@contextmanager
def relay_of(said: Mapping[str, Any]) -> Iterator[RelayProcess]:
    """A relay with `vm`, the guest that `scripts/guest run` started."""
    relay = RelayProcess()
    relay.write_config(f'[guests.vm]\nqmp = "{said["qmp"]}"\nconsole = "{said["console"]}"\n')
    relay.start(line=False)
    try:
        wait_for(lambda: relay.json("GET", "/guests/vm")[1]["console"]["state"] == "open", "the line")
        wait_for(lambda: relay.json("GET", "/guests/vm")[1]["state"] in ("running", "paused"), "the machine")
        yield relay
    finally:
        relay.close()


def boot(relay: RelayProcess, *arguments: str) -> Run:
    done = relay.run("boot", "vm", "--json", *arguments, timeout=BOOT_SECONDS)
    run = Run(done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr)
    assert run.entries, run.errors
    assert run.end["kind"] == "end", run.told()
    return run


def brought(relay: RelayProcess, *arguments: str) -> Run:
    """One `kbridge boot` that is to be done."""
    run = boot(relay, *arguments)
    assert (run.status, run.end["end"]) == (0, "done"), run.told()
    return run


def refused(relay: RelayProcess, *arguments: str) -> Run:
    """One that is to fail, and to say why."""
    run = boot(relay, *arguments)
    assert (run.status, run.end["end"]) == (1, "failed"), run.told()
    assert run.errors.startswith("kbridge: "), run.errors
    return run


def answered(relay: RelayProcess, password: str, *arguments: str) -> tuple[Run, str]:
    """One at a terminal, where somebody types a password when he is asked; and what the terminal showed."""
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kbridge", "boot", "vm", "--json", *arguments],
        env=relay.env, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        seen = ""
        while "password of" not in seen:
            assert select.select([terminal], [], [], BOOT_SECONDS)[0], "no question"
            seen += os.read(terminal, 65536).decode()
        os.write(terminal, password.encode() + b"\r")
        said, _ = process.communicate(timeout=BOOT_SECONDS)
        while select.select([terminal], [], [], 0)[0]:
            try:
                seen += os.read(terminal, 65536).decode()
            except OSError:
                # Nobody has its other end any more.
                break
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    return Run(process.returncode, [json.loads(line) for line in said.splitlines()], seen), seen


def ask(relay: RelayProcess, command: str) -> str:
    """What a command prints in the guest's shell, its lines made one."""
    script = relay.dir / "ask.expect"
    # The marks are split, so that the echo of the command is no answer to it.
    script.write_text(
        f"limit 1m\nask:\n    send \"echo IT'S'-$({command})-O'K'\\r\"\n    wait /ITS-.*-OK/ 40s\n"
    )
    done = relay.run("expect", "vm", str(script), timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
