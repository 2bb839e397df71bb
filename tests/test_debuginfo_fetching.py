"""What servers are asked for on a guest's behalf, and how seldom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from kbridge.debuginfo.debuginfod import ABSENT_SECONDS
from kbridge.debuginfo.download import DownloadFailed
from kbridge.debuginfo.fetching import MOST_REMEMBERED, Fetcher
from symbols.model import BuildId

ONE, TWO, THREE = (BuildId(digit * 40) for digit in "123")


class Servers:
    """What answers when a test says so."""

    def __init__(self) -> None:
        self.asked: list[BuildId] = []
        self.waiting: list[Deferred[Path | None]] = []

    def find(self, build_id: BuildId) -> Deferred[Path | None]:
        self.asked.append(build_id)
        answer: Deferred[Path | None] = Deferred()
        self.waiting.append(answer)
        return answer


class Lab:
    def __init__(self) -> None:
        self.clock = Clock()
        self.servers = Servers()
        self.came: list[tuple[BuildId, Path]] = []
        servers: Any = self.servers
        self.fetcher = Fetcher(self.clock, "web1", servers, lambda *what: self.came.append(what))

    def answer(self, path: Path | None) -> None:
        self.servers.waiting.pop(0).callback(path)


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_one_is_asked_for_at_a_time_and_each_once(lab: Lab) -> None:
    lab.fetcher.want((ONE, TWO))
    lab.fetcher.want((TWO, THREE, ONE))
    assert lab.servers.asked == [ONE]
    lab.answer(Path("/one"))
    lab.answer(None)
    lab.answer(Path("/three"))
    assert lab.servers.asked == [ONE, TWO, THREE]
    assert lab.came == [(ONE, Path("/one")), (THREE, Path("/three"))]
    lab.fetcher.want((ONE, TWO, THREE))
    assert len(lab.servers.asked) == 3
    lab.clock.advance(ABSENT_SECONDS)
    lab.fetcher.want((TWO,))
    assert lab.servers.asked[3:] == [TWO]


def test_a_server_that_fails_is_not_asked_for_the_rest(lab: Lab) -> None:
    lab.fetcher.want((ONE, TWO))
    lab.servers.waiting.pop().errback(DownloadFailed("no file", why="no answer"))
    assert lab.servers.asked == [ONE]
    lab.fetcher.want((ONE, TWO))
    assert lab.servers.asked == [ONE]
    lab.fetcher.want((THREE,))
    assert lab.servers.asked == [ONE, THREE]


def test_what_is_remembered_has_a_limit(lab: Lab) -> None:
    lab.fetcher.want(BuildId(f"{number:040x}") for number in range(3 * MOST_REMEMBERED))
    assert len(lab.fetcher._asked) <= MOST_REMEMBERED
    assert len(lab.fetcher._queue) <= MOST_REMEMBERED
