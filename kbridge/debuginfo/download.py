"""A file fetched over HTTP into a file on disk, within limits on everything that the server can make grow.

in          an address, a file to write to
out         the file written, or ``DownloadFailed``
invariant   whatever the server does it ends; when it has ended nothing is connected or open any more

Twisted's ``Agent`` keeps as many header lines as a server sends; here whoever sends more than ``MOST_HEAD_BYTES``
before the contents is hung up on.  Redirections are followed to http and https, and never from https to http.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError, SSLError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.threads import deferToThreadPool
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from kbridge.errors import KbridgeError
from kbridge.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from twisted.internet.interfaces import IDelayedCall

MOST_HEAD_BYTES: Final = 1 << 16
LEAST_BYTES: Final = 1 << 14
"""In each ``silent_seconds``; a server that sends less is as good as silent."""
PIECE_BYTES: Final = 1 << 20
"""What is written at once; as much again may be waiting."""
_AGENT: Final = f"kbridge/{VERSION}"
_OK: Final = 200
_REDIRECTIONS: Final = frozenset((301, 302, 303, 307, 308))
_TOO_MANY: Final = 429
_SERVER_ERRORS: Final = 500


class DownloadFailed(KbridgeError):
    """A file was not fetched; ``is_worth_retrying`` tells whether it may come soon."""

    def __init__(self, what: str, why: str, *, status: int | None = None, retry: bool = True) -> None:
        super().__init__(what, why=why)
        self.status = status
        self.is_worth_retrying = retry


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server may make us wait for and keep."""

    most_bytes: int = 4 << 30
    connect_seconds: float = 10.0
    silent_seconds: float = 90.0
    """Until the answer begins (a server may have to unpack an archive first), then for each ``LEAST_BYTES``."""
    whole_seconds: float = 3600.0
    redirections: int = 5


class Downloader:
    """Fetches files by one reactor's sockets and threads; connections are not kept."""

    def __init__(self, reactor: Any, limits: Limits = Limits()) -> None:
        self._reactor = reactor
        self._limits = limits
        self._agent = Agent.usingEndpointFactory(reactor, _Endpoints(reactor, limits.connect_seconds))

    async def get(
        self, url: str, file: BinaryIO, progress: Callable[[int, int | None], None] = lambda *_: None
    ) -> None:
        """Write what ``url`` has to a file; ``progress`` is told bytes so far and in all, None where that is unknown.

        Raises ``DownloadFailed``, and ``OSError`` when the file cannot be written; a cancelled one hangs up.
        """
        work = Deferred.fromCoroutine(self._get(url, file, progress))
        work.addTimeout(self._limits.whole_seconds, self._reactor)
        try:
            await work
        except DeferredTimeout:
            raise DownloadFailed(url, f"it took more than {self._limits.whole_seconds:g} s") from None

    async def _get(self, url: str, file: BinaryIO, progress: Callable[[int, int | None], None]) -> None:
        asked = url
        for _ in range(self._limits.redirections + 1):
            response = await self._request(asked, url)
            if response.code in _REDIRECTIONS:
                where = response.headers.getRawHeaders(b"location", [b""])[0]
                await _discard(response)
                asked = _redirected(asked, where, url)
                continue
            if response.code != _OK:
                await _discard(response)
                again = response.code == _TOO_MANY or response.code >= _SERVER_ERRORS
                why = f"the server answered {response.code}"
                raise DownloadFailed(url, why, status=response.code, retry=again)
            await self._receive(response, url, file, progress)
            return
        raise DownloadFailed(
            url, f"it was redirected more than {self._limits.redirections} times", retry=False
        )

    async def _request(self, asked: str, url: str) -> Any:
        headers = Headers({"User-Agent": [_AGENT]})
        answer = self._agent.request(b"GET", asked.encode("ascii"), headers)
        # Not ``addTimeout``: the agent tells of a cancelled request in more than one way.
        timer = self._reactor.callLater(self._limits.silent_seconds, answer.cancel)
        try:
            return await answer
        except CancelledError:
            if timer.active():
                raise
        except (ResponseFailed, ConnectError, ConnectionClosed, DNSLookupError, SSLError) as error:
            if timer.active():
                if _was_cancelled(error):
                    raise CancelledError from error
                raise DownloadFailed(url, _reason(error)) from error
        finally:
            if timer.active():
                timer.cancel()
        raise DownloadFailed(url, f"no answer within {self._limits.silent_seconds:g} s")

    async def _receive(
        self, response: Any, url: str, file: BinaryIO, progress: Callable[[int, int | None], None]
    ) -> None:
        most = self._limits.most_bytes
        size = response.length if isinstance(response.length, int) else _size_header(response)
        if size is not None and size > most:
            await _discard(response)
            raise DownloadFailed(url, f"it has {size} bytes, more than the {most} allowed", retry=False)
        body = _Body(self._reactor, self._limits, file, lambda got: progress(got, size))
        response.deliverBody(body)
        try:
            got = await body.ended
        except _TooLarge:
            raise DownloadFailed(url, f"it has more than {most} bytes", retry=False) from None
        except _TooSlow:
            seconds = self._limits.silent_seconds
            raise DownloadFailed(url, f"less than {LEAST_BYTES} bytes came in {seconds:g} s") from None
        except (ResponseFailed, ConnectionClosed, SSLError) as error:
            raise DownloadFailed(url, f"it was cut off: {_reason(error)}") from error
        finally:
            await body.gone
        if size is not None and got != size:
            raise DownloadFailed(url, f"it was cut off after {got} of {size} bytes")


