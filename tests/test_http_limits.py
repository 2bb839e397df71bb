"""What peers of the control socket can do to the relay: nothing."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from line_lab import reactor
from relay_lab import RelayProcess, read_all, wait_for
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from kbridge.frontends import http

if TYPE_CHECKING:
    from collections.abc import Iterator

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    relay = RelayProcess(captures=False)
    relay.start()
    # What is made once is not what these tests look for.
    relay.json("GET", "/openapi.json")
    relay.json("POST", "/guests/web1/power", {"action": "reset"})
    yield relay
    relay.close()


@pytest.fixture(autouse=True)
def _disconnected(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if request.cls is None:
        request.getfixturevalue("relay").disconnect()


def send_all(connection: socket.socket, data: bytes) -> None:
    """Send as much as the relay takes."""
    try:
        connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return


@pytest.mark.parametrize(
    "head",
    [
        b"POST /guests/web1/power HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n",
        b"POST /guests/web1/power HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n",
        b"POST /guests/web1/power HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_a_body_that_is_too_large_is_refused_and_not_kept(relay: RelayProcess, head: bytes) -> None:
    before = relay.resident_bytes
    connection = relay.connect()
    send_all(connection, head)
    piece = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    for _ in range(300):
        send_all(connection, piece)
    answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "urn:kbridge:problem:too-large"
    assert relay.resident_bytes - before < 4 * MEBIBYTE


@pytest.mark.parametrize(
    "head",
    [
        b"GET /version HTTP/1.1\r\n" + b"X: " + b"a" * 20_000,
        b"GET /version HTTP/1.1\r\n" + b"X: a\r\n" * 100 + b"\r\n",
        b"GET /" + b"a" * 20_000,
        b"GET /version HTTP/1.1\r\n"
        + b"".join(b"X%d: %s\r\n" % (n, b"a" * 1000) for n in range(30))
        + b"\r\n",
    ],
)
def test_a_head_that_is_too_large_ends_the_connection(relay: RelayProcess, head: bytes) -> None:
    connection = relay.connect()
    send_all(connection, head)
    answer = read_all(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


def test_requests_of_one_who_does_not_read_answers_are_not_taken(relay: RelayProcess) -> None:
    before = relay.resident_bytes
    connection = relay.connect()
    connection.settimeout(0.5)
    sent = 0
    try:
        while sent < 50 * MEBIBYTE:
            sent += connection.send(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
    except TimeoutError:
        pass
    assert sent < 50 * MEBIBYTE
    assert relay.json("GET", "/version")[0] == 200
    assert relay.resident_bytes - before < 16 * MEBIBYTE


def test_no_more_connections_than_there_may_be(relay: RelayProcess) -> None:
    connections = [relay.connect() for _ in range(http.MAX_CONNECTIONS)]
    wait_for(lambda: relay.ask("GET", "/version")[0] == 503, "a refusal")
    _, problem = relay.json("GET", "/version")
    assert problem["type"] == "urn:kbridge:problem:busy"
    connections.pop().close()
    wait_for(lambda: relay.ask("GET", "/version")[0] == 200, "an answer")


requests = st.lists(
    st.sampled_from(
        [b"GET ", b"POST ", b"/version", b"/guests/web1/log", b"?lines=1&format=", b"?", b"%", b"%00", b"%ff",
         b"/guests/", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/9.9", b"\r\n", b"\r\n\r\n", b"Host: x\r\n",
         b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n",
         b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n", b"Sec-WebSocket-Version: 13\r\n",
         b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", b"Expect: 100-continue\r\n", b"Cookie: \xff=\xfe\r\n",
         b"/guests/web1/console", b": \r\n", b"\0"],
    )
    | st.binary(max_size=60),
    max_size=14,
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests)
def test_garbage_does_no_harm(relay: RelayProcess, pieces: list[bytes]) -> None:
    connection = relay.connect()
    try:
        connection.sendall(b"".join(pieces))
        connection.shutdown(socket.SHUT_WR)
    except OSError:  # the relay closed first, as it may
        pass
    read_all(connection)
    relay.disconnect()
    assert relay.ask("GET", "/version")[0] == 200


def test_the_relay_has_met_no_bug_and_kept_its_size(relay: RelayProcess) -> None:
    assert "Traceback" not in relay.errors.read_text()
    assert relay.resident_bytes < 150 * MEBIBYTE


class SlowRequests(TestCase):
    """In this process, where the deadline can be made short."""

    def setUp(self) -> None:
        self.patch(http, "REQUEST_SECONDS", 1)

    async def test_a_request_that_never_ends_is_given_up(self) -> None:
        factory = http.ControlFactory(reactor, None)  # type: ignore[arg-type]  (no request gets as far)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        reactor.adoptStreamConnection(theirs.fileno(), socket.AF_UNIX, factory)
        theirs.close()
        assert len(factory.channels) == 1

        def drip() -> int:
            ours.settimeout(0.05)
            for count in range(400):
                try:
                    ours.send(b"x")
                    if not ours.recv(100):
                        return count
                except TimeoutError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    return count
            return 400

        with ours:
            drops = await deferToThread(drip)
        assert 10 < drops < 200
        await factory.end()
        assert not factory.channels
