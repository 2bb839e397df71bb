"""`kbridge crash` with a relay whose guest is a console and nothing else, and without one."""

from __future__ import annotations

import json
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from relay_lab import RelayProcess, wait_for

PANIC = b"""\
[    8.335000] sysrq: Trigger a crash\r
[    8.335317] Kernel panic - not syncing: %s\r
[    8.335317] CPU: 0 PID: 1 Comm: sh Not tainted 6.1.0 #1\r
[    8.335317] Call Trace:\r
[    8.335317]  <TASK>\r
[    8.335317]  panic+0x118/0x2f4\r
[    8.335317]  sysrq_handle_crash+0x16/0x20\r
[    8.335317]  </TASK>\r
[    8.400000] ---[ end Kernel panic - not syncing: %s ]---\r
"""


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayProcess]:
    relay = RelayProcess()
    relay.write_config(
        f'[guests.web1]\nconsole = "unix:{relay.far.path}"\ncrash_full = 2\n'
        f'crash_command = ["{sys.executable}", "-c", "import sys; print(sys.argv[1])"]\n[guests.bare]\n'
    )
    relay.start()
    yield relay
    relay.close()


def dies(relay: RelayProcess, what: bytes = b"sysrq triggered crash") -> None:
    relay.far.say(PANIC % (what, what))


def listed(relay: RelayProcess) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(relay.run("crash", "ls", "--json").stdout)
    return found


def finished(relay: RelayProcess, count: int = 1) -> list[dict[str, object]]:
    def done() -> list[dict[str, object]]:
        status, document = relay.json("GET", "/crashes")
        assert status == 200
        found: list[dict[str, object]] = document["crashes"]
        return found if len(found) >= count and all(one["state"] != "pending" for one in found) else []

    found: list[dict[str, object]] = wait_for(done, f"{count} crashes")
    return found


def test_a_console_alone_makes_a_report_that_says_what_is_missing(relay: RelayProcess) -> None:
    assert relay.run("crash", "ls").stdout == "no crash is kept\n"
    relay.far.say(b"hello \x1b[31m\r\n")
    dies(relay)
    (one,) = finished(relay)
    assert {"id", "guest", "title", "time", "count", "path"} <= set(one)
    assert (one["guest"], one["title"], one["count"]) == ("web1", "kernel panic: sysrq triggered crash", 1)
    assert one["state"] == "incomplete"
    table = relay.run("crash", "ls", "web1")
    assert table.returncode == 0
    assert re.search(rf"{one['id']} +1 +incomplete +kernel panic: sysrq triggered crash", table.stdout)
    shown = relay.run("crash", "show", "last")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("kernel panic: sysrq triggered crash\n\nweb1, ")
    assert "    [    8.335317]  sysrq_handle_crash+0x16/0x20" in shown.stdout
    assert "web1 is out of reach: it has no machine monitor" in shown.stdout
    assert "\x1b" not in shown.stdout
    document = json.loads(relay.run("crash", "show", str(one["id"])[:12], "--json").stdout)
    assert document["parts"]["console"] == {
        "state": "done", "why": None, "file": "console.log", "seconds": document["parts"]["console"]["seconds"]
    }  # fmt: skip
    assert (Path(str(one["path"])) / "console.log").read_bytes().startswith(b"hello \x1b[31m\r\n")
    # What happened is on the guest's time line, with the hook's own words.
    wait_for(lambda: '"kind":"crash.hook"' in timeline(relay), "the hook's end")
    events = [json.loads(line) for line in timeline(relay).splitlines()]
    kinds = [event["kind"] for event in events if event["kind"].startswith("crash.")]
    assert kinds == ["crash.noticed", "crash.report", "crash.kept", "crash.hook"]
    (hook,) = [event for event in events if event["kind"] == "crash.hook"]
    assert hook["said"] == f"{one['path']}/report.json"


def timeline(relay: RelayProcess) -> str:
    return (relay.state / "guests" / "web1" / "timeline.jsonl").read_text()


def test_equal_crashes_are_counted_and_a_loop_is_kept_in_full_only_at_first(relay: RelayProcess) -> None:
    for number in range(4):
        dies(relay, b"the same")
        wait_for(lambda: timeline(relay).count('"kind":"crash.noticed"') == number + 1, "another crash")  # noqa: B023
    found = finished(relay, 2)
    wait_for(lambda: listed(relay)[0]["count"] == 4, "the count")
    assert len(found) == 2
    dies(relay, b"another")
    found = finished(relay, 3)
    assert {one["title"]: one["count"] for one in found} == {
        "kernel panic: the same": 4,
        "kernel panic: another": 1,
    }


def test_crashes_are_followed_as_they_come(relay: RelayProcess) -> None:
    follower = subprocess.Popen(
        [sys.executable, "-m", "kbridge", "crash", "watch", "--json"],
        env=relay.env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        # It is told of what comes after it has come: some crashes may be before that.
        count = 0
        for count, name in enumerate((b"alpha", b"beta", b"gamma", b"delta", b"epsilon"), 1):
            dies(relay, name)
            finished(relay, count)
            assert follower.stdout is not None
            if select.select([follower.stdout], [], [], 1.0)[0]:
                break
        one = json.loads(follower.stdout.readline())
        assert one["what"] in ("noticed", "published", "finished")
        assert (one["guest"], one["count"]) == ("web1", 1)
        assert re.fullmatch(r"kernel panic: [a-z]+", one["title"])
        status, kept = relay.ask("GET", "/crash-events")
        assert status == 200
        assert [json.loads(line)["what"] for line in kept.splitlines()] == ["finished"] * count
    finally:
        follower.kill()
        follower.communicate()


def test_without_a_relay_the_files_are_read(relay: RelayProcess) -> None:
    dies(relay)
    finished(relay)
    before = listed(relay)
    relay.stop()
    assert listed(relay) == before
    assert relay.run("crash", "show", "last").returncode == 0
    refused = relay.run("crash", "capture", "web1")
    assert refused.returncode == 1
    assert "no relay answers" in refused.stderr


def test_what_is_not_there_is_said(relay: RelayProcess) -> None:
    done = relay.run("crash", "show", "last")
    assert (done.returncode, "no crash 'last' is kept" in done.stderr) == (1, True)
    assert relay.json("GET", "/crashes/nothing")[0] == 404
    assert relay.json("GET", "/crashes/..%2F..%2Fetc")[0] == 404
    assert relay.run("crash", "capture", "nobody").returncode == 1
    # By hand, of a guest of which there is only a console.
    done = relay.run("crash", "capture", "web1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parts"]["registers"]["state"] == "missing"
