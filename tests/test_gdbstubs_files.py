"""Files that are served to a debugger: descriptors, pieces, limits, and names that lead nowhere."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdbstubs.files import MOST_OPEN, Files
from gdbstubs.packets import parse
from gdbstubs.wire import unescape

CONTENTS = {"/kbridge/vmlinux": bytes(range(256)) * 40, "/kbridge/empty": b""}
MOST = 4096


class Lab:
    def __init__(self, *, later: bool = False) -> None:
        self.later = later
        self.asked: list[Callable[[], None]] = []
        self.files = Files(self.find, MOST)

    def find(self, name: str, done: Callable[[bytes | None], None]) -> None:
        if self.later:
            self.asked.append(lambda: done(CONTENTS.get(name)))
        else:
            done(CONTENTS.get(name))

    def do(self, payload: bytes) -> bytes:
        found = parse(payload)
        assert found is not None
        replies: list[bytes] = []
        request: Any = found[1]
        self.files.do(request, replies.append)
        (reply,) = replies
        return reply

    def open(self, name: str = "/kbridge/vmlinux") -> int:
        reply = self.do(b"vFile:open:%s,0,1c0" % name.encode().hex().encode())
        assert reply.startswith(b"F")
        return int(reply[1:], 16)


def attachment(reply: bytes) -> bytes:
    head, _, data = reply.partition(b";")
    whole = unescape(data)
    assert int(head[1:], 16) == len(whole)
    return whole


def test_a_file_is_read_in_pieces_to_its_end() -> None:
    lab = Lab()
    descriptor = lab.open()
    read = b""
    while piece := attachment(lab.do(b"vFile:pread:%x,2000,%x" % (descriptor, len(read)))):
        assert len(piece) <= MOST
        read += piece
    assert read == CONTENTS["/kbridge/vmlinux"]
    assert lab.do(b"vFile:close:%x" % descriptor) == b"F0"
    assert lab.do(b"vFile:pread:%x,10,0" % descriptor) == b"F-1,9"
    assert lab.do(b"vFile:close:%x" % descriptor) == b"F-1,9"


def test_what_a_file_is() -> None:
    lab = Lab()
    data = attachment(lab.do(b"vFile:fstat:%x" % lab.open()))
    mode, size = struct.unpack_from(">I", data, 8)[0], struct.unpack_from(">Q", data, 28)[0]
    assert len(data) == 64
    assert oct(mode) == "0o100444"
    assert size == len(CONTENTS["/kbridge/vmlinux"])
    assert lab.do(b"vFile:fstat:7f") == b"F-1,9"


@pytest.mark.parametrize(
    ("payload", "reply"),
    [
        (b"vFile:open:2f6574632f706173737764,0,0", b"F-1,2"),
        (b"vFile:open:%s,1,0" % b"/kbridge/vmlinux".hex().encode(), b"F-1,1e"),
        (b"vFile:open:%s,202,0" % b"/kbridge/new".hex().encode(), b"F-1,1e"),
        (b"vFile:setfs:0", b"F0"),
        (b"vFile:unlink:2f", b"F-1,1e"),
        (b"vFile:pwrite:3,0,61", b"F-1,1e"),
        (b"vFile:readlink:2f", b"F-1,2"),
        (b"vFile:lstat:2f757372", b"F-1,2"),
        (b"vFile:chmod:2f,7", b""),
    ],
)
def test_nothing_is_written_and_nothing_of_the_host_is_shown(payload: bytes, reply: bytes) -> None:
    assert Lab().do(payload) == reply


def test_descriptors_are_limited_and_used_again() -> None:
    lab = Lab()
    opened = [lab.open() for _ in range(MOST_OPEN)]
    assert len(set(opened)) == MOST_OPEN
    name = b"/kbridge/empty".hex().encode()
    assert lab.do(b"vFile:open:%s,0,0" % name) == b"F-1,18"
    lab.do(b"vFile:close:%x" % opened[3])
    assert lab.open("/kbridge/empty") == opened[3]


def test_files_that_are_found_later_count_against_the_limit_too() -> None:
    lab = Lab(later=True)
    replies: list[bytes] = []
    found = parse(b"vFile:open:%s,0,0" % b"/kbridge/vmlinux".hex().encode())
    assert found is not None
    request: Any = found[1]
    for _ in range(MOST_OPEN + 1):
        lab.files.do(request, replies.append)
    assert replies == [b"F-1,18"]
    for one in lab.asked:
        one()
    assert len(set(replies)) == MOST_OPEN + 1


@given(
    st.lists(
        st.sampled_from(["open", "close", "pread", "fstat", "other"]).flatmap(
            lambda what: st.tuples(st.just(what), st.integers(0, MOST_OPEN + 6), st.integers(0, 1 << 40))
        )
    )
)
def test_any_operations_are_answered_as_files_are(steps: list[tuple[str, int, int]]) -> None:
    lab = Lab()
    known: dict[int, bytes] = {}
    for what, descriptor, offset in steps:
        match what:
            case "open":
                reply = lab.do(b"vFile:open:%s,0,0" % b"/kbridge/vmlinux".hex().encode())
                if len(known) >= MOST_OPEN:
                    assert reply == b"F-1,18"
                else:
                    assert int(reply[1:], 16) not in known
                    known[int(reply[1:], 16)] = CONTENTS["/kbridge/vmlinux"]
            case "close":
                gone = known.pop(descriptor, None)
                assert lab.do(b"vFile:close:%x" % descriptor) == (b"F-1,9" if gone is None else b"F0")
            case "pread":
                reply = lab.do(b"vFile:pread:%x,%x,%x" % (descriptor, MOST, offset))
                if descriptor in known:
                    assert attachment(reply) == known[descriptor][offset : offset + MOST]
                else:
                    assert reply == b"F-1,9"
            case "fstat":
                assert (lab.do(b"vFile:fstat:%x" % descriptor) == b"F-1,9") == (descriptor not in known)
            case _:
                assert lab.do(b"vFile:readlink:2f") == b"F-1,2"
