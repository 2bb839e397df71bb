"""QMP without input or output: what goes in comes out, under any split, and garbage ends it in one way."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import MachineError
from kbridge.hypervisors.qmp import (
    MAX_NESTING,
    MAX_OUTSTANDING,
    Event,
    Greeting,
    QmpConnection,
    QmpMessage,
    QmpPhase,
    QmpProtocolError,
    Refused,
    Returned,
)

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, '
    b'"package": "Debian 1:7.2+dfsg-7"}, "capabilities": ["oob"]}}\r\n'
)
STOP = b'{"timestamp": {"seconds": 1795331534, "microseconds": 439304}, "event": "STOP"}\r\n'


def ready(max_line_bytes: int = 1 << 20) -> QmpConnection:
    connection = QmpConnection(max_line_bytes=max_line_bytes)
    connection.receive(GREETING)
    assert list(connection.messages()) == [Greeting("7.2.22", ("oob",))]
    number, sent = connection.command("qmp_capabilities")
    assert json.loads(sent) == {"execute": "qmp_capabilities", "id": number}
    connection.receive(b'{"return": {}, "id": %d}\r\n' % number)
    assert list(connection.messages()) == [Returned(number, {})]
    assert connection.phase is QmpPhase.READY
    return connection


def all_of(connection: QmpConnection, *pieces: bytes) -> tuple[list[QmpMessage], str]:
    """Feed the pieces; the messages that came, and the fault that ended it, if one did."""
    got: list[QmpMessage] = []
    try:
        for piece in pieces:
            connection.receive(piece)
            got.extend(connection.messages())
    except QmpProtocolError as error:
        return got, str(error)
    return got, ""


def test_replies_are_matched_by_id_in_any_order() -> None:
    connection = ready()
    first, sent = connection.command("human-monitor-command", {"command-line": 'say "ä"'})
    second, _ = connection.command("stop")
    assert sent.endswith(b"\r\n")
    assert json.loads(sent)["arguments"] == {"command-line": 'say "ä"'}
    got, fault = all_of(
        connection,
        b'{"id": %d, "error": {"class": "GenericError", "desc": "no"}}\r\n' % second,
        STOP + b'{"return": [1, {"a": null}], "id": %d}\n' % first,
    )
    assert got == [
        Refused(second, "GenericError", "no"),
        Event("STOP", {}, 1795331534.439304),
        Returned(first, [1, {"a": None}]),
    ]
    assert fault == ""
    assert connection.outstanding == frozenset()


def test_an_event_may_carry_data_and_a_clock_that_failed() -> None:
    got, _ = all_of(
        ready(),
        b'{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "RESET", "data": {"guest": true}}\r\n',
        b'{"event": "X"}\r\n\r\n',
    )
    assert got == [Event("RESET", {"guest": True}, 0.0), Event("X", {}, 0.0)]


def test_commands_keep_to_the_phase() -> None:
    connection = QmpConnection()
    with pytest.raises(ValueError, match="waiting for the greeting"):
        connection.command("stop")
    connection.receive(GREETING)
    list(connection.messages())
    with pytest.raises(ValueError, match="not yet negotiated"):
        connection.command("stop")
    connection.command("qmp_capabilities")
    with pytest.raises(ValueError, match="not yet negotiated"):
        connection.command("qmp_capabilities")


def test_refused_negotiation_does_not_make_it_ready() -> None:
    connection = QmpConnection()
    connection.receive(GREETING)
    list(connection.messages())
    number, _ = connection.command("qmp_capabilities")
    got, fault = all_of(
        connection, b'{"error": {"class": "GenericError", "desc": "no"}, "id": %d}\n' % number
    )
    assert got == [Refused(number, "GenericError", "no")]
    assert fault == ""
    assert connection.phase is QmpPhase.NEGOTIATING


def test_outstanding_commands_are_limited() -> None:
    connection = ready()
    for _ in range(MAX_OUTSTANDING):
        connection.command("query-status")
    with pytest.raises(MachineError, match="wait for the machine monitor's reply"):
        connection.command("query-status")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"QEMU 7.2.22 monitor - type 'help' for more information", "not JSON"),
        (b'{"return": {}, "id": 99}', "no command of ours"),
        (b'{"return": {}, "id": 1}', "no command of ours"),  # answered before
        (b'{"return": {}, "id": "1"}', "no command of ours"),
        (b'{"return": {}, "id": {}}', "no command of ours"),
        (b'{"return": {}, "id": true}', "no command of ours"),
        (b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}', "no command of ours"),
        (b"[]", "not an object"),
        (b"{}", "no known kind"),
        (GREETING.strip(), "no known kind"),
        (b'{"event": 3}', "another type"),
        (b'{"event": "X", "data": []}', "another type"),
        (b'{"event": "X", "timestamp": 3}', "another type"),
        (b'{"event": "X", "data": {"a": NaN}}', "not JSON"),
        (b'{"event": "\\ud800"}', "not JSON"),
        (b'{"event": "\xff"}', "not JSON"),
        (b'{"event": "X", "data": {"a": ' + b"9" * 5000 + b"}}", "not JSON"),
        (b"[" * 5000 + b"]" * 5000, "nested"),
        (b'{"event": "X", "data": ' + b'{"a":' * MAX_NESTING + b"1" + b"}" * MAX_NESTING + b"}", "nested"),
        (b'"' + b'\\"' * 500_000 + b"[" * 65, "not JSON"),
        (b"[" * 65 + b'"' + b'\\"' * 500_000, "nested"),
    ],
)
def test_a_malformed_message_ends_the_connection_for_good(line: bytes, reason: str) -> None:
    connection = ready(max_line_bytes=2 << 20)
    got, fault = all_of(connection, STOP + line + b"\r\n" + STOP)
    assert [message for message in got if isinstance(message, Event)] == [
        Event("STOP", {}, 1795331534.439304)
    ]
    assert reason in fault
    assert connection.phase is QmpPhase.BROKEN
    assert all_of(connection, STOP) == ([], fault)
    with pytest.raises(QmpProtocolError):
        connection.command("stop")


@pytest.mark.parametrize(
    "line",
    [b"\x00\xff\xfe", b'{"QMP": 3}', b'{"QMP": {"capabilities": 1}}', STOP.strip(), b"$T05#b9", b"login: "],
)
def test_what_does_not_greet_is_not_a_monitor(line: bytes) -> None:
    got, fault = all_of(QmpConnection(), line + b"\n")
    assert got == []
    assert fault.startswith("the machine monitor broke its protocol: it sent ")


@pytest.mark.parametrize(
    "version", [b'"x"', b"{}", b'{"qemu": 1}', b'{"qemu": {"major": 7, "minor": 2}}', b"null"]
)
def test_a_greeting_with_an_odd_version_still_greets(version: bytes) -> None:
    got, _ = all_of(QmpConnection(), b'{"QMP": {"version": %s}}\n' % version)
    assert got == [Greeting("", ())]


def test_nesting_up_to_the_limit_passes_and_brackets_in_strings_do_not_count() -> None:
    deep = (
        b'{"event": "X", "data": ' + b'{"a":' * (MAX_NESTING - 1) + b"1" + b"}" * (MAX_NESTING - 1) + b"}\n"
    )
    flat = b'{"event": "X", "data": {"a": "' + b'\\"[{' * 100 + b'"}}\n'
    got, fault = all_of(ready(), deep, flat)
    assert fault == ""
    assert len(got) == 2


def test_an_endless_line_is_cut_off_without_being_kept() -> None:
    connection = ready(max_line_bytes=1000)
    got, fault = all_of(connection, *[b"x" * 100] * 50)
    assert (got, "more than 1000 bytes" in fault) == ([], True)
    assert len(connection._buffer) == 0
    connection.receive(b"x" * 5000)
    assert len(connection._buffer) == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abz", max_size=4), inner, max_size=4)
    ),
    max_leaves=10,
)
events = st.builds(
    Event, st.text("ABC_", min_size=1), st.dictionaries(st.text("abz"), json_values, max_size=3), st.just(0.0)
)


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in itertools.pairwise(at)]


@given(
    st.lists(events | st.tuples(st.booleans(), json_values), max_size=8),
    st.lists(st.integers(0), max_size=20),
    st.booleans(),
)
def test_any_split_gives_the_same_messages(script: list[Any], cuts: list[int], ascii_only: bool) -> None:
    connection = ready()
    wanted: list[QmpMessage] = []
    stream = b""
    for item in script:
        message: dict[str, Any]
        if isinstance(item, Event):
            wanted.append(item)
            message = {"event": item.name, "data": dict(item.data)}
        else:
            good, value = item
            number, _ = connection.command("x")
            wanted.append(Returned(number, value) if good else Refused(number, "GenericError", str(value)))
            message = {"id": number} | (
                {"return": value} if good else {"error": {"class": "GenericError", "desc": str(value)}}
            )
        stream += json.dumps(message, ensure_ascii=ascii_only).encode() + b"\r\n"
    assert all_of(connection, *split(stream, cuts)) == (wanted, "")
    assert connection.outstanding == frozenset()


garbage = st.lists(
    st.binary(max_size=60)
    | st.sampled_from(
        [b"\n", b"{", b"}", b'"', b"[", b'{"event": "X"}\n', b'{"return": {}, "id": 2}\n', b'"id"', b":"]
    ),
    max_size=30,
).map(b"".join)


@given(garbage, st.lists(st.integers(0), max_size=10), st.booleans())
def test_garbage_gives_messages_or_the_one_error_whatever_the_split(
    stream: bytes, cuts: list[int], greeted: bool
) -> None:
    whole = ready(max_line_bytes=200) if greeted else QmpConnection(max_line_bytes=200)
    pieces = ready(max_line_bytes=200) if greeted else QmpConnection(max_line_bytes=200)
    if greeted:
        whole.command("x")
        pieces.command("x")
    assert all_of(whole, stream) == all_of(pieces, *split(stream, cuts))
    assert len(whole._buffer) <= 200
