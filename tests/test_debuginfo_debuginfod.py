"""Debug files fetched from a real debuginfod, and from servers that are slow, endless, lying, or gone."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from symbols_lab import Image
from test_debuginfo_finders import ONE, TWO, kernel, module
from test_debuginfo_objects import Memory
from test_symbols_modules import kernel_in
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from kbridge.debuginfo import debuginfod, download
from kbridge.debuginfo.debuginfod import Debuginfod, place, prune
from kbridge.debuginfo.download import DownloadFailed, Limits
from kbridge.debuginfo.finders import Finder, read_kernel
from kbridge.debuginfo.kernel import GuestKernel, Kernel, OwnTables
from kbridge.debuginfo.objects import DebuggerObjects
from symbols.kaslr import Linked
from symbols.model import BuildId

reactor: Any = global_reactor
ID = BuildId(ONE.hex())
OTHER = BuildId(TWO.hex())
SECONDS = 60.0
QUICK = Limits(most_bytes=1 << 20, connect_seconds=30, silent_seconds=30, whole_seconds=SECONDS)


def answer(body: bytes, status: str = "200 OK", *more: str, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = [f"HTTP/1.1 {status}", f"Content-Length: {size}", "Connection: close", *more]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


class Visitor(Protocol):
    """One request to the made-up server."""

    request = b""

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        self.request += data
        if b"\r\n\r\n" in self.request:
            self.factory.asked.append(self.request.split(b" ")[1].decode())
            self.factory.behave(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        self.factory.visitors.discard(self)
        self.factory.gone()

    def connectionMade(self) -> None:  # noqa: N802
        self.factory.visitors.add(self)


class Server(Factory):
    """A server on this machine that does what a test says."""

    protocol = Visitor
    noisy = False

    def __init__(self, behave: Callable[[Any], None]) -> None:
        self.behave = behave
        self.asked: list[str] = []
        self.visitors: set[Visitor] = set()
        self._empty: list[Deferred[None]] = []
        self.port: Any = reactor.listenTCP(0, self, interface="127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port.getHost().port}"

    def gone(self) -> None:
        if not self.visitors:
            waiting, self._empty = self._empty, []
            for one in waiting:
                one.callback(None)

    async def close(self) -> None:
        if self.port.connected:
            await self.port.stopListening()
        if self.visitors:
            empty: Deferred[None] = Deferred()
            self._empty.append(empty)
            for one in list(self.visitors):
                one.transport.abortConnection()
            await empty


def says(*answers: bytes) -> Callable[[Any], None]:
    """Answers in turn, the last one for ever."""
    left = list(answers)

    def behave(visitor: Any) -> None:
        visitor.transport.write(left.pop(0) if len(left) > 1 else left[0])
        visitor.transport.loseConnection()

    return behave


def holds(visitor: Any) -> None:
    """Never answers."""


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        await deferLater(reactor, 0.01)


class LabTest(TestCase):
    """Made-up servers, and a client with a folder."""

    timeout = 120

    def setUp(self) -> None:
        parent = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, parent, ignore_errors=True)
        self.dir = parent / "kept"

    def serve(self, behave: Callable[[Any], None]) -> Server:
        server = Server(behave)
        self.addCleanup(lambda: Deferred.fromCoroutine(server.close()))
        return server

    def client(self, *servers: Server | str, limits: Limits = QUICK, **more: Any) -> Debuginfod:
        urls = [one if isinstance(one, str) else one.url for one in servers]
        made = Debuginfod(reactor, urls, self.dir, limits=limits, first_pause_seconds=0.001, **more)
        self.addCleanup(lambda: Deferred.fromCoroutine(made.stop()))
        return made

    def kept(self) -> list[str]:
        return sorted(str(one.relative_to(self.dir)) for one in self.dir.rglob("*") if one.is_file())

    async def fails(self, found: Deferred[Path | None], words: str) -> DownloadFailed:
        with pytest.raises(DownloadFailed, match=words) as caught:
            await found
        assert not any(one.endswith(".part") for one in self.kept())
        return caught.value


class DebuginfodTest(LabTest):
    async def test_a_file_is_fetched_once_and_then_kept(self) -> None:
        server = self.serve(says(answer(module(ONE))))
        client = self.client(server)
        path = await client.find(ID)
        assert path == self.dir / ".build-id" / ID[:2] / f"{ID[2:]}.debug"
        assert path.read_bytes() == module(ONE)
        assert await client.find(ID) == path
        assert await self.client(server).find(ID) == path
        assert server.asked == [f"/buildid/{ID}/debuginfo"]
        assert self.kept() == [str(path.relative_to(self.dir))]

    async def test_other_files_of_a_build_id(self) -> None:
        server = self.serve(says(answer(module(ONE)), answer(b"lines")))
        client = self.client(server)
        ran = await client.find(ID, "executable")
        lines = await client.find(ID, "section/.debug_line")
        assert ran is not None
        assert lines is not None
        assert (ran.name, lines.read_bytes()) == (ID[2:], b"lines")
        assert server.asked == [f"/buildid/{ID}/executable", f"/buildid/{ID}/section/.debug_line"]

    async def test_the_next_server_is_asked_where_one_has_nothing(self) -> None:
        first = self.serve(says(answer(b"not found", "404 Not Found")))
        second = self.serve(says(answer(module(ONE))))
        assert await self.client(first, second).find(ID) is not None
        assert (len(first.asked), len(second.asked)) == (1, 1)

    async def test_that_nobody_has_a_file_is_remembered_for_a_while(self) -> None:
        server = self.serve(says(answer(b"not found", "404 Not Found")))
        client = self.client(server)
        assert await client.find(ID) is None
        assert await self.client(server).find(ID) is None
        assert len(server.asked) == 1
        (absent,) = self.dir.rglob(".*.absent")
        for age in (debuginfod.ABSENT_SECONDS + 60, -3600):
            os.utime(absent, (time.time() - age,) * 2)
            assert await client.find(ID) is None
        assert len(server.asked) == 3
        server.behave = says(answer(module(ONE)))
        os.utime(absent, (1, 1))
        assert await client.find(ID) is not None
        assert not absent.exists()

    async def test_a_server_that_is_in_trouble_is_asked_again(self) -> None:
        server = self.serve(
            says(answer(b"", "503 Service Unavailable"), answer(b"", "429 Slow Down"), answer(module(ONE)))
        )
        assert await self.client(server).find(ID) is not None
        assert len(server.asked) == 3

    async def test_a_server_that_stays_in_trouble_is_given_up_and_not_taken_for_one_without_the_file(
        self,
    ) -> None:
        server = self.serve(says(answer(b"", "500 Broken")))
        other = self.serve(says(answer(b"", "404 Not Found")))
        client = self.client(server, other)
        await self.fails(client.find(ID), "answered 500")
        assert len(server.asked) == debuginfod.TRIES
        assert self.kept() == []

    async def test_what_is_refused_is_not_asked_again(self) -> None:
        server = self.serve(says(answer(b"", "403 Forbidden")))
        error = await self.fails(self.client(server).find(ID), "answered 403")
        assert (len(server.asked), error.status) == (1, 403)

    async def test_the_wrong_file_is_refused_with_both_build_ids(self) -> None:
        server = self.serve(says(answer(module(TWO))))
        await self.fails(self.client(server).find(ID), f"build-id {OTHER}, not of {ID}")
        assert len(server.asked) == 1
        assert self.kept() == []

    async def test_a_page_of_a_portal_is_no_debug_file(self) -> None:
        server = self.serve(says(answer(b"<html>please log in</html>" * 9)))
        await self.fails(self.client(server).find(ID), "cannot be used.*ELF")
        assert self.kept() == []

    async def test_a_cut_off_file_is_fetched_again(self) -> None:
        whole = module(ONE)
        server = self.serve(says(answer(whole[:-40], length=len(whole)), answer(whole)))
        path = await self.client(server).find(ID)
        assert path is not None
        assert path.read_bytes() == whole
        assert len(server.asked) == 2

    async def test_a_cut_off_file_whose_size_nobody_told(self) -> None:
        whole = module(ONE)
        server = self.serve(says(b"HTTP/1.0 200 OK\r\n\r\n" + whole[:-40]))
        await self.fails(self.client(server).find(ID), "cut off")
        server.behave = says(b"HTTP/1.0 200 OK\r\nX-Debuginfod-Size: 9999\r\n\r\n" + whole)
        await self.fails(self.client(server).find(ID), f"cut off after {len(whole)} of 9999")
        server.behave = says(b"HTTP/1.0 200 OK\r\n\r\n" + whole)
        assert await self.client(server).find(ID) is not None

    async def test_a_file_that_says_that_it_is_too_large(self) -> None:
        server = self.serve(says(answer(b"", length=1 << 40)))
        await self.fails(self.client(server).find(ID), f"{1 << 40} bytes, more than the {1 << 20} allowed")
        assert len(server.asked) == 1

    async def test_an_endless_file(self) -> None:
        def behave(visitor: Any) -> None:
            visitor.transport.write(b"HTTP/1.0 200 OK\r\n\r\n")

            class Endless:
                def resumeProducing(self) -> None:  # noqa: N802
                    visitor.transport.write(bytes(1 << 16))

                def stopProducing(self) -> None:  # noqa: N802
                    pass

            visitor.transport.registerProducer(Endless(), False)

        server = self.serve(behave)
        await self.fails(self.client(server).find(ID), "more than 1048576 bytes")
        assert len(server.asked) == 1

    async def test_an_endless_head(self) -> None:
        def behave(visitor: Any) -> None:
            visitor.transport.write(b"HTTP/1.1 200 OK\r\n" + b"X-Another: header\r\n" * 10_000)

        server = self.serve(behave)
        await self.fails(self.client(server).find(ID), ".")
        assert len(server.asked) == debuginfod.TRIES

    async def test_a_server_that_never_answers(self) -> None:
        server = self.serve(holds)
        limits = Limits(silent_seconds=0.05)
        await self.fails(self.client(server, limits=limits).find(ID), "no answer within 0.05 s")

    async def test_a_server_that_hardly_sends_anything(self) -> None:
        def behave(visitor: Any) -> None:
            visitor.transport.write(answer(b"a", length=100_000).replace(b"close", b"keep-alive"))

        server = self.serve(behave)
        # The answer itself begins at once, but on a busy machine not within any time: either is said.
        limits = Limits(silent_seconds=0.3)
        await self.fails(self.client(server, limits=limits).find(ID), "in 0.3 s|within 0.3 s")

    async def test_a_file_that_takes_too_long_as_a_whole(self) -> None:
        server = self.serve(lambda visitor: visitor.transport.write(answer(b"a", length=9)[:-1]))
        limits = Limits(whole_seconds=0.2)
        await self.fails(self.client(server, limits=limits).find(ID), "more than 0.2 s")

    async def test_a_redirection_is_followed(self) -> None:
        store = self.serve(says(answer(module(ONE))))
        server = self.serve(says(answer(b"moved", "302 Found", f"Location: {store.url}/a/b")))
        assert await self.client(server).find(ID) is not None
        assert store.asked == ["/a/b"]

    async def test_redirections_in_a_circle(self) -> None:
        server = self.serve(says(answer(b"", "301 Moved", "Location: /again")))
        await self.fails(self.client(server).find(ID), "redirected more than 5 times")
        assert server.asked == [f"/buildid/{ID}/debuginfo", *["/again"] * 5]

    async def test_redirections_to_what_is_no_server(self) -> None:
        for where in ("file:///etc/passwd", "gopher://a/", "http://[::1", "https://:1/", ""):
            server = self.serve(says(answer(b"", "302 Found", f"Location: {where}")))
            words = "which is not followed" if where else "redirected more than"
            await self.fails(self.client(server).find(ID), words)

    async def test_a_server_that_is_not_there(self) -> None:
        server = self.serve(holds)
        await server.port.stopListening()
        await self.fails(self.client(server).find(ID), "refused")

    async def test_what_is_no_http(self) -> None:
        server = self.serve(says(b"SSH-2.0-OpenSSH\r\n"))
        await self.fails(self.client(server).find(ID), ".")

    async def test_two_who_want_one_file_share_its_download(self) -> None:
        server = self.serve(holds)
        client = self.client(server)
        first, second = client.find(ID), client.find(ID)
        await until(lambda: server.asked, "a request")
        third = client.find(ID)
        assert [(one.build_id, one.kind) for one in client.underway] == [(ID, "debuginfo")]
        (visitor,) = server.visitors
        says(answer(module(ONE)))(visitor)
        assert await first == await second == await third is not None
        assert len(server.asked) == 1
        assert client.underway == ()

    async def test_one_who_leaves_does_not_end_it_for_the_other(self) -> None:
        server = self.serve(holds)
        client = self.client(server)
        first, second = client.find(ID), client.find(ID)
        await until(lambda: server.asked, "a request")
        first.cancel()
        with pytest.raises(CancelledError):
            await first
        (visitor,) = server.visitors
        says(answer(module(ONE)))(visitor)
        assert await second is not None

    async def test_the_last_who_leaves_ends_it_and_who_comes_then_begins_anew(self) -> None:
        server = self.serve(lambda visitor: visitor.transport.write(answer(b"begun", length=9999)))
        client = self.client(server)
        first = client.find(ID)
        await until(lambda: any(one.got for one in client.underway), "the first bytes")
        first.cancel()
        with pytest.raises(CancelledError):
            await first
        server.behave = says(answer(module(ONE)))
        assert await client.find(ID) is not None
        await until(lambda: not server.visitors, "the end of the first download")
        await client.stop()
        assert not any(one.endswith(".part") for one in self.kept())

    async def test_stopping_ends_what_is_under_way(self) -> None:
        server = self.serve(lambda visitor: visitor.transport.write(answer(b"begun", length=9999)))
        silent = self.serve(holds)
        client, other = self.client(server), self.client(silent)
        waiting = [client.find(ID), client.find(OTHER), other.find(ID)]
        await until(lambda: all(one.got for one in client.underway) and silent.asked, "the first bytes")
        await client.stop()
        await other.stop()
        for one in waiting:
            await self.fails(one, "being stopped")
        await until(lambda: not server.visitors and not silent.visitors, "the end of the connections")
        assert self.kept() == []

    async def test_how_far_it_is(self) -> None:
        whole = module(ONE)
        server = self.serve(lambda visitor: visitor.transport.write(answer(whole)[:-10]))
        client = self.client(server)
        found = client.find(ID)
        await until(lambda: any(one.got for one in client.underway), "the first bytes")
        (one,) = client.underway
        assert (one.got, one.size) == (len(whole) - 10, len(whole))
        (visitor,) = server.visitors
        visitor.transport.write(whole[-10:])  # type: ignore[union-attr]
        assert await found is not None

    async def test_a_disk_that_takes_nothing(self) -> None:
        self.dir.write_bytes(b"a file where the folder should be")
        server = self.serve(says(answer(module(ONE))))
        with pytest.raises(OSError, match=r"directory|exists"):
            await self.client(server).find(ID)

    async def test_a_disk_that_is_full_in_the_middle(self) -> None:
        class Full:
            def write(self, data: bytes) -> int:
                raise OSError(28, "No space left on device")

        whole = answer(bytes(3 * download.PIECE_BYTES))
        server = self.serve(lambda visitor: visitor.transport.write(whole))
        with pytest.raises(OSError, match="No space"):
            await download.Downloader(reactor, Limits()).get(server.url, Full())  # type: ignore[arg-type]
        await until(lambda: not server.visitors, "the end of the connection")

    async def test_a_large_file_comes_whole_in_pieces(self) -> None:
        body = os.urandom(5 * download.PIECE_BYTES + 12345)
        server = self.serve(says(answer(body)))
        client = self.client(server, limits=Limits())
        path = await client.find(ID, "section/.debug_info")
        assert path is not None
        assert path.read_bytes() == body

    async def test_what_was_not_used_for_longest_makes_room(self) -> None:
        for moment, build_id in enumerate((TWO, bytes(20)), 1):
            old = place(self.dir, BuildId(build_id.hex()), "debuginfo")
            old.parent.mkdir(parents=True)
            old.write_bytes(module(build_id))
            os.utime(old, (moment, moment))
        server = self.serve(says(answer(module(ONE))))
        client = self.client(server, most_kept_bytes=2 * len(module(ONE)))
        assert await client.find(ID) is not None
        assert place(self.dir, ID, "debuginfo").exists()
        assert place(self.dir, BuildId("00" * 20), "debuginfo").exists()
        assert not place(self.dir, OTHER, "debuginfo").exists()

    async def test_what_a_killed_writer_left_goes_after_a_day(self) -> None:
        folder = self.dir / ".build-id/aa"
        folder.mkdir(parents=True)
        for name, moment in (("old", time.time() - 2 * 86400), ("new", time.time())):
            left = folder / f".{name}.part"
            left.touch()
            os.utime(left, (moment, moment))
        prune(self.dir, 0)
        assert self.kept() == [".build-id/aa/.new.part"]

    async def test_a_certificate_that_nobody_vouches_for_is_refused(self) -> None:
        # Python's own TLS: Twisted's server side would warn of pyOpenSSL's objects.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.dir.mkdir()
        context.load_cert_chain(own_certificate(self.dir / "certificate"))
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(SECONDS)

        def serve() -> str:
            with listener, listener.accept()[0] as visitor:
                visitor.settimeout(SECONDS)
                try:
                    with context.wrap_socket(visitor, server_side=True) as private:
                        return repr(private.recv(100))
                except (ssl.SSLError, OSError) as error:
                    return str(error)

        said = deferToThread(serve)
        client = self.client(f"https://localhost:{listener.getsockname()[1]}", tries=1)
        await self.fails(client.find(ID), "certificate")
        assert "buildid" not in await said


def own_certificate(path: Path) -> Path:
    """A file with a certificate for localhost that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(pem) + secret)
    return path


