"""Guest memory by a debugger's session: pages, what comes between, reading around; the client on a blocking socket."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from symbols_lab import note

from gdbstubs.errors import EAGAIN, EBUSY, EFAULT, EIO, TargetError
from kbridge import blocking_client
from kbridge.blocking_client import BlockingClient
from kbridge.errors import GuestError
from kbridge.memory.read_ahead import LINE_BYTES, MOST_LINES, SECONDS, ReadAhead
from kbridge.memory.session import MOST_BYTES, MOST_TRIES, MOST_UNDER_WAY, SessionMemory
from symbols.kaslr import Linked
from symbols.model import BuildId
from symbols.reads import Read, Search

PAGE = 4096
BASE = 0xFFFF888000000000
ID = "0123456789abcdef0123456789abcdef01234567"
NOTES = note(b"GNU\0", 3, bytes.fromhex(ID))


class Client:
    """A session with some pages mapped; its errors come first."""

    def __init__(self, pages: dict[int, bytes], *errors: TargetError) -> None:
        self.pages = pages
        self.errors = list(errors)
        self.asked: list[list[tuple[int, int]]] = []
        self.is_closed = False

    def read(self, places: list[tuple[int, int]]) -> list[bytes | TargetError]:
        assert not self.is_closed
        self.asked.append(list(places))
        if self.errors:
            return [self.errors.pop(0)] * len(places)
        return [self._page(*one) for one in places]

    def _page(self, address: int, length: int) -> bytes | TargetError:
        offset = address % PAGE
        assert 0 < length <= PAGE - offset, "no read goes over the end of a page"
        page = self.pages.get(address - offset)
        return TargetError(EFAULT) if page is None else page[offset : offset + length]

    def close(self) -> None:
        self.is_closed = True


def pages(count: int, start: int = BASE) -> dict[int, bytes]:
    return {start + at * PAGE: bytes([at + 1]) * PAGE for at in range(count)}


def session(*clients: Client) -> SessionMemory:
    rest: Any = list(clients)
    return SessionMemory("web1", rest.pop(0), lambda: rest.pop(0))


# -- pages ----------------------------------------------------------------------------------------------------


def test_a_read_is_cut_at_pages_and_few_are_under_way() -> None:
    client = Client(pages(40))
    data = session(client).read(BASE + 8, 40 * PAGE - 8)
    assert data == b"".join(client.pages.values())[8:]
    assert [len(one) for one in client.asked] == [MOST_UNDER_WAY, MOST_UNDER_WAY, 8]


def test_a_read_ends_where_memory_does() -> None:
    client = Client({**pages(2), **pages(1, BASE + 3 * PAGE)})
    memory = session(client)
    assert memory.read(BASE + PAGE - 2, 4 * PAGE) == b"\1\1" + b"\2" * PAGE
    assert memory.read(BASE - 8, 16) == b""
    # It does not go on through what is not there.
    client.asked.clear()
    assert memory.read(BASE + 8 * PAGE, 1000 * PAGE) == b""
    assert len(client.asked) == 1


def test_a_search_asks_for_a_batch_at_once() -> None:
    def search() -> Search[tuple[bytes, ...]]:
        return (yield (Read(BASE, 1), Read(BASE - 1, 1), Read(BASE + PAGE - 1, 2)))

    client = Client(pages(2))
    assert session(client).search(search()) == (b"\1", b"", b"\1\2")
    assert len(client.asked) == 1


def test_too_much_is_refused() -> None:
    client = Client({})
    with pytest.raises(GuestError, match="not read at once"):
        session(client).read(BASE, MOST_BYTES + 1)
    assert client.asked == []


# -- what comes between ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("errno", [EAGAIN, EBUSY])
def test_who_comes_too_late_for_a_stop_comes_again(errno: int) -> None:
    first, second = Client(pages(1), TargetError(errno)), Client(pages(1))
    memory = session(first, second)
    assert memory.read(BASE, 2) == b"\1\1"
    assert first.is_closed
    memory.close()
    assert second.is_closed


def test_not_for_ever() -> None:
    clients = [Client(pages(1), TargetError(EAGAIN)) for _ in range(MOST_TRIES + 1)]
    with pytest.raises(GuestError, match="stopped and resumed too quickly; try again"):
        session(*clients).read(BASE, 2)
    assert clients[-1].asked == []


def test_what_the_relay_says_is_passed_on() -> None:
    with pytest.raises(GuestError, match=r"web1 at 0xffff888000000000 was not read: the stub is gone"):
        session(Client(pages(1), TargetError(EIO, "the stub is gone"))).read(BASE, 2)


def test_after_that_the_kernel_must_be_the_one_that_was_found() -> None:
    notes_at = BASE + 16 * PAGE
    kernel = {notes_at: NOTES.ljust(PAGE, b"\0")}
    clients = [
        Client({**pages(1), **kernel}),
        Client({**pages(1), **kernel}),
        Client(pages(1)),
    ]
    memory = session(*clients)
    memory.kernel = Linked(BuildId(ID), notes_at, len(NOTES), None)
    assert memory.read(BASE, 1) == b"\1"
    assert clients[0].asked == [[(BASE, 1)]]
    # Let out of sight and still there: looked at once, with what is read.
    clients[0].errors.append(TargetError(EAGAIN))
    assert memory.read(BASE, 1) == b"\1"
    assert memory.read(BASE, 1) == b"\1"
    assert clients[1].asked == [[(BASE, 1), (notes_at, len(NOTES))], [(BASE, 1)]]
    # Started again in between: not believed before it is there once more.
    clients[1].errors.append(TargetError(EAGAIN))
    for _ in range(2):
        with pytest.raises(GuestError, match="does not show the kernel any more"):
            memory.read(BASE, 1)
    clients[2].pages.update(kernel)
    assert memory.read(BASE, 1) == b"\1"


# -- reading around -------------------------------------------------------------------------------------------


class Source:
    """Memory of which each byte is the count of reads so far."""

    def __init__(self) -> None:
        self.time = 0.0
        self.asked: list[tuple[int, int]] = []
        self.ahead = ReadAhead(self.read, [range(0x1000, 0x3000)], lambda: self.time)

    def read(self, address: int, length: int) -> bytes:
        self.asked.append((address, length))
        return bytes([len(self.asked)]) * (length if address < 0x2000 else 0)


def test_who_reads_byte_by_byte_asks_once() -> None:
    source = Source()
    assert b"".join(source.ahead.read(0x1100 + at, 1) for at in range(LINE_BYTES)) == b"\1" * LINE_BYTES
    assert source.asked == [(0x1100, LINE_BYTES)]
    source.time += SECONDS
    assert source.ahead.read(0x11F8, 8) == b"\1" * 8
    source.time += SECONDS / 2
    assert source.ahead.read(0x11F8, 8) == b"\2" * 8


@pytest.mark.parametrize(
    ("address", "length"),
    [(0xFF8, 8), (0x3000, 8), (0x10FC, 8), (0x1000, LINE_BYTES + 1)],
)
def test_nothing_is_read_around_elsewhere_and_across_lines(address: int, length: int) -> None:
    source = Source()
    source.ahead.read(address, length)
    source.ahead.read(address, length)
    assert source.asked == [(address, length)] * 2


def test_what_is_not_mapped_is_not_made_up() -> None:
    assert Source().ahead.read(0x2000, 8) == b""


def test_few_lines_are_kept() -> None:
    source = Source()
    for _ in range(2):
        for at in range(MOST_LINES + 1):
            source.ahead.read(0x1000 + at % 16 * LINE_BYTES, 1)
    assert len(source.asked) == 16


# -- the client -----------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[tuple[socket.socket, str]]:
    with tempfile.TemporaryDirectory(prefix="kb-") as folder, socket.socket(socket.AF_UNIX) as one:
        path = str(Path(folder) / "gdb")
        one.bind(path)
        one.listen(1)
        yield one, path


def test_nobody_at_the_socket() -> None:
    with pytest.raises(GuestError, match="cannot connect to /nonexistent/gdb: No such file"):
        BlockingClient.connect("/nonexistent/gdb", print)


def test_a_relay_that_goes_away(listener: tuple[socket.socket, str]) -> None:
    def close() -> None:
        peer, _ = listener[0].accept()
        with peer:
            peer.recv(1)

    thread = threading.Thread(target=close)
    thread.start()
    with pytest.raises(GuestError, match="went away: "):
        BlockingClient.connect(listener[1], print)
    thread.join()


def test_a_relay_that_is_silent(listener: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking_client, "ATTACH_SECONDS", 0.2)
    with pytest.raises(GuestError, match=r"did not answer within 0\.2 s"):
        BlockingClient.connect(listener[1], print)


def test_a_relay_that_breaks_the_protocol(listener: tuple[socket.socket, str]) -> None:
    def babble() -> None:
        peer, _ = listener[0].accept()
        with peer:
            try:
                peer.sendall(b"$")
                while True:
                    peer.sendall(b"x" * 65536)
            except OSError:
                return

    thread = threading.Thread(target=babble)
    thread.start()
    with pytest.raises(GuestError, match="broke the protocol"):
        BlockingClient.connect(listener[1], print)
    thread.join()
