"""A script on the shell of a real guest: asked for a name and a secret, it branches on the answer."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from relay_lab import RelayProcess, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCRIPT = r"""
limit 5m
var USER
secret WORD

boot:
    wait "kbridge-guest: ready" 3m
    # Kernel messages may still come, and a shell drops what was typed before it was there.
    quiet 500ms 30s
    send "\r"
    wait "# "

ask:
    # The marks are split, so that the echo of the command is no answer to it.
    send "printf 'us''er: '; read u; stty -echo; printf 'se''cret: '; read s; stty echo; "
    send "[ \"\$u.\$s\" = ann.geheim ] && echo wel''come \$u || echo de''nied\r"
    wait "user: " 20s
    send "${USER}\r"
    wait "secret: " 20s
    quiet 100ms 10s
    send-secret WORD
    send "\r"
    wait 20s
        on /welcome \w+\n/ next
        on "denied" goto refused
    send "uname -r\r"
    wait /^\d+\.\d+\S*\n/ 20s
    send-break "h"
    wait /sysrq: HELP/i 20s
    done "in"

refused:
    fail "the guest does not know ${USER}" "give another secret"
"""


@pytest.fixture
def guest(cloud_guest: Any) -> Iterator[RelayProcess]:
    said = cloud_guest("--stopped")
    relay = RelayProcess()
    relay.write_config(f'[guests.vm]\nqmp = "{said["qmp"]}"\nconsole = "{said["console"]}"\n')
    relay.start(line=False)
    try:
        wait_for(lambda: relay.json("GET", "/guests/vm")[1]["console"]["state"] == "open", "the line")
        yield relay
    finally:
        relay.close()


@pytest.mark.guest
@pytest.mark.slow
def test_a_script_logs_in_and_branches_on_the_answer(guest: RelayProcess, tmp_path: Path) -> None:
    script, right, wrong = tmp_path / "in.expect", tmp_path / "right", tmp_path / "wrong"
    script.write_text(SCRIPT)
    right.write_text("geheim\n")
    wrong.write_text("falsch\n")
    assert guest.run("power", "vm", "resume").returncode == 0

    given = ["expect", "vm", str(script), "--set", "USER=ann"]
    done = guest.run(*given, "--secret", f"WORD={right}", timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r'saw /welcome .* in ".*welcome ann', done.stdout), done.stdout

    again = tmp_path / "again.expect"
    again.write_text(SCRIPT.replace('wait "kbridge-guest: ready" 3m', 'send "\\r"'))
    given[2] = str(again)
    refused = guest.run(*given, "--secret", f"WORD={wrong}", timeout=280)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert refused.stderr == (
        'kbridge: the guest does not know ann: line 23 (ask) saw "denied"; give another secret\n'
    ), refused.stdout + refused.stderr

    events = [json.loads(line) for line in guest.run("log", "vm", "--json").stdout.splitlines()]
    ends = [one["state"] for one in events if one["kind"] == "expect.end"]
    assert ends == ["done", "failed"]
    # The guest echoes no secret, and the time line has none.
    assert "falsch" not in json.dumps(events)
    assert "***" in json.dumps(events)
