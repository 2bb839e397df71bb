"""Who is told of crashes from outside: a program that is run, an address that is sent to."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from kbridge.crash import hooks
from kbridge.crash.hooks import DELIVERY, MOST_WAITING, SIGNATURE, Hook, run_command, send
from kbridge.errors import GuestError


class Receiver(Resource):
    """Answers with the codes it was given, then with 204."""

    isLeaf = True  # noqa: N815 (Twisted's name)

    def __init__(self, *codes: int) -> None:
        super().__init__()
        self.codes = list(codes)
        self.came: list[tuple[dict[str, str], bytes]] = []

    def render_POST(self, request: Any) -> bytes:  # noqa: N802 (Twisted's name)
        headers = {
            name.decode().lower(): values[0].decode()
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        self.came.append((headers, request.content.read()))
        request.setResponseCode(self.codes.pop(0) if self.codes else 204)
        return b""


class Hooks(TestCase):
    timeout = 30

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.report = tmp_path / "report.json"
        self.report.write_text(json.dumps({"title": "kernel panic: x"}))

    def serve(self, *codes: int) -> tuple[Receiver, str]:
        receiver = Receiver(*codes)
        port: Any = reactor.listenTCP(0, Site(receiver), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return receiver, f"http://127.0.0.1:{port.getHost().port}/hook"

    async def test_what_is_sent_is_signed_over_its_bytes(self) -> None:
        receiver, url = self.serve()
        key = self.folder / "key"
        key.write_bytes(b"secret\n")
        said = await send(reactor, url, key, "20260921-141320-web1", self.report)
        assert said == "status 204, try 1"
        ((headers, body),) = receiver.came
        assert body == self.report.read_bytes()
        wanted = hmac.new(b"secret", body, hashlib.sha256).hexdigest()
        assert headers[SIGNATURE.lower()] == f"sha256={wanted}"
        assert headers[DELIVERY.lower()] == "20260921-141320-web1"
        assert headers["content-type"] == "application/json"

    async def test_it_is_tried_again_where_that_may_help(self) -> None:
        receiver, url = self.serve(503, 429)
        said = await send(reactor, url, None, "x", self.report, pauses=(0.01, 0.01, 0.01))
        assert said == "status 204, try 3"
        assert SIGNATURE.lower() not in receiver.came[0][0]
        assert {headers[DELIVERY.lower()] for headers, _ in receiver.came} == {"x"}
        receiver, url = self.serve(403)
        with pytest.raises(GuestError, match="status 403"):
            await send(reactor, url, None, "x", self.report, pauses=(0.01,))
        assert len(receiver.came) == 1

    async def test_nobody_there_is_told_after_the_last_try(self) -> None:
        with pytest.raises(GuestError, match=r"could not be sent to http://127.0.0.1:1/"):
            await send(reactor, "http://127.0.0.1:1/", None, "x", self.report, pauses=(0.01,))

    async def test_a_program_gets_the_path_behind_its_arguments(self) -> None:
        code = "import json,sys; print('noise'); print(sys.argv[1], json.load(open(sys.argv[2]))['title'])"
        said = await run_command(reactor, [sys.executable, "-c", code, "told"], "x", self.report)
        assert said == "told kernel panic: x"

    async def test_a_program_that_fails_or_hangs_or_is_not_there(self) -> None:
        code = "import sys; print('not today', file=sys.stderr); sys.exit(3)"
        with pytest.raises(GuestError, match="status 3: not today"):
            await run_command(reactor, [sys.executable, "-c", code], "x", self.report)
        with patch.object(hooks, "COMMAND_SECONDS", 0.5), pytest.raises(GuestError, match="did not end"):
            await run_command(
                reactor, [sys.executable, "-c", "import time; time.sleep(60)"], "x", self.report
            )
        with pytest.raises(GuestError, match="status"):
            await run_command(reactor, ["/no/such/program"], "x", self.report)

    async def test_one_after_the_other_and_not_without_end(self) -> None:
        events: list[dict[str, Any]] = []
        started: list[str] = []
        gate: Deferred[None] = Deferred()

        async def slow(crash: str, _: Path) -> str:
            started.append(crash)
            if crash == "0":
                await gate
            if crash == "1":
                raise GuestError("it refused")
            return f"told {crash}"

        hook = Hook("x", slow, lambda kind, **fields: events.append(fields))
        for number in range(MOST_WAITING + 2):
            hook.tell(str(number), self.report)
        assert started == ["0"]
        assert events == [{"what": "x", "id": str(MOST_WAITING + 1), "error": "100 wait already"}]
        gate.callback(None)
        assert len(started) == MOST_WAITING + 1
        assert events[1:4] == [
            {"what": "x", "id": "0", "said": "told 0"},
            {"what": "x", "id": "1", "error": "it refused"},
            {"what": "x", "id": "2", "said": "told 2"},
        ]

    async def test_a_hook_that_is_stopped_does_nothing_more(self) -> None:
        events: list[Any] = []

        async def never(crash: str, _: Path) -> str:
            await Deferred()
            return crash

        hook = Hook("x", never, lambda kind, **fields: events.append(fields))
        hook.tell("a", self.report)
        hook.tell("b", self.report)
        hook.stop()
        assert events == []