class _TooLarge(Exception):
    """More came than is allowed."""


class _TooSlow(Exception):
    """Nearly nothing came."""


class _Body(Protocol):
    """Writes contents as they come, in a thread; the server waits while more than a piece is to be written."""

    def __init__(self, reactor: Any, limits: Limits, file: BinaryIO, progress: Callable[[int], None]) -> None:
        self._reactor = reactor
        self._limits = limits
        self._file = file
        self._progress = progress
        self._waiting = bytearray()
        self._writing = False
        self._got = 0
        self._got_before = 0
        self._timer: IDelayedCall | None = None
        self._outcome: Failure | None = None
        self._is_over = False
        self.ended: Deferred[Any] = Deferred(lambda _: self._give_up(Failure(CancelledError())))
        """Fires with how many bytes were written; at once when it is cancelled."""
        self.gone: Deferred[None] = Deferred()
        """Fires when the connection is gone and the file is left alone."""

    def connectionMade(self) -> None:  # noqa: N802 (Twisted's name)
        """Begin to look at the clock."""
        self._timer = self._reactor.callLater(self._limits.silent_seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._writing and self._got - self._got_before < LEAST_BYTES:
            self._give_up(Failure(_TooSlow()))
            return
        self._got_before = self._got
        self._timer = self._reactor.callLater(self._limits.silent_seconds, self._look)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 (Twisted's name)
        """Keep bytes, and write them when there are enough."""
        if self._outcome is not None:
            return
        self._got += len(data)
        if self._got > self._limits.most_bytes:
            self._give_up(Failure(_TooLarge()))
            return
        self._waiting += data
        self._progress(self._got)
        if len(self._waiting) >= PIECE_BYTES:
            if self._writing:
                self._transport().pauseProducing()
            else:
                self._write()

    def _write(self) -> None:
        piece = bytes(self._waiting)
        self._waiting.clear()
        self._writing = True
        written = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._file.write, piece)
        written.addCallbacks(self._written, self._not_written)

    def _written(self, _: int) -> None:
        self._writing = False
        if self._is_over:
            self._end()
        else:
            self._transport().resumeProducing()

    def _not_written(self, failure: Failure) -> None:
        self._writing = False
        self._give_up(failure)
        if self._is_over:
            self._end()

    def _give_up(self, failure: Failure) -> None:
        if self._outcome is None:
            self._outcome = failure
        if self.transport is not None:
            self._transport().loseConnection()

    def _transport(self) -> Any:
        return self.transport

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802 (Twisted's name)
        """End, once what came is written."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # A server that tells no size ends by hanging up; whoever knows what the file is sees whether it is whole.
        if self._outcome is None and not reason.check(ResponseDone, PotentialDataLoss):
            self._outcome = reason
        self._is_over = True
        if not self._writing:
            self._end()

    def _end(self) -> None:
        if self._outcome is None and self._waiting:
            self._write()
            return
        if not self.ended.called:
            self.ended.callback(self._got if self._outcome is None else self._outcome)
        self.gone.callback(None)


class _Nothing(Protocol):
    """Hangs up instead of reading contents."""

    def __init__(self) -> None:
        self.gone: Deferred[None] = Deferred(lambda _: None)

    def connectionMade(self) -> None:  # noqa: N802 (Twisted's name)
        """Hang up."""
        transport: Any = self.transport
        transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802 (Twisted's name)
        """Tell that the connection is gone."""
        if not self.gone.called:
            self.gone.callback(None)


async def _discard(response: Any) -> None:
    nothing = _Nothing()
    response.deliverBody(nothing)
    await nothing.gone


def _redirected(asked: str, where: bytes, url: str) -> str:
    try:
        target = urljoin(asked, where.decode("ascii"))
        kind, host = urlsplit(target).scheme, urlsplit(target).hostname
    except ValueError:
        target, kind, host = "", "", None
    allowed = {"https"} if asked.startswith("https:") else {"http", "https"}
    if kind not in allowed or not host or not target.isprintable() or " " in target:
        raise DownloadFailed(url, f"it was redirected to {where[:200]!r}, which is not followed", retry=False)
    return target


def _size_header(response: Any) -> int | None:
    # elfutils, debuginfod(8): the size of the file even where HTTP's own length is not that.
    text = response.headers.getRawHeaders(b"x-debuginfod-size", [b""])[0]
    return int(text) if text.isdigit() and len(text) < len(str(1 << 63)) else None


def _was_cancelled(error: BaseException) -> bool:
    return any(one.check(CancelledError) for one in getattr(error, "reasons", []))


def _reason(error: BaseException) -> str:
    """Return why a connection failed, in words: of a failed response those of what is behind it."""
    reasons = getattr(error, "reasons", None)
    if reasons:
        return _reason(reasons[0].value)
    return str(error).removesuffix(".") or type(error).__name__


class _Head(ProtocolWrapper):
    """Counts what comes before the contents: the first bytes of a connection, until an empty line."""

    def __init__(self, factory: Any, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self._counted = 0
        self._last = b""

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 (Twisted's name)
        """Pass bytes on; hang up when the head is too long."""
        if self._counted >= 0:
            seen = self._last + data
            if b"\r\n\r\n" in seen or b"\n\n" in seen:
                self._counted = -1
            else:
                self._counted += len(data)
                self._last = seen[-3:]
                if self._counted > MOST_HEAD_BYTES:
                    transport: Any = self.transport
                    transport.abortConnection()
                    return
        super().dataReceived(data)  # type: ignore[no-untyped-call]


class _Heads(WrappingFactory):
    protocol = _Head
    noisy = False


class _Endpoint:
    """An endpoint whose connections are watched."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connect(self, factory: Any) -> Deferred[Any]:
        """Connect; what is returned is HTTP's protocol, as the agent wants it."""
        connected: Deferred[Any] = self._inner.connect(_Heads(factory))  # type: ignore[no-untyped-call]
        return connected.addCallback(lambda wrapper: wrapper.wrappedProtocol)


class _Endpoints:
    """Makes the endpoint for an address (Twisted's ``IAgentEndpointFactory``)."""

    def __init__(self, reactor: Any, seconds: float) -> None:
        self._reactor = reactor
        self._seconds = seconds
        self._policy: BrowserLikePolicyForHTTPS | None = None

    def endpointForURI(self, uri: Any) -> _Endpoint:  # noqa: N802 (Twisted's name)
        """Return the endpoint, by TLS for https; certificates are checked as a browser does."""
        endpoint: Any = HostnameEndpoint(self._reactor, uri.host, uri.port, timeout=self._seconds)
        if uri.scheme == b"https":
            # The system's certificates are read when they are first needed.
            self._policy = self._policy or BrowserLikePolicyForHTTPS()
            endpoint = wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)
        return _Endpoint(endpoint)
