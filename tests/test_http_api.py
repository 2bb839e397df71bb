"""The API of a real relay: answers, problems, streams, and that the document says what happens."""

from __future__ import annotations

import json
import os
import pwd
import re
import stat
from typing import TYPE_CHECKING, Any

import pytest
from relay_lab import RelayProcess, wait_for

from kbridge.console_client import ConsoleClient
from kbridge.control import Control
from kbridge.frontends.openapi import document
from kbridge.frontends.routes import ROUTES, Answers, Describes, Streams, Upgrades

if TYPE_CHECKING:
    from collections.abc import Iterator

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    relay = RelayProcess()
    relay.start()
    yield relay
    relay.close()


@pytest.fixture(autouse=True)
def _disconnected(relay: RelayProcess) -> Iterator[None]:
    yield
    relay.disconnect()


TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        found: dict[str, Any] = document()["components"]["schemas"][name]
        return found
    return schema


def check(value: Any, schema: dict[str, Any]) -> None:
    """Check a value against the part of JSON Schema that the document uses."""
    schema = resolve(schema)
    if "anyOf" in schema:
        assert any(fits(value, each) for each in schema["anyOf"]), f"{value!r} fits none of {schema['anyOf']}"
        return
    assert value == schema.get("const", value)
    assert value in schema.get("enum", [value])
    if "type" in schema:
        assert isinstance(value, TYPES[schema["type"]]), f"{value!r} is no {schema['type']}"
        assert isinstance(value, bool) == (schema["type"] == "boolean")
    if isinstance(value, dict):
        assert set(schema.get("required", [])) <= set(value)
        for name, each in value.items():
            check(each, schema.get("properties", {}).get(name, {}))
    if isinstance(value, list):
        for each in value:
            check(each, schema.get("items", {}))
    if "pattern" in schema:
        assert re.search(schema["pattern"], value)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    try:
        check(value, schema)
    except AssertionError:
        return False
    return True


def test_every_reference_in_the_document_leads_somewhere() -> None:
    names = re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document()))
    assert set(names) <= set(document()["components"]["schemas"])
    assert "GuestStatus" in names


def test_the_document_is_openapi_3_1(relay: RelayProcess) -> None:
    status, said = relay.json("GET", "/openapi.json")
    assert status == 200
    assert said == document()
    assert said["openapi"].startswith("3.1.")
    assert {"title", "version"} <= set(said["info"])
    ids = set()
    for path, operations in said["paths"].items():
        assert path.startswith("/")
        for method, operation in operations.items():
            assert method in {"get", "post"}
            ids.add(operation["operationId"])
            assert operation["responses"]
            for code, response in operation["responses"].items():
                assert re.fullmatch("[1-5][0-9][0-9]", code)
                assert response["description"]
            declared = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert declared == set(re.findall(r"\{(\w+)\}", path))
            names = [one["name"] for one in operation.get("parameters", [])]
            assert len(names) == len(set(names))
    assert {"power", "break", "log", "console"} <= ids


def valid_body(route_name: str) -> bytes:
    bodies = {
        "power": b'{"action": "pause"}',
        "break": b'{"sysrq": "h"}',
        "boot": b'{"single_user": true}',
        "boot-secret": b'{"run": "4a48c2f3", "asks": "root", "secret": "x"}',
        "capture": b"{}",
        "expect": b'{"script": "send \\"x\\""}',
    }
    return bodies.get(route_name, b"")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
@pytest.mark.parametrize("guest", ["web1", "bare", "nobody"])
def test_every_route_answers_as_the_document_says(relay: RelayProcess, route: Any, guest: str) -> None:
    path = route.path.replace("{name}", guest).replace("{id}", "no-such-crash")
    headers = {"Upgrade": "websocket"} if isinstance(route.action, Upgrades) else {}
    status, data = relay.ask(route.method, path, valid_body(route.name), **headers)
    responses = document()["paths"][route.path][route.method.lower()]["responses"]
    assert str(status) in responses, data
    if status == 200:
        match route.action:
            case Answers(result=result):
                check(json.loads(data), document()["components"]["schemas"][result.__name__])
            case Describes():
                assert json.loads(data)["openapi"]
            case Streams(lines=lines):
                entry = document()["components"]["schemas"][lines.__name__]
                for line in data.splitlines():
                    check(json.loads(line), entry)
            case _:
                pytest.fail("an upgrade that was not asked for properly cannot succeed")
        return
    problem = json.loads(data)
    check(problem, document()["components"]["schemas"]["ProblemDocument"])
    assert problem["status"] == status
    assert problem["detail"]
    kinds = {f"urn:kbridge:problem:{kind.label}" for kind in route.all_problems}
    assert problem["type"] in kinds
    if guest == "nobody" and route.has_guest:
        assert problem["type"].endswith("unknown-guest")
        assert "nobody" in problem["detail"]


