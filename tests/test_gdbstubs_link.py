"""The link: what is sent arrives in order, or the link says that it failed."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from rsp.stub import packet

from gdbstubs.errors import LinkFailed
from gdbstubs.link import MOST_QUEUED, REFUSED_SECONDS, RETRIES, Link
from gdbstubs.wire import Control, Notification


def taken(link: Link) -> bytes:
    data = b"".join(link.output)
    link.output.clear()
    return data


def test_a_packet_is_acknowledged_and_delivered() -> None:
    link = Link(100)
    assert link.receive(packet(b"g") + b"\x03", 0) == [b"g", Control.INTERRUPT]
    assert taken(link) == b"+"


def test_a_damaged_packet_is_refused_once_for_each_read() -> None:
    link = Link(100)
    assert link.receive(b"$g#00$g#00$g#00", 0) == []
    assert taken(link) == b"-"


def test_an_over_long_packet_is_acknowledged_and_told() -> None:
    link = Link(4)
    assert link.receive(packet(b"12345"), 0) == [Control.OVERLONG]
    assert taken(link) == b"+"


def test_a_notification_is_not_acknowledged() -> None:
    link = Link(100)
    assert link.receive(b"%" + packet(b"Stop:T05")[1:], 0) == [Notification(b"Stop:T05")]
    assert taken(link) == b""
    link.send_notification(b"Stop:T05")
    assert taken(link) == b"%" + packet(b"Stop:T05")[1:]


def test_the_window_holds_packets_back() -> None:
    link = Link(100, window=2)
    for payload in (b"1", b"2", b"3", b"4"):
        link.send(payload, 0)
    assert taken(link) == packet(b"1") + packet(b"2")
    link.receive(b"+", 0)
    assert taken(link) == packet(b"3")
    link.receive(b"++++++", 0)  # more than were owed; none is for what goes out behind them
    assert taken(link) == packet(b"4")
    assert not link.idle
    link.receive(b"+", 0)
    assert link.idle
    link.send(b"5", 0)
    assert taken(link) == packet(b"5")


def test_a_packet_is_sent_again_when_refused_and_given_up_after_the_last_try() -> None:
    link = Link(100)
    link.send(b"g", 0)
    taken(link)
    for _ in range(RETRIES):
        link.receive(b"-", 0)
        assert taken(link) == packet(b"g")
    with pytest.raises(LinkFailed):
        link.receive(b"-", 0)


def test_a_storm_of_refusals_is_answered_once_for_each_read() -> None:
    link = Link(100)
    link.send(b"g", 0)
    taken(link)
    link.receive(b"-" * 10_000, 0)
    assert taken(link) == packet(b"g")
    assert link.retransmissions == 1


def test_refusals_of_nothing_are_ignored() -> None:
    link = Link(100)
    for _ in range(100):
        link.receive(b"-+-+", 0)
    assert taken(link) == b""


def test_a_packet_without_acknowledgement_is_sent_again_at_its_deadline() -> None:
    link = Link(100, timeout=2.0)
    assert link.deadline is None
    link.send(b"g", 10.0)
    assert link.deadline == 12.0
    taken(link)
    link.expire(11.9)
    assert taken(link) == b""
    now = 10.0
    for _ in range(RETRIES):
        now += 2.0
        link.expire(now)
        assert taken(link) == packet(b"g")
        assert link.deadline == now + 2.0
    with pytest.raises(LinkFailed, match=f"after {RETRIES} retransmissions"):
        link.expire(now + 2.0)


def test_an_acknowledgement_begins_the_tries_of_the_next_packet_anew() -> None:
    link = Link(100, timeout=2.0)
    link.send(b"1", 0)
    link.send(b"2", 0)
    for now in (2.0, 4.0, 6.0):
        link.expire(now)
    link.receive(b"+", 7.0)
    assert link.deadline == 9.0
    taken(link)
    for count in range(RETRIES):
        link.expire(9.0 + 2 * count)
    assert taken(link) == packet(b"2") * RETRIES


@pytest.mark.parametrize("alternating", [True, False])
def test_a_lost_acknowledgement_is_made_up_for_by_the_reply_where_both_sides_alternate(
    alternating: bool,
) -> None:
    link = Link(100, timeout=2.0, alternating=alternating)
    link.send(b"s", 0)
    taken(link)
    assert link.receive(packet(b"T05"), 1.0) == [b"T05"]
    assert taken(link) == b"+"
    link.expire(3.0)
    # A step asked twice would be two steps.
    assert taken(link) == (b"" if alternating else packet(b"s"))


def test_acknowledgements_that_are_late_go_with_the_next_packet_and_before_it() -> None:
    link = Link(100, window=8, late=True)
    link.receive(packet(b"1") + packet(b"2"), 0)
    assert taken(link) == b""
    link.send(b"c", 0)
    assert taken(link) == b"++" + packet(b"c")


def test_a_late_acknowledgement_goes_before_an_interrupt() -> None:
    """QEMU throws away all but `$` until its last packet was acknowledged, 0x03 too."""
    link = Link(100, window=8, late=True)
    link.receive(packet(b"OK"), 0)
    link.send_interrupt()
    assert taken(link) == b"+\x03"
    link.send(b"g", 0)
    assert taken(link) == packet(b"g")


def test_late_acknowledgements_do_not_pile_up() -> None:
    link = Link(100, window=8, late=True)
    for _ in range(10_000):
        link.receive(packet(b"O00"), 0)
    assert len(link._owed) <= 64


def test_no_ack_mode_sends_what_waited_and_acknowledges_nothing() -> None:
    link = Link(100, timeout=1.0)
    for payload in (b"1", b"2", b"3"):
        link.send(payload, 0)
    taken(link)
    link.start_no_ack()
    assert link.no_ack
    assert link.idle
    assert link.deadline is None
    assert taken(link) == packet(b"2") + packet(b"3")
    assert link.receive(b"+-" + packet(b"g") + b"$g#00", 0) == [b"g"]
    assert taken(link) == b""
    link.send(b"4", 0)
    link.send(b"5", 0)
    link.expire(100.0)
    assert taken(link) == packet(b"4") + packet(b"5")


def test_a_peer_that_acknowledges_nothing_is_given_up() -> None:
    link = Link(100)
    for _ in range(MOST_QUEUED + 1):
        link.send(b"g", 0)
    with pytest.raises(LinkFailed, match="unacknowledged"):
        link.send(b"g", 0)
    assert taken(link) == packet(b"g")


class Noisy(RuleBasedStateMachine):
    """A debugger's and a stub's link over a line that loses, damages and splits what is written to it.

    One side asks and the other answers, as in RSP; every payload is different.  A write is spoilt in at most one byte,
    which a sum always shows.  Time passes only when the line is empty: an acknowledgement that is late for longer than
    the time-out cannot be told from one for the next packet.
    """

    @initialize(loses=st.sampled_from(["anything", "acknowledgements"]), alternating=st.booleans())
    def begin(self, loses: str, alternating: bool) -> None:
        self.near = Link(64, timeout=1.0, alternating=alternating)
        self.far = Link(64, timeout=1.0, alternating=alternating)
        self.acknowledgements_only = loses == "acknowledgements"
        # Where a packet counts as an acknowledgement, one that is sent again may be taken for it: then only
        # the order is sure.
        self.complete = self.acknowledgements_only or not alternating
        self.alternating = alternating
        self.repeated = 0
        self.now = 0.0
        self.asked = 0
        self.heard_far: list[bytes] = []
        self.heard_near: list[bytes] = []
        self.failed = False

    def carry(self, chance: Random | None) -> None:
        """Move all that was written, both ways, until the line is silent."""
        for _ in range(200):
            if not self.near.output and not self.far.output:
                return
            for source, sink, heard in (
                (self.near, self.far, self.heard_far),
                (self.far, self.near, self.heard_near),
            ):
                for data in source.output[:]:
                    source.output.remove(data)
                    self.arrive(data, sink, heard, chance)
        raise AssertionError("the line is never silent")

    def arrive(self, data: bytes, sink: Link, heard: list[bytes], chance: Random | None) -> None:
        kind = chance.randrange(6) if chance is not None else 5
        if self.acknowledgements_only and data != b"+":
            kind = 5
        if kind == 0:
            return
        if kind == 1:
            # No byte turns into one that acknowledges: nothing could tell it from a true one.
            place = chance.randrange(len(data)) if chance else 0
            data = data[:place] + bytes([(data[place] ^ 0x40) | 0x80]) + data[place + 1 :]
        cut = chance.randrange(len(data) + 1) if chance is not None and kind == 2 else 0
        for piece in (data[:cut], data[cut:]):
            for event in sink.receive(piece, self.now):
                if isinstance(event, bytes):
                    self.deliver(event, sink, heard)

    def deliver(self, payload: bytes, sink: Link, heard: list[bytes]) -> None:
        if heard and heard[-1] == payload:
            self.repeated += sink is self.far
            return  # sent again because its acknowledgement was lost
        heard.append(payload)
        if sink is self.far:
            sink.send(b"R%x" % len(heard), self.now)

    @precondition(lambda self: not self.failed and len(self.heard_near) == self.asked)
    @rule()
    def ask(self) -> None:
        self.asked += 1
        self.near.send(b"Q%x" % self.asked, self.now)

    @rule(chance=st.integers(0, 1 << 32).map(Random))
    def line_is_noisy(self, chance: Random) -> None:
        self.attempt(lambda: self.carry(chance))

    @rule()
    def line_is_good(self) -> None:
        self.attempt(lambda: self.carry(None))

    @rule()
    def time_passes(self) -> None:
        self.attempt(lambda: self.carry(None))
        self.now += 1.0
        self.attempt(lambda: self.near.expire(self.now))
        self.attempt(lambda: self.far.expire(self.now))

    def attempt(self, action: object) -> None:
        assert callable(action)
        if self.failed:
            return
        try:
            action()
        except LinkFailed:
            self.failed = True

    def teardown(self) -> None:
        if not hasattr(self, "near"):
            return
        for _ in range(2 * RETRIES + 4):
            self.time_passes()
        assert self.heard_far == [b"Q%x" % number for number in range(1, len(self.heard_far) + 1)]
        assert self.heard_near == [b"R%x" % number for number in range(1, len(self.heard_near) + 1)]
        if self.alternating and self.acknowledgements_only:
            assert self.repeated == 0, "a request was sent again though its reply had come"
        if self.complete and not self.failed:
            assert len(self.heard_near) == len(self.heard_far) == self.asked
            assert self.near.idle
            assert self.far.idle


Noisy.TestCase.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestNoisy = Noisy.TestCase


# -- noise ----------------------------------------------------------------------------------------------------


def noisy() -> Link:
    return Link(4096, timeout=1.0)


def test_a_reply_that_comes_twice_answers_one_request() -> None:
    """Our ``+`` was harmed on its way: the stub sends its reply once more, and gives it up at the next request."""
    link = noisy()
    link.send(b"m1000,4", 0)
    assert link.receive(b"+" + packet(b"01020304"), 0.1) == [b"01020304"]
    link.send(b"m2000,4", 0.2)
    taken(link)
    assert link.receive(packet(b"01020304") + b"-", 0.3) == []
    assert link.repeats == 1
    assert taken(link) == b"+"
    link.expire(0.3 + REFUSED_SECONDS)
    assert taken(link) == packet(b"m2000,4")
    # The same bytes are a reply once the request was acknowledged.
    assert link.receive(b"+" + packet(b"01020304"), 0.4) == [b"01020304"]
    link.send(b"m3000,4", 0.5)
    assert link.acknowledged(b"+", 0.6)
    assert link.receive(packet(b"01020304"), 0.7) == [b"01020304"]


def test_what_may_come_twice_is_taken_twice() -> None:
    link = noisy()
    for payload in (b"O68690a", b"T05thread:01;"):
        link.send(b"s", 0)
        for _ in range(2):
            # A step whose acknowledgement was lost, and output: both come again in the same words.
            assert link.receive(packet(payload), 0.1) == [payload]
            link.send(b"s", 0.2)
    silent = Link(4096, timeout=None)
    for _ in range(2):
        assert silent.receive(packet(b"OK"), 0.1) == [b"OK"]


def test_on_a_noisy_line_packets_are_sent_again_sooner_but_for_a_resume() -> None:
    long = b"M1000,400:" + b"00" * 480
    for payload, quiet, loud in (
        (b"m1000,4", 3.0, 1.0),
        (long, 4.0, 2.0),
        (b"c", 3.0, 3.0),
        (b"?", 3.0, 3.0),
    ):
        link = Link(4096, timeout=3.0)
        link.send(payload, 10.0)
        assert link.deadline == pytest.approx(10.0 + quiet, abs=0.05)
        link = Link(4096, timeout=3.0)
        link.receive(b"$harmed#00", 9.0)
        link.send(payload, 10.0)
        assert link.deadline == pytest.approx(10.0 + loud, abs=0.05)


def test_a_refusal_of_another_copy_has_nothing_sent_again_that_is_acknowledged_meanwhile() -> None:
    """Or each packet would have a copy, whose refusal comes at the next: for as long as the connection lasts."""
    link = noisy()
    link.send(b"c", 0)
    taken(link)
    assert link.receive(b"-", 0.1) == []
    assert link.receive(b"+", 0.1 + REFUSED_SECONDS / 2) == []
    assert link.deadline is None
    assert taken(link) == b""


def test_the_refusal_of_a_packet_that_was_sent_anew_is_not_that_of_the_new_one() -> None:
    """Kgdb gives its stop up at the ``$`` of a question, and refuses it when the question was sent anew."""
    link = noisy()
    link.send(b"?", 0)
    assert link.receive(packet(b"T05"), 1.0) == [b"T05"]
    link.send_anew(b"?", 1.0)
    taken(link)
    assert link.receive(b"-", 1.1) == []
    link.expire(1.1 + REFUSED_SECONDS)
    assert taken(link) == b""
    assert link.receive(b"+" + packet(b"S05"), 1.3) == [b"S05"]


def test_what_waits_is_sent_behind_the_acknowledgement_of_what_came_and_is_not_answered_by_it() -> None:
    """Two questions are on their way; the second's answer comes when something else waits already."""
    link = noisy()
    link.send(b"?", 0)
    taken(link)
    assert link.receive(packet(b"T05"), 1.0) == [b"T05"]
    link.send_anew(b"?", 1.0)
    link.send(b"qC", 1.0)
    assert taken(link) == b"+" + packet(b"?")
    assert link.receive(b"+" + packet(b"S05"), 1.1) == [b"S05"]
    assert taken(link) == b"+" + packet(b"qC")
    link.receive(b"-", 1.2)
    link.expire(1.2 + REFUSED_SECONDS)
    assert taken(link) == packet(b"qC")


def test_a_copy_that_met_the_answer_to_the_first_has_nothing_else_sent_again() -> None:
    """Kgdb was slow: it answers the first copy and, at the ``$`` of the second, gives the answer up by a ``-``."""
    link = noisy()
    link.send(b"m1000,4", 0)
    link.expire(1.0)
    taken(link)
    assert link.receive(b"+" + packet(b"01020304"), 1.1) == [b"01020304"]
    link.send(b"m2000,4", 1.2)
    assert taken(link) == b"+" + packet(b"m2000,4")
    assert link.receive(b"-", 1.3) == []
    assert taken(link) == b""
    # One that the peer really refuses is sent again.
    link.receive(b"-", 1.4)
    link.expire(1.4 + REFUSED_SECONDS)
    assert taken(link) == packet(b"m2000,4")
    assert link.receive(b"+" + packet(b"05"), 1.5) == [b"05"]
