"""What a debugger is told to read again before a stop, and that it is told the stop all the same, once."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from rsp.debugger import Debugger
from rsp.stub import packet
from rsp.target import PlainTarget

from gdbstubs.server import Server
from gdbstubs.target import SIGINT, Ended, Halted, ThreadId

EXEC = b"exec:" + b"/kbridge/vmlinux-2".hex().encode()
STOP = Halted(5, ThreadId(2), ("swbreak", ""))


class Lab:
    """A debugger that has asked for the main file, on a guest whose kernel changes as `changes` say."""

    def __init__(self, *, later: bool = False, served: bool = True) -> None:
        self.target = PlainTarget()
        self.later = later
        self.waiting: list[Callable[[bytes | None], None]] = []
        self.asked: list[tuple[str, str]] = []
        self.changes: bytes | None = b""
        self.forgotten = 0
        self.target.forget_breakpoints = self._forget  # type: ignore[method-assign]
        self.server = Server(
            self.target, lambda command, done: done(""), library=self.library if served else None
        )
        self.debugger = Debugger(no_ack=True)
        self.send(b"QStartNoAckMode")
        self.send(b"qSupported:swbreak+;error-message+;xmlRegisters=i386")
        self.send(b"?")

    def _forget(self) -> None:
        self.forgotten += 1

    def library(self, kind: str, key: str, done: Callable[[bytes | None], None]) -> None:
        self.asked.append((kind, key))
        match kind:
            case "exec-file":
                done(b"/kbridge/vmlinux-1")
            case "libraries":
                done(b"<library-list></library-list>")
            case "changes" if self.later:
                self.waiting.append(done)
            case "changes":
                done(self.changes)
            case _:
                done(None)

    def send(self, payload: bytes) -> list[bytes]:
        before = len(self.debugger.replies)
        self.debugger.no_ack = self.server._link.no_ack
        self.server.receive(self.debugger.ask(payload))
        return self.heard(before)

    def heard(self, before: int) -> list[bytes]:
        while output := self.server.take_output():
            acks = self.debugger.receive(output)
            if acks:
                self.server.receive(acks)
        return self.debugger.replies[before:]

    def stop(self, stop: Halted | Ended = STOP) -> list[bytes]:
        before = len(self.debugger.replies)
        self.target.halt(stop)
        return self.heard(before)

    def resumes(self) -> int:
        return sum(call[0] == "resume" for call in self.target.calls)


@pytest.fixture
def lab() -> Lab:
    one = Lab()
    assert one.send(b"qXfer:exec-file:read:1:0,1000") == [b"l/kbridge/vmlinux-1"]
    return one


def test_what_is_served_is_announced_and_what_is_not_is_not() -> None:
    wanted = b"qXfer:exec-file:read+;qXfer:libraries:read+"
    for served in (True, False):
        lab = Lab(served=served)
        (features,) = (reply for reply in lab.debugger.replies if reply.startswith(b"PacketSize"))
        assert (wanted in features) is served
        assert lab.send(b"vFile:setfs:0") == [b"F0" if served else b""]
        assert lab.send(b"qXfer:libraries:read::0,1000") == [
            b"l<library-list></library-list>" if served else b""
        ]


def test_nothing_changed_is_a_stop_like_any(lab: Lab) -> None:
    lab.send(b"vCont;c")
    assert lab.stop() == [b"T05thread:2;swbreak:;"]
    assert lab.asked[-1] == ("changes", "")
    assert lab.resumes() == 1


def test_each_change_is_told_first_and_the_stop_last(lab: Lab) -> None:
    lab.changes = EXEC + b" library:"
    lab.send(b"vCont;c")
    assert lab.stop() == [b"T05thread:2;%s;" % EXEC]
    assert lab.forgotten == 1
    # What it reads meanwhile is answered, and the guest stands.
    assert lab.send(b"qAttached") == [b"1"]
    assert lab.send(b"vCont;c") == [b"T05thread:2;library:;"]
    assert lab.send(b"vCont;c") == [b"T05thread:2;swbreak:;"]
    assert lab.resumes() == 1
    lab.changes = b""
    lab.send(b"vCont;c")
    assert lab.resumes() == 2


def test_a_step_is_not_held_up(lab: Lab) -> None:
    lab.changes = b"library:"
    lab.send(b"vCont;s:1;c")
    assert lab.stop() == [b"T05thread:2;swbreak:;"]
    assert ("changes", "") not in lab.asked


def test_who_asked_for_nothing_is_told_of_no_changes() -> None:
    lab = Lab()
    lab.changes = b"library:"
    lab.send(b"vCont;c")
    assert lab.stop() == [b"T05thread:2;swbreak:;"]


def test_changes_that_are_found_later_hold_up_the_stop_until_then() -> None:
    lab = Lab(later=True)
    lab.send(b"qXfer:exec-file:read:1:0,1000")
    lab.send(b"vCont;c")
    assert lab.stop() == []
    before = len(lab.debugger.replies)
    lab.waiting.pop()(b"library:")
    assert lab.heard(before) == [b"T05thread:2;library:;"]
    assert lab.send(b"vCont;c") == [b"T05thread:2;swbreak:;"]


def test_nobody_knows_what_changed_and_the_stop_is_told() -> None:
    lab = Lab(later=True)
    lab.send(b"qXfer:exec-file:read:1:0,1000")
    lab.send(b"vCont;c")
    lab.stop()
    before = len(lab.debugger.replies)
    lab.waiting.pop()(None)
    assert lab.heard(before) == [b"T05thread:2;swbreak:;"]


def test_a_guest_that_ends_while_a_stop_is_held_up_ends_the_session() -> None:
    lab = Lab(later=True)
    lab.send(b"qXfer:exec-file:read:1:0,1000")
    lab.send(b"vCont;c")
    lab.stop()
    before = len(lab.debugger.replies)
    lab.server.end("it is gone")
    assert lab.heard(before)[-1] == b"X09"
    lab.waiting.pop()(b"library:")
    assert lab.heard(before)[-1] == b"X09"
    assert lab.server.finished


def test_requests_sent_before_the_stop_are_answered_after_it_in_order() -> None:
    for changes, later in itertools.product((b"", b"library:"), (False, True)):
        lab = Lab(later=later)
        lab.send(b"qXfer:exec-file:read:1:0,1000")
        lab.changes = changes
        lab.send(b"vCont;c")
        assert lab.send(b"qAttached") == []
        said = lab.stop()
        if later:
            before = len(lab.debugger.replies)
            lab.waiting.pop()(changes)
            said = lab.heard(before)
        assert said == [b"T05thread:2;library:;" if changes else b"T05thread:2;swbreak:;", b"1"]


def test_an_interrupt_while_a_stop_is_held_up_does_no_harm(lab: Lab) -> None:
    lab.later = True
    lab.send(b"vCont;c")
    lab.stop()
    lab.server.receive(b"\x03")
    before = len(lab.debugger.replies)
    lab.waiting.pop()(b"")
    assert lab.heard(before) == [b"T05thread:2;swbreak:;"]
    assert packet(b"") == b"$#00"


# -- what changed while the debugger waits ------------------------------------------------------------------------

OURS = Halted(SIGINT, ThreadId(1))


def interrupts(lab: Lab) -> int:
    return lab.target.interrupts


def test_a_debugger_that_waits_reads_again_and_its_user_sees_no_stop(lab: Lab) -> None:
    lab.send(b"vCont;c")
    lab.changes = EXEC
    lab.server.read_again()
    lab.server.read_again()
    assert interrupts(lab) == 1
    assert lab.stop(OURS) == [b"T05thread:1;%s;" % EXEC]
    lab.changes = b""
    assert lab.send(b"vCont;c:1") == []
    assert lab.resumes() == 2
    assert lab.stop() == [b"T05thread:2;swbreak:;"]


def test_where_nothing_changed_after_all_it_goes_on_by_itself(lab: Lab) -> None:
    lab.send(b"vCont;c")
    lab.server.read_again()
    assert lab.stop(OURS) == []
    assert lab.resumes() == 2
    assert lab.stop() == [b"T05thread:2;swbreak:;"]


def test_a_stop_that_comes_first_is_told(lab: Lab) -> None:
    lab.send(b"vCont;c")
    lab.server.read_again()
    assert lab.stop() == [b"T05thread:2;swbreak:;"]
    lab.send(b"vCont;c")
    assert lab.stop(OURS) == [b"T02thread:1;"]


def test_a_user_who_interrupts_meanwhile_sees_the_stop(lab: Lab) -> None:
    lab.send(b"vCont;c")
    lab.server.read_again()
    lab.server.receive(b"\x03")
    assert lab.stop(OURS) == [b"T02thread:1;"]


@pytest.mark.parametrize("packet", [b"qAttached", b"vCont;s:1;c"])
def test_nobody_is_stopped_who_does_not_wait_for_a_stop(lab: Lab, packet: bytes) -> None:
    lab.send(packet)
    lab.server.read_again()
    assert interrupts(lab) == 0


def test_nobody_is_stopped_who_would_not_read_again() -> None:
    lab = Lab()
    lab.send(b"vCont;c")
    lab.server.read_again()
    assert interrupts(lab) == 0
