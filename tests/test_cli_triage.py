"""`kbridge triage`: through a relay, without one, and of a file."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from boot_lab import FOLDER
from relay_lab import SECONDS, RelayProcess

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def relay() -> Iterator[RelayProcess]:
    relay = RelayProcess()
    relay.start()
    yield relay
    relay.close()


def test_the_last_boot_of_a_guest(relay: RelayProcess) -> None:
    relay.recorded((FOLDER / "panic.raw").read_bytes())
    done = relay.run("triage", "web1")
    assert (done.returncode, done.stderr) == (0, "")
    first, *_ = done.stdout.splitlines()
    assert re.fullmatch(
        r"web1: the last boot, since it shows on the console, \d\d:\d\d:\d\d; 1 before it.*", first
    )
    assert "\nFAILED: the kernel panicked\n" in done.stdout
    assert "  kernel   6.1.0-56-cloud-amd64\n" in done.stdout
    assert re.search(
        r"^  initramfs +/init +\d+\.\d s  \[    1\.910052\] Run /init", done.stdout, re.MULTILINE
    )
    assert "    - `kbridge log web1 --symbols` explains" in done.stdout
    report = json.loads(relay.run("triage", "web1", "--json").stdout)
    assert (report["guest"], report["verdict"], report["reached"]) == ("web1", "failed", "panic")
    assert [stage["state"] for stage in report["stages"]] == ["kernel", "initramfs", "shell", "panic"]
    assert all(stage["seconds_by"] == "record" for stage in report["stages"])
    (finding,) = report["findings"]
    assert finding["name"] == "panic"
    assert "Kernel panic - not syncing: sysrq triggered crash" in finding["lines"][0]["text"]
    # The same from the files, when the relay is gone.
    assert relay.process is not None
    relay.process.send_signal(signal.SIGKILL)
    relay.process.wait(SECONDS)
    assert json.loads(relay.run("triage", "web1", "--json").stdout) == report


def test_a_saved_log(relay: RelayProcess) -> None:
    path = FOLDER / "deb-break.raw"
    done = relay.run("triage", "--file", str(path))
    assert done.stdout.startswith("log: the last boot, from the record's own beginning\n")
    assert "STOPPED: the initramfs was told to stop at a shell" in done.stdout
    piped = subprocess.run(
        [sys.executable, "-m", "kbridge", "triage", "--file", "-", "--json"],
        input=path.read_bytes(), env=relay.env, capture_output=True, timeout=30, check=True,
    )  # fmt: skip
    report = json.loads(piped.stdout)
    assert (report["guest"], report["verdict"], report["begin"]) == (None, "stopped", None)


def test_no_escape_sequence_of_a_guest_reaches_the_terminal(relay: RelayProcess, tmp_path: object) -> None:
    hostile = (
        b"[    0.000000] Linux version 6.1.0\x1b]0;evil\x07 (a\xc2\x9b31m) \x1b[31m#1\r\n[    1.0] x\r\n"
    )
    relay.recorded(hostile)
    done = relay.run("triage", "web1")
    assert "Linux version 6.1.0" in done.stdout
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout)


def test_usage_and_unknown_guests(relay: RelayProcess) -> None:
    assert relay.run("triage").returncode == 2
    assert relay.run("triage", "web1", "--file", str(FOLDER / "kdb.raw")).returncode == 2
    done = relay.run("triage", "nobody")
    assert done.returncode == 1
    assert "nothing was recorded of 'nobody'" in done.stderr
