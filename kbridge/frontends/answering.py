"""One request of the control socket: the row of the table that it means, and the answer to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Protocol, assert_never
from urllib.parse import parse_qsl

from pydantic import ValidationError
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from kbridge.errors import KbridgeError
from kbridge.frontends import routes, websockets
from kbridge.frontends.log_stream import LogStream
from kbridge.frontends.openapi import document
from kbridge.frontends.operations import Call
from kbridge.frontends.problems import PROBLEM_TYPE, Kind, Problem, ProblemError, problem_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import BaseModel
    from twisted.python.failure import Failure
    from twisted.web import http

    from kbridge.daemon import Daemon
    from kbridge.frontends.log_stream import PieceReader
    from kbridge.frontends.routes import Route
    from kbridge.frontends.sessions import SocketSession

MAX_QUERY_FIELDS: Final = 16


class Connection(Protocol):
    """What an answer needs of the connection that the request came by."""

    user: str

    @property
    def daemon(self) -> Daemon:
        """The relay."""

    @property
    def reactor(self) -> Any:
        """The reactor."""

    def upgrade(self, connection: Any, answer: bytes, session: SocketSession) -> None:
        """Become a WebSocket."""

    def stream(self, stream: LogStream | None) -> None:
        """Remember the stream that is being sent, or that there is none."""


class Answering:
    """Answers ``request``, which has arrived whole."""

    _log = Logger()

    def __init__(self, request: http.Request, connection: Connection) -> None:
        self._request = request
        self._connection = connection
        self._gone = False

    def start(self) -> None:
        """Begin; there will be one answer, unless the peer goes before."""
        self._request.notifyFinish().addErrback(self._peer_gone)
        deferred: Deferred[None] = Deferred.fromCoroutine(self._serve())
        deferred.addErrback(self._failed)

    def _peer_gone(self, _failure: Failure) -> None:
        self._gone = True

    async def _serve(self) -> None:
        route, call = self._understand()
        match route.action:
            case routes.Answers(run=run):
                result = await run(call)
                self._send(200, "application/json", result.model_dump_json().encode())
            case routes.Streams(run=stream, media_types=media_types):
                form = getattr(call.query, "format", "json")
                self._stream(stream(call), media_types[form])
            case routes.Upgrades(run=session):
                self._upgrade(session(call))
            case routes.Describes():
                self._send(200, "application/json", _dump(document()))
            case _:
                assert_never(route.action)

    def _understand(self) -> tuple[Route, Call]:
        """Find the row of the table and read its parameters; raises ``ProblemError``."""
        if self._request.requestHeaders.hasHeader(b"origin"):
            raise ProblemError(
                Kind.CROSS_ORIGIN, "the request has an Origin", hint="this API is not for web pages"
            )
        found = routes.find(self._request.path)
        if found is None:
            raise ProblemError(
                Kind.NOT_FOUND, "there is no such path", hint="/openapi.json describes those there are"
            )
        upgrade = self._request.requestHeaders.getRawHeaders(b"upgrade", [b""])[0].lower() == b"websocket"
        route = found.row(self._request.method.decode("latin-1"), upgrade=upgrade)
        if route is None:
            allowed = ", ".join(found.methods)
            raise ProblemError(
                Kind.METHOD_NOT_ALLOWED,
                f"this path has {allowed} only",
                headers={"Allow": allowed},
            )
        if isinstance(route.action, routes.Upgrades) and not upgrade:
            raise ProblemError(
                Kind.UPGRADE_REQUIRED,
                "this path is a WebSocket",
                hint="ask for the upgrade",
                headers={"Upgrade": "websocket"},
            )
        body = route.action.body if isinstance(route.action, routes.Answers | routes.Streams) else None
        call = Call(
            self._connection.daemon,
            self._connection.user,
            found.guest,
            self._query(route),
            self._body(body),
            found.crash,
        )
        return route, call

    def _query(self, route: Route) -> BaseModel | None:
        text = self._request.uri.partition(b"?")[2].decode("latin-1")
        try:
            fields = parse_qsl(
                text,
                keep_blank_values=True,
                strict_parsing=bool(text),
                max_num_fields=MAX_QUERY_FIELDS,
                errors="strict",
            )
        except ValueError as error:
            raise ProblemError(Kind.BAD_REQUEST, f"the query cannot be read: {error}") from None
        if len(dict(fields)) != len(fields):
            raise ProblemError(Kind.BAD_REQUEST, "a parameter is given twice")
        if route.query is None:
            if fields:
                raise ProblemError(Kind.BAD_REQUEST, f"there is no parameter {fields[0][0]!r} here")
            return None
        return _validated(lambda model: model.model_validate_strings(dict(fields)), route.query)

    def _body(self, model: type[BaseModel] | None) -> BaseModel | None:
        content = self._request.content
        assert content is not None
        data: bytes = content.read()
        if model is None:
            if data:
                raise ProblemError(Kind.BAD_REQUEST, "this request has no body")
            return None
        return _validated(lambda model: model.model_validate_json(data, strict=True), model)

    # Answers.

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, ProblemError):
            self._send_problem(error.problem, error.headers)
        elif isinstance(error, KbridgeError):
            self._send_problem(problem_of(error))
        else:
            self._log.failure("a bug in {path}", failure, path=self._request.path)
            self._send_problem(Problem(Kind.INTERNAL, "this was not foreseen", "see the log of `kbridge up`"))

    def _send_problem(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        for name, value in (headers or {}).items():
            self._request.setHeader(name.encode(), value.encode())
        self._send(problem.kind.status, PROBLEM_TYPE, _dump(problem.as_json()))

    def _send(self, status: int, media_type: str, body: bytes) -> None:
        if self._gone:
            return
        self._request.setResponseCode(status)
        self._request.setHeader(b"content-type", media_type.encode())
        self._request.setHeader(b"content-length", b"%d" % len(body))
        self._request.setHeader(b"cache-control", b"no-store")
        self._request.write(body)
        self._request.finish()

    def _stream(self, reader: PieceReader, media_type: str) -> None:
        if self._gone:
            reader.close()
            return
        self._request.setHeader(b"content-type", media_type.encode())
        self._request.setHeader(b"cache-control", b"no-store")
        stream = LogStream(
            self._connection.reactor, self._request, reader, lambda: self._connection.stream(None)
        )
        self._connection.stream(stream)
        stream.start()

    def _upgrade(self, session: SocketSession) -> None:
        raw = self._request.requestHeaders.getAllRawHeaders()
        headers = [(name, value) for name, values in raw for value in values]
        try:
            connection, answer = websockets.accept(headers, self._request.uri)
        except ValueError as error:
            session.stop()
            raise ProblemError(Kind.BAD_REQUEST, str(error)) from None
        self._connection.upgrade(connection, answer, session)


def _validated(read: Callable[[type[BaseModel]], BaseModel], model: type[BaseModel]) -> BaseModel:
    try:
        return read(model)
    except ValidationError as error:
        mistakes = [
            ".".join(str(part) for part in each["loc"]) + f": {each['msg']}"
            for each in error.errors(include_url=False, include_input=False)
        ]
        raise ProblemError(Kind.BAD_REQUEST, "; ".join(mistakes)) from None


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()
