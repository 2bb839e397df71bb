"""What a round of the streams' poller serves, and what survives a stream's end or a bug in it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from twisted.logger import LogEvent, formatEvent

from kbridge.transports.stream_poller import StreamPoller
from kbridge.transports.streams import Stream


class Reactor:
    """Notes whether it is asked to watch; the test calls ``doRead`` as it would."""

    def __init__(self) -> None:
        self.watched: list[object] = []

    def addReader(self, reader: object) -> None:  # noqa: N802 (Twisted's names)
        assert reader not in self.watched
        self.watched.append(reader)

    def removeReader(self, reader: object) -> None:  # noqa: N802
        self.watched.remove(reader)


class Lab:
    def __init__(self) -> None:
        self.reactor = Reactor()
        self.order: list[str] = []
        self.settling: Callable[[], None] = lambda: None
        self.poller = StreamPoller(self.reactor, self.settled)
        self.far: dict[str, socket.socket] = {}
        self.streams: dict[str, Stream] = {}
        self.lost: dict[str, str] = {}

    def settled(self) -> None:
        self.order.append("settle")
        self.settling()

    def open(self, name: str, received: Callable[[bytes], None] | None = None) -> Stream:
        near, self.far[name] = socket.socketpair()
        stream = Stream(
            self.poller,
            near,
            received or (lambda data: self.order.append(f"{name}:{data.decode()}")),
            lambda why: self.lost.update({name: why}),
        )
        self.streams[name] = stream
        return stream

    def close(self) -> None:
        for stream in self.streams.values():
            stream.abort("the test is over")
        for far in self.far.values():
            far.close()
        assert not self.reactor.watched
        self.poller.close()
        assert self.poller.fileno() == -1


@pytest.fixture
def lab() -> Iterator[Lab]:
    one = Lab()
    yield one
    one.close()


def logged(errors: list[LogEvent]) -> list[str]:
    """Take the errors that a test has caused."""
    texts = [formatEvent(event) for event in errors]
    errors.clear()
    return texts


def test_all_that_are_ready_are_served_before_one_settling(lab: Lab) -> None:
    for name in "abc":
        lab.open(name)
    for name in "ac":
        lab.far[name].sendall(b"x")
    lab.poller.doRead()
    assert sorted(lab.order[:2]) == ["a:x", "c:x"]
    assert lab.order[2:] == ["settle"]


def test_nothing_ready_settles_nothing(lab: Lab) -> None:
    lab.open("a")
    lab.poller.doRead()
    assert lab.order == []


def test_what_settling_leads_to_is_served_in_the_same_turn(lab: Lab) -> None:
    lab.open("a")
    lab.open("b")
    answers = [b"one", b"two"]

    def answer() -> None:
        if answers:
            lab.far["b"].sendall(answers.pop(0))

    lab.settling = answer
    lab.far["a"].sendall(b"x")
    lab.poller.doRead()
    assert lab.order == ["a:x", "settle", "b:one", "settle", "b:two", "settle"]


def test_a_peer_that_never_stops_leaves_the_reactor_its_turn(lab: Lab) -> None:
    lab.open("a")
    lab.settling = lambda: lab.far["a"].sendall(b"x")
    lab.far["a"].sendall(b"x")
    lab.poller.doRead()
    assert lab.order[:2] == ["a:x", "settle"]
    assert lab.order.count("settle") == lab.order.count("a:x") > 1


def test_a_stream_closed_by_another_in_its_round_is_not_served(lab: Lab) -> None:
    def closing(other: str) -> Callable[[bytes], None]:
        def received(data: bytes) -> None:
            lab.order.append(data.decode())
            lab.streams[other].abort("by its neighbour")

        return received

    lab.open("a", closing("b"))
    lab.open("b", closing("a"))
    for name in "ab":
        lab.far[name].sendall(name.encode())
    lab.poller.doRead()
    assert lab.order in (["a", "settle"], ["b", "settle"])


def test_the_end_of_a_peer_is_told_and_the_others_go_on(lab: Lab) -> None:
    lab.open("a")
    lab.open("b")
    lab.far["a"].close()
    lab.poller.doRead()
    lab.far["b"].sendall(b"x")
    lab.poller.doRead()
    assert lab.lost == {"a": "the peer closed the connection"}
    assert "b:x" in lab.order


def test_what_a_slow_peer_leaves_is_sent_when_it_reads(lab: Lab) -> None:
    stream = lab.open("a")
    wanted = bytes(range(256)) * 8192
    stream.send(wanted)
    stream.close()
    heard = bytearray()
    lab.far["a"].settimeout(20)
    while len(heard) < len(wanted):
        heard += lab.far["a"].recv(1 << 20)
        lab.poller.doRead()
    assert bytes(heard) == wanted
    assert lab.lost == {"a": "closed"}


def test_a_bug_in_one_stream_ends_that_stream_only(lab: Lab, logged_errors: list[LogEvent]) -> None:
    def bug(data: bytes) -> None:
        raise ZeroDivisionError("on purpose")

    lab.open("a", bug)
    lab.open("b")
    for name in "ab":
        lab.far[name].sendall(b"x")
    lab.poller.doRead()
    assert "a bug" in lab.lost["a"]
    assert list(lab.lost) == ["a"]
    assert lab.order == ["b:x", "settle"]
    assert logged(logged_errors) == ["a bug in serving a stream"]


def test_a_bug_in_settling_leaves_the_streams(lab: Lab, logged_errors: list[LogEvent]) -> None:
    def bug() -> None:
        raise ZeroDivisionError("on purpose")

    lab.open("a")
    lab.settling = bug
    lab.far["a"].sendall(b"x")
    lab.poller.doRead()
    lab.settling = lambda: None
    lab.far["a"].sendall(b"y")
    lab.poller.doRead()
    assert lab.order == ["a:x", "settle", "a:y", "settle"]
    assert logged(logged_errors) == ["a bug in settling what streams have brought"]
