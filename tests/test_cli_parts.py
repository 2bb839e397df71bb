"""The command line's pure parts: moments, escapes, words, gdb's and ssh's arguments, plain text."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.cli import SECTIONS, main
from kbridge.commands.attach_command import ssh_arguments
from kbridge.commands.gdb_arguments import gdb_arguments
from kbridge.commands.power_command import ACTIONS
from kbridge.console.log import Missing, Text
from kbridge.console.timeline import Event
from kbridge.control import control_path
from kbridge.errors import KbridgeError
from kbridge.frontends.log_text import PlainText, event_words
from kbridge.guest import POWER_ACTIONS
from kbridge.moments import parse_moment
from kbridge.terminal import Command, Escapes
from kbridge.version import VERSION

ROOT = Path(__file__).resolve().parent.parent
ZONE = timezone(timedelta(hours=2))
NOW = datetime(2026, 11, 22, 14, 30, 15, tzinfo=ZONE)


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_the_help_has_every_command_as_it_describes_itself() -> None:
    context = main.make_context("kbridge", [], resilient_parsing=True)
    for section in SECTIONS.values():
        for name, summary in section.items():
            command = main.get_command(context, name)
            assert command is not None
            assert command.name == name
            assert command.help is not None
            first = re.split(r"\n\s*\n", command.help.strip())[0].replace("\n", " ")
            assert first == summary


def test_the_commands_know_the_power_actions() -> None:
    assert ACTIONS == POWER_ACTIONS


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("10m", NOW - timedelta(minutes=10)),
        ("2h", NOW - timedelta(hours=2)),
        ("90s ago", NOW - timedelta(seconds=90)),
        ("1d", NOW - timedelta(days=1)),
        ("14:00", datetime(2026, 11, 22, 14, 0, tzinfo=ZONE)),
        ("14:30:15", NOW),
        ("23:00", datetime(2026, 11, 21, 23, 0, tzinfo=ZONE)),
        ("2026-11-22T10:00", datetime(2026, 11, 22, 10, 0, tzinfo=ZONE)),
        ("2026-11-22T10:00:00Z", datetime(2026, 11, 22, 10, 0, tzinfo=UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    assert parse_moment(text, NOW) == moment


@given(st.text(max_size=20))
def test_a_moment_is_one_or_is_refused_in_words(text: str) -> None:
    try:
        moment = parse_moment(text, NOW)
    except ValueError as error:
        words = str(error)
    else:
        assert moment.tzinfo is not None
        return
    assert "10m" in words


def meant(*typed: bytes) -> list[bytes | Command]:
    escapes = Escapes()
    found: list[bytes | Command] = []
    for piece in typed:
        for one in escapes.feed(piece):
            if found and isinstance(one, bytes) and isinstance(found[-1], bytes):
                found[-1] += one
            else:
                found.append(one)
    return found


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (b"~.", [Command.LEAVE]),
        (b"ls\r~.", [b"ls\r", Command.LEAVE]),
        (b"ls ~.", [b"ls ~."]),
        (b"\r~?\r~b", [b"\r", Command.HELP, b"\r", Command.BREAK]),
        (b"~~.", [b"~."]),
        (b"~x", [b"~x"]),
        (b"~\r~.", [b"~\r", Command.LEAVE]),
        (b"~b~b", [Command.BREAK, Command.BREAK]),
        (b"cd ~\r", [b"cd ~\r"]),
        # busybox asks where the cursor is, and the terminal answers for the person.
        (b"ls\r\x1b[24;7R~.", [b"ls\r\x1b[24;7R", Command.LEAVE]),
        (b"\x1b[?62;22c~.", [b"\x1b[?62;22c", Command.LEAVE]),
        (b"\x1b[A~.", [b"\x1b[A~."]),
        (b"ls\x1b[24;7R~.", [b"ls\x1b[24;7R~."]),
        (b"\x1b~.", [b"\x1b~."]),
    ],
)
def test_escapes(typed: bytes, found: list[bytes | Command]) -> None:
    assert meant(typed) == found
    assert meant(*(typed[at : at + 1] for at in range(len(typed)))) == found


@given(st.binary(max_size=40))
def test_what_is_no_escape_reaches_the_guest(typed: bytes) -> None:
    if b"~" not in typed:
        assert b"".join(one for one in meant(typed) if isinstance(one, bytes)) == typed


# ── text for people ─────────────────────────────────────────────────────────────────────────────────────────


def plain(*pieces: bytes) -> str:
    text = PlainText()
    return "".join(text.feed(Text(0, 0, piece)) for piece in pieces)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\r\nb\r\n", "a\nb\n"),
        (b"a\r\r\nb", "a\nb"),
        (b"50%\r100%\n", "50%\n100%\n"),
        (b"\x1b[1;31mred\x1b[0m\n", "red\n"),
        (b"\x1b]0;title\x07x\x1b]52;c;AAAA\x1b\\y\n", "xy\n"),
        (b"\x1b[6n\x1b[?2004h\x1bc# \n", "# \n"),
        (b"bell\x07 back\x08 nul\x00 del\x7f\n", "bell back nul del\n"),
        ("€\u009b31m\n".encode(), "€31m\n"),
        (b"\xff\xfe\n", "\\xff\\xfe\n"),
    ],
)
def test_no_escape_sequence_of_a_guest_is_left(data: bytes, text: str) -> None:
    assert plain(data) == text
    assert plain(*(data[at : at + 1] for at in range(len(data)))) == text


@given(
    st.lists(st.binary(max_size=30) | st.sampled_from([b"\x1b", b"\x1b[", b"\x1b]0;", b"\r", b"\xe2\x82"]))
)
def test_plain_text_has_no_control_characters(pieces: list[bytes]) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", plain(*pieces))


def test_events_stand_on_lines_of_their_own() -> None:
    text = PlainText()
    text.feed(Text(0, 0, b"login: "))
    event = text.feed(Event("machine.reset", 7, 0, 1_700_000_000_000_000_000, {"ours": True}))
    assert re.fullmatch(r"\n-- [-0-9 :]+ machine\.reset: by kbridge\n", event)
    assert text.feed(Missing(7, 0, "line lost", 12)).endswith(
        "text may be missing here (line lost, 12 bytes)\n"
    )


def test_words_of_an_event_are_one_line_without_escapes() -> None:
    words = event_words("line.lost", {"reason": "a\nb\x1b[2Jc", "count": 3, "none": None, "ok": False})
    assert words == "line.lost: reason a bc, count 3, ok no"


# ── what other programs are given ───────────────────────────────────────────────────────────────────────────


def test_gdb_is_told_where_debug_files_are_and_the_kernels_scripts(tmp_path: Path) -> None:
    status: dict[str, Any] = {"debug_dirs": ["/a", "/b"], "vmlinux": None}
    arguments = gdb_arguments(status, "/run/web1/gdb")
    commands = arguments[1::2]
    assert arguments[0::2] == ["-ex"] * len(commands)
    assert commands[0] == "set debug-file-directory /a:/b"
    assert commands[-1] == "target remote /run/web1/gdb"
    status["vmlinux"] = str(tmp_path / "vmlinux")
    assert gdb_arguments(status, "/run/web1/gdb") == arguments
    (tmp_path / "vmlinux-gdb.py").touch()
    assert gdb_arguments(status, "/run/web1/gdb")[-1] == f"source {tmp_path / 'vmlinux-gdb.py'}"


def test_ssh_runs_the_other_hosts_relay() -> None:
    assert ssh_arguments("ssh://ann@host.example:2222/web1") == [
        "ssh", "-p", "2222", "-T", "-e", "none", "--", "ann@host.example", "kbridge", "attach", "web1",
    ]  # fmt: skip
    assert "--" in ssh_arguments("ssh://host/web1")


@pytest.mark.parametrize(
    "where",
    ["ssh://-oProxyCommand=x/web1", "ssh://host/", "ssh://host/web1;reboot", "ssh://host/a/b", "ssh://a:b@host/web1",
     "ssh://host:99999/web1", "ssh://a b@host/web1", "ssh:///web1", "ssh://host/web1?x"],
)  # fmt: skip
def test_ssh_is_given_nothing_strange(where: str) -> None:
    with pytest.raises(KbridgeError):
        ssh_arguments(where)


def test_the_control_socket_is_the_one_named(tmp_path: Path) -> None:
    config = tmp_path / "k.toml"
    config.write_text('[relay]\nruntime_dir = "/run/other"\n')
    assert control_path(None, str(config), {}) == Path("/run/other/control")
    assert control_path("unix:/run/x", str(config), {}) == Path("/run/x")
    with pytest.raises(KbridgeError, match="unix:/path"):
        control_path("tcp:host:1", None, {})
    config.write_text("[relay")
    with pytest.raises(KbridgeError, match="config check"):
        control_path(None, str(config), {})