class KernelTest(LabTest):
    """A guest whose kernel's file nobody has but a server."""

    async def test_a_guest_is_served_its_kernels_file_when_it_has_come(self) -> None:
        memory = Memory()
        memory.image = image = Image()
        source = self.dir.parent / "vmlinux"
        source.write_bytes(kernel(ONE))
        linked = read_kernel(source).linked
        slide = 0x600000
        kernel_in(image, linked, slide)
        server = self.serve(holds)
        client = self.client(server)
        finder = Finder(None, [self.dir / "absent"])
        objects = DebuggerObjects(reactor, "web1", memory, finder, self.dir / "links", servers=client)
        notes = image.read(linked.notes + slide, linked.notes_size)
        own = OwnTables(mock.Mock(), notes, None)
        where = Linked(linked.build_id, linked.notes + slide, linked.notes_size, None)
        bare = Kernel(where, None, "its own symbols", None, own, None, None, None)

        async def by_memory(_: GuestKernel) -> Kernel:
            return bare

        self.patch(GuestKernel, "_by_memory", by_memory)
        assert "none of this build-id" in await objects.describe()
        await until(lambda: server.asked, "a request")
        assert "none of this build-id" in await objects.describe()
        assert f"bytes of build-id {ID}" in await objects.describe()
        assert len(server.asked) == 1
        (visitor,) = server.visitors
        says(answer(kernel(ONE)))(visitor)
        await until(lambda: not client.underway, "the file")
        said = await objects.describe()
        assert str(place(self.dir, ID, "debuginfo")) in said
        assert "0x600000" in said

    async def test_a_guest_without_its_file_asks_seldom(self) -> None:
        memory = Memory()
        server = self.serve(says(answer(b"", "500 Broken")))
        client = self.client(server, tries=1)
        objects = DebuggerObjects(reactor, "web1", memory, Finder(None, []), self.dir, servers=client)
        own = OwnTables(mock.Mock(), b"", None)
        bare = Kernel(Linked(ID, 4096, 36, None), None, "its own symbols", None, own, None, None, None)

        async def look(_: GuestKernel) -> Kernel:
            return bare

        self.patch(GuestKernel, "look", look)
        for _ in range(3):
            assert "none of this build-id" in await objects.describe()
            await until(lambda: not client.underway, "the end of the download")
        assert len(server.asked) == 1