def test_the_socket_is_for_its_owner_alone(relay: RelayProcess) -> None:
    assert stat.S_IMODE(relay.control.stat().st_mode) == 0o600


def test_a_guest_is_shown_with_what_it_has(relay: RelayProcess) -> None:
    _, guests = relay.json("GET", "/guests")
    bare, web1 = guests["guests"]
    assert (bare["name"], bare["capabilities"], bare["console"]) == ("bare", [], None)
    assert web1["name"] == "web1"
    assert web1["capabilities"] == ["console"]
    assert web1["console"]["state"] == "open"
    assert web1["record"]["recording"]
    console = str(relay.runtime / "web1" / "console")
    assert web1["sockets"] == {"gdb": None, "gdb_observe": None, "console": console}


def test_power_without_a_monitor_is_a_conflict_that_says_what_to_do(relay: RelayProcess) -> None:
    status, problem = relay.json("POST", "/guests/web1/power", {"action": "reset"})
    assert status == 409
    assert "monitor" in problem["detail"]
    assert "qmp" in problem["hint"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "object"),
        (b'{"action": "explode"}', "action"),
        (b'{"action": "off", "force": "yes"}', "force"),
        (b'{"action": "off", "colour": 1}', "colour"),
        (b'{"action": "off"' + b" " * 1000, "JSON"),
        (b"\xff\xfe", "JSON"),
    ],
)
def test_a_body_that_is_not_valid_is_refused_in_words(relay: RelayProcess, body: bytes, words: str) -> None:
    status, data = relay.ask("POST", "/guests/web1/power", body)
    problem = json.loads(data)
    assert status == 400
    assert words in problem["detail"]


@pytest.mark.parametrize(
    "query",
    ["lines=-1", "lines=x", "since=yesterday", "since=2026-01-01T00:00", "format=xml", "colour=red", "lines=1&lines=2",
     "&".join(f"a{n}=1" for n in range(99)), "lines=%ff"],
)  # fmt: skip
def test_a_query_that_is_not_valid_is_refused(relay: RelayProcess, query: str) -> None:
    status, problem = relay.json("GET", f"/guests/web1/log?{query}")
    assert status == 400
    assert problem["detail"]


def test_a_method_that_a_path_does_not_have(relay: RelayProcess) -> None:
    status, problem = relay.json("DELETE", "/guests/web1")
    assert (status, problem["type"]) == (405, "urn:kbridge:problem:method-not-allowed")
    assert "GET" in problem["detail"]


@pytest.mark.parametrize(
    "path", ["/", "/guests/", "/guests/web1/", "/guests//log", "/guests/web1/log/x", "//version", "*"]
)
def test_a_path_that_is_not_there(relay: RelayProcess, path: str) -> None:
    status, problem = relay.json("GET", path)
    assert (status, problem["type"]) == (404, "urn:kbridge:problem:not-found")


def test_web_pages_are_refused(relay: RelayProcess) -> None:
    for path in ("/version", "/guests/web1/console"):
        status, problem = relay.json("GET", path, Origin="http://localhost")
        assert (status, problem["type"]) == (403, "urn:kbridge:problem:cross-origin")


def test_the_record_in_its_formats(relay: RelayProcess) -> None:
    relay.recorded(b"before\r\n")
    relay.recorded(b"one\r\n\x1b[31mtwo\x1b[0m\r\n\xfethree \xe2\x82\xac\r\n")
    _, raw = relay.ask("GET", "/guests/web1/log?format=raw&lines=3")
    assert raw == b"one\r\n\x1b[31mtwo\x1b[0m\r\n\xfethree \xe2\x82\xac\r\n"
    _, text = relay.ask("GET", "/guests/web1/log?format=text&lines=3")
    assert text.decode() == "one\ntwo\n\\xfethree €\n"
    _, cast = relay.ask("GET", "/guests/web1/log?format=cast&lines=2")
    head, *frames = [json.loads(line) for line in cast.splitlines()]
    assert (head["version"], head["title"]) == (2, "web1")
    assert "".join(frame[2] for frame in frames) == "\x1b[31mtwo\x1b[0m\r\n�three €\r\n"
    _, entries = relay.ask("GET", "/guests/web1/log?lines=1")
    assert json.loads(entries.splitlines()[0])["text"].encode("latin-1") == b"\xfethree \xe2\x82\xac\r\n"


def test_the_record_since_a_moment_that_is_to_come_is_empty(relay: RelayProcess) -> None:
    status, data = relay.ask("GET", "/guests/web1/log?since=2999-01-01T00:00:00Z")
    assert (status, data) == (200, b"")


def test_following_goes_on_until_the_peer_leaves(relay: RelayProcess) -> None:
    with relay.connect() as connection:
        connection.sendall(b"GET /guests/web1/log?follow=true&format=raw&lines=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        assert b"200" in head.splitlines()[0]
        relay.far.say(b"as it comes")
        seen = head.partition(b"\r\n\r\n")[2]
        while b"as it comes" not in seen:
            piece = connection.recv(4096)
            assert piece
            seen += piece


def test_a_record_is_sent_as_fast_as_it_is_read_and_no_faster(relay: RelayProcess) -> None:
    """A reader of 3 MB who does not read makes nothing grow, and gets all of it later."""
    block = b"".join(b"%09d\n" % number for number in range(300_000))
    for start in range(0, len(block), 50_000):
        relay.recorded(block[start : start + 50_000])
    before = relay.resident_bytes
    connections = [relay.connect() for _ in range(20)]
    for connection in connections:
        connection.sendall(b"GET /guests/web1/log?format=raw&lines=300000 HTTP/1.0\r\n\r\n")
        assert connection.recv(1) == b"H"
    assert relay.json("GET", "/version")[0] == 200
    assert relay.resident_bytes - before < 16 << 20
    data = b""
    while piece := connections[7].recv(1 << 20):
        data += piece
    assert data.endswith(block)
    for connection in connections:
        connection.close()


def test_operations_carry_the_name_of_the_caller(relay: RelayProcess) -> None:
    _, problem = relay.json("POST", "/guests/web1/break", {"sysrq": "h"})
    # This line cannot send BREAK; that it was asked for is on the time line all the same.
    assert problem["type"].endswith(":line")
    _, data = relay.ask("GET", "/guests/web1/log?lines=100")
    events = [json.loads(line) for line in data.splitlines()]
    assert {"kind": "operator.break", "by": ME, "sysrq": "h"}.items() <= events[-1].items()


def test_break_is_for_who_has_the_pen(relay: RelayProcess) -> None:
    with ConsoleClient(Control(relay.control), "web1", read_only=False, history=0) as person:
        person.ask({"type": "pen", "action": "take"})
        wait_for(lambda: relay.json("GET", "/guests/web1")[1]["console"]["pen"], "the pen")
        status, problem = relay.json("POST", "/guests/web1/break", {})
        assert (status, problem["type"]) == (409, "urn:kbridge:problem:pen-held")
        assert ME in problem["detail"]
        done = relay.run("break", "web1")
        assert done.returncode == 1
        assert f"{ME} holds the pen of web1; ask them to leave, or take it by --force" in done.stderr
        forced = relay.run("break", "web1", "--force")
        assert "BREAK cannot be sent" in forced.stderr  # by this line
        said = [one.get("text", "") for one in person.messages(1) if isinstance(one, dict)]
        assert f"{ME} (break) took the pen: what you type from now on is discarded" in said
    wait_for(lambda: relay.json("GET", "/guests/web1")[1]["console"]["pen"] is None, "the pen's release")


def test_reload_applies_what_differs(relay: RelayProcess) -> None:
    old = relay.config.read_text()
    try:
        relay.config.write_text(old + "[guests.extra]\n")
        assert relay.json("POST", "/reload") == (200, {"appeared": ["extra"], "gone": [], "changed": []})
        assert relay.json("GET", "/guests/extra")[0] == 200
        relay.config.write_text(old + '[guests.extra]\ncolour = "red"\n[guests.more]\nqmp = "x"\n')
        status, problem = relay.json("POST", "/reload")
        assert (status, problem["type"]) == (422, "urn:kbridge:problem:invalid-configuration")
        assert "guests.extra.colour" in problem["detail"]
        assert "guests.more.qmp" in problem["detail"]
        assert relay.json("GET", "/guests/extra")[0] == 200
    finally:
        relay.config.write_text(old)
        relay.json("POST", "/reload")
    assert relay.json("GET", "/guests/extra")[0] == 404


def test_one_connection_serves_many_requests(relay: RelayProcess) -> None:
    with relay.connect() as connection:
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        seen = b""
        while seen.count(b'"api":1') < 3:
            piece = connection.recv(65536)
            assert piece, seen
            seen += piece


def test_who_follows_a_guest_that_leaves_is_let_go(relay: RelayProcess) -> None:
    old = relay.config.read_text()
    relay.config.write_text(old + "[guests.passing]\n")
    relay.json("POST", "/reload")
    try:
        with relay.connect() as connection:
            connection.sendall(b"GET /guests/passing/log?follow=true HTTP/1.0\r\n\r\n")
            assert connection.recv(1) == b"H"
            relay.config.write_text(old)
            assert relay.json("POST", "/reload")[1]["gone"] == ["passing"]
            wait_for(lambda: not connection.recv(65536), "the end of the answer")
    finally:
        relay.config.write_text(old)
        relay.json("POST", "/reload")