class RealServerTest(TestCase):
    """Debian's own server."""

    timeout = 180
    process: ClassVar[subprocess.Popen[bytes] | None] = None

    def setUp(self) -> None:
        program = shutil.which("debuginfod")
        assert program is not None, "debuginfod is missing: scripts/setup installs it"
        self.dir = Path(tempfile.mkdtemp())
        files = self.dir / "files"
        files.mkdir(parents=True)
        (files / "one.ko").write_bytes(module(ONE))
        source = self.dir / "one.c"
        source.write_text("int main(void) { return 0; }\n")
        subprocess.run(["gcc", "-g", "-Wl,--build-id", "-o", files / "program", source], check=True)
        self.files = files
        self.log = self.dir / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def tearDown(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
        shutil.rmtree(self.dir, ignore_errors=True)

    async def start(self) -> str:
        # The server cannot choose a port itself; another program may take a free one before it does.
        for _ in range(5):
            probe = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
            port = probe.getHost().port
            await probe.stopListening()
            process = self.run_server(port)
            await until(
                partial(lambda one: one.poll() is not None or b"groomed" in self.log.read_bytes(), process),
                "the server's first look at its files",
            )
            if process.poll() is None:
                return f"http://127.0.0.1:{port}"
        raise AssertionError(self.log.read_text())

    def run_server(self, port: int) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["debuginfod", "-v", "-p", str(port), "-d", self.dir / "index", "-c", "2", "-F", self.files],
                stdout=log,
                stderr=log,
            )
        return self.process

    def program_id(self) -> BuildId:
        command = ["readelf", "-n", str(self.files / "program")]
        notes = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return BuildId(notes.split("Build ID:")[1].split()[0])

    async def test_files_are_found_and_absent_ones_are_not(self) -> None:
        url = await self.start()
        build_id = self.program_id()
        client = Debuginfod(reactor, [url], self.dir / "kept")
        program = (self.files / "program").read_bytes()

        async def fetched(kind: str) -> Path | None:
            # It scans in threads of its own: what it does not have yet is not there yet.
            deadline = time.monotonic() + SECONDS
            while (found := await client.find(build_id, kind)) is None and time.monotonic() < deadline:
                for absent in (self.dir / "kept").rglob(".*.absent"):
                    absent.unlink()
                await deferLater(reactor, 0.1)
            return found

        for kind in ("debuginfo", "executable"):
            path = await fetched(kind)
            assert path is not None
            assert path.read_bytes() == program
        lines = await fetched("section/.debug_line")
        assert lines is not None
        assert lines.read_bytes() in program
        assert await client.find(build_id, "section/.nothing") is None
        assert await client.find(BuildId("ab" * 20)) is None
        await client.stop()


@given(st.text(max_size=60), st.text(max_size=60))
def test_only_what_a_server_knows_is_asked_for(build_id: str, kind: str) -> None:
    try:
        path = place(Path("/kept"), BuildId(build_id), kind)
    except ValueError:
        return
    assert path.parent.parent == Path("/kept/.build-id")
    assert os.path.normpath(path) == str(path)


@pytest.mark.parametrize(
    "kind", ["", "debug", "section/", "section/../../x", "section/a/b", "section/.", "source/a.c"]
)
def test_what_is_no_file_of_a_build_id(kind: str) -> None:
    with pytest.raises(ValueError, match="no file"):
        place(Path("/kept"), ID, kind)
