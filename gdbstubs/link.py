"""Acknowledgements and retransmission, or their absence in no-ack mode.

Source: GDB manual, "Overview" and "Packet Acknowledgment".

in:      bytes of the peer, payloads to send, the time when a deadline has passed
out:     payloads of the peer, in ``Link.receive``'s result; bytes to send, collected in ``Link.output``
states:  acknowledged · no-ack
invariant: each packet sent in acknowledged mode is acknowledged, retransmitted at most ``retries`` times, or
         reported failed by ``LinkFailed``; at most ``window`` packets are unacknowledged, ``most_queued`` wait

Where requests and replies alternate strictly (``alternating``), the peer's next packet acknowledges as well as
``+`` does: on a noisy line the ``+`` alone may be lost, and asking a stub to step twice is worse than trusting
it.  But where packets may be damaged (``timeout``), one that is the last again, with nothing acknowledged since, is a
repeat: our own ``+`` was harmed on its way.  Times are monotonic seconds of the caller.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from gdbstubs.errors import LinkFailed
from gdbstubs.wire import Control, Event, Framer, Notification, frame

RETRIES: Final = 5
BYTES_A_SECOND: Final = 960
"""Of the slowest line on which a packet's length alone does not have it sent again: 9600 baud."""
NOISY_SECONDS: Final = 1.0
"""The time-out on a line that has harmed a packet: gdb waits two seconds for what takes several.  Not for a resume,
which somebody else would read if it was sent again to a target that runs, nor for a first question, which may be
waiting for the target to stop."""
REFUSED_SECONDS: Final = 0.1
"""How long a packet that seems to be refused may yet be acknowledged before it is sent again, where it may have been
damaged: kgdb also refuses what it does not read, a copy that came while it waited for an acknowledgement, and a packet
sent once more for each such refusal would have a copy in its turn."""
MOST_QUEUED: Final = 1024


class Link:
    """One end of a connection that carries packets.

    ``limit``: longest payload accepted, in bytes.  ``runs``: expand run-length encoding (replies only).
    ``timeout``: seconds until a packet without acknowledgement is sent again, None where the transport
    itself is reliable (a debugger that its user has suspended acknowledges nothing for hours).
    ``window``: how many packets may be on their way at once.  ``alternating``: a packet of the peer
    acknowledges everything sent before it.  ``framed``: packets are delivered with their frame.
    ``late``: acknowledgements go out with the next packet, in one write and before it; for stubs on
    reliable transports, which neither wait for them nor should be woken by them.
    """

    __slots__ = (
        "_alternating",
        "_deadline",
        "_framer",
        "_is_answered",
        "_is_noisy",
        "_is_refused",
        "_last",
        "_late",
        "_no_ack",
        "_overtaken",
        "_owed",
        "_queue",
        "_retries",
        "_sent_late",
        "_timeout",
        "_tries",
        "_unacknowledged",
        "_window",
        "output",
        "repeats",
        "retransmissions",
    )

    def __init__(
        self,
        limit: int,
        *,
        runs: bool = False,
        timeout: float | None = None,
        window: int = 1,
        alternating: bool = True,
        late: bool = False,
        framed: bool = False,
        retries: int = RETRIES,
    ) -> None:
        self._framer = Framer(limit, runs=runs, framed=framed)
        self._timeout = timeout
        self._window = window
        self._alternating = alternating
        self._late = late
        self._owed = b""
        self._retries = retries
        self._no_ack = False
        self._unacknowledged: deque[bytes] = deque()
        self._queue: deque[bytes] = deque()
        self._tries = 0
        self._deadline: float | None = None
        self._last = b""
        self._is_noisy = False  # a packet of the peer was damaged
        self._is_refused = False  # the deadline is that of a packet that seems to be refused
        self._sent_late = 0  # how often the oldest packet was sent again for its deadline
        self._overtaken = 0  # refusals that may come of such copies, of the packet before
        self._is_answered = False  # the last packet came, and nothing of ours was acknowledged since
        self.output: list[bytes] = []
        """What to write to the peer, in order; whoever writes it clears the list."""
        self.retransmissions = 0
        """How many packets were sent again since the beginning."""
        self.repeats = 0
        """How many packets of the peer came twice."""

    @property
    def no_ack(self) -> bool:
        """Whether packets go unacknowledged."""
        return self._no_ack

    @property
    def is_open(self) -> bool:
        """Whether packets go unacknowledged, and what comes next begins between packets."""
        return self._no_ack and self._framer.is_between

    @property
    def deadline(self) -> float | None:
        """When ``expire`` wants to be called, in the caller's monotonic seconds."""
        return self._deadline

    @property
    def noise(self) -> int:
        """How many bytes belonged to no packet."""
        return self._framer.noise

    @property
    def idle(self) -> bool:
        """Whether nothing that was sent still waits for an acknowledgement."""
        return not self._unacknowledged and not self._queue

    def receive(self, data: bytes, now: float) -> list[bytes | Control | Notification]:
        """Take bytes of the peer; return its packets, notifications and interrupts in order.

        ``Control.OVERLONG`` is returned too: the request was acknowledged and will never be answered
        otherwise.  Raises ``LinkFailed`` when a packet was refused too often.
        """
        events = self._framer.feed(data)
        if self._no_ack:
            if len(events) == 1 and type(events[0]) is bytes:
                return events  # the common case, without a second list
            return [event for event in events if event not in _ACKNOWLEDGEMENTS]
        return self._acknowledge(events, now)

    def acknowledged(self, data: bytes, now: float) -> bool:
        """Take bytes of the peer if they are one acknowledgement that is waited for, and nothing else."""
        if data != b"+" or self._queue or not self._framer.is_between:
            return False
        self._acknowledged(now)
        return True

    def _acknowledge(self, events: list[Event], now: float) -> list[bytes | Control | Notification]:
        delivered: list[bytes | Control | Notification] = []
        refused = damaged = False
        for event in events:
            if isinstance(event, bytes):
                if self._is_repeated(event):
                    self._owe()
                    continue
                if self._alternating:
                    self._acknowledge_all(now)
                    self._last, self._is_answered = event, True
                self._owe()
                delivered.append(event)
            elif event is Control.ACK:
                self._acknowledged(now)
            elif event is Control.NACK:
                if self._overtaken:
                    # It was late, not lost: the second copy met the answer to the first.
                    self._overtaken -= 1
                else:
                    refused = bool(self._unacknowledged)
            elif event is Control.DAMAGED:
                damaged = self._is_noisy = True
            else:
                if event is Control.OVERLONG:
                    self._owe()
                delivered.append(event)
        # However many complaints came in one piece, one answer is enough: storms must not be echoed.
        if damaged:
            self.output.append(b"-")
        if refused:
            self._refused(now)
        self._send_waiting(now)
        return delivered

    def _send_waiting(self, now: float) -> None:
        """Send what waited: behind our acknowledgements, and once all was read, which is no answer to it."""
        while self._queue and len(self._unacknowledged) < self._window:
            self._transmit(self._queue.popleft(), now)

    def _is_repeated(self, packet: bytes) -> bool:
        """Whether a packet is the last one again; of output and of stops several alike may follow each other."""
        if not self._alternating or self._timeout is None:
            return False
        waits = self._unacknowledged[0] if self._unacknowledged else b""
        if self._is_answered and packet == self._last and not _is_resume(waits) and not _is_output(packet):
            self.repeats += 1
            return True
        return False

    def _owe(self) -> None:
        if self._late:
            if len(self._owed) < self._window:
                self._owed += b"+"
        else:
            self.output.append(b"+")

    def send(self, payload: bytes, now: float) -> None:
        """Frame a payload and send it as soon as the window allows.

        Raises ``LinkFailed`` when ``MOST_QUEUED`` packets already wait for the peer's acknowledgements.
        """
        self.send_packet(frame(payload), now)

    def send_anew(self, payload: bytes, now: float) -> None:
        """Send what takes the place of the packet before, which the peer lost when it said something else.

        kgdb does when it has a stop to report: it gives it up at a packet's ``$``, and refuses that packet.
        """
        self.send(payload, now)
        self._overtaken = 1

    def send_packet(self, packet: bytes, now: float) -> None:
        """Send a packet that has its frame; like ``send``."""
        if self._no_ack:
            self.output.append(packet)
            return
        if len(self._unacknowledged) >= self._window:
            if len(self._queue) >= MOST_QUEUED:
                raise LinkFailed(f"the peer leaves {MOST_QUEUED} packets unacknowledged")
            self._queue.append(packet)
            return
        self._transmit(packet, now)

    def send_notification(self, payload: bytes) -> None:
        """Send ``%payload#cc``, which nobody acknowledges."""
        self.output.append(b"%" + frame(payload)[1:])

    def send_interrupt(self) -> None:
        """Send the interrupt byte 0x03, after what is owed: QEMU heeds nothing before its acknowledgement."""
        self.output.append(self._owed + b"\x03")
        self._owed = b""

    def start_no_ack(self) -> None:
        """Enter no-ack mode; what was sent so far counts as acknowledged."""
        self._no_ack = True
        if self._owed:
            self.output.append(self._owed)
            self._owed = b""
        self.output.extend(self._queue)
        self._queue.clear()
        self._unacknowledged.clear()
        self._deadline = None

    def expire(self, now: float) -> None:
        """Send the oldest packet again if its deadline has passed.  Raises ``LinkFailed`` after the last try."""
        if self._deadline is not None and now >= self._deadline:
            self._sent_late += not self._is_refused
            self._retransmit(now)

    def _transmit(self, packet: bytes, now: float) -> None:
        self._unacknowledged.append(packet)
        if self._owed:
            packet, self._owed = self._owed + packet, b""
        self.output.append(packet)
        if len(self._unacknowledged) == 1:
            self._start(now)

    def _start(self, now: float) -> None:
        self._tries = 0
        self._is_refused = False
        self._deadline = None if self._timeout is None else now + self._patience(self._timeout)

    def _patience(self, timeout: float) -> float:
        packet = self._unacknowledged[0]
        if self._alternating and self._is_noisy and not (_is_resume(packet) or packet[1:2] == b"?"):
            timeout = min(timeout, NOISY_SECONDS)
        return timeout + len(packet) // (BYTES_A_SECOND // 10) / 10

    def _acknowledged(self, now: float) -> None:
        if not self._unacknowledged:
            return
        self._is_answered = False
        self._overtaken, self._sent_late = self._sent_late, 0
        self._unacknowledged.popleft()
        if self._unacknowledged:
            self._start(now)
        else:
            self._deadline = None

    def _acknowledge_all(self, now: float) -> None:
        for _ in range(len(self._unacknowledged)):
            self._acknowledged(now)

    def _refused(self, now: float) -> None:
        if self._deadline is None or not self._alternating:
            self._retransmit(now)
        elif not self._is_refused:
            self._is_refused = True
            self._deadline = min(self._deadline, now + REFUSED_SECONDS)

    def _retransmit(self, now: float) -> None:
        self._is_refused = False
        if not self._unacknowledged:
            return
        self._tries += 1
        if self._tries > self._retries:
            raise LinkFailed(f"a packet was not acknowledged after {self._retries} retransmissions")
        self.retransmissions += 1
        self.output.append(self._unacknowledged[0])
        if self._timeout is not None:
            self._deadline = now + self._patience(self._timeout)


def _is_resume(packet: bytes) -> bool:
    return packet[1:2] in (b"c", b"s", b"C", b"S")


def _is_output(packet: bytes) -> bool:
    payload = packet[1:-3] if packet[:1] == b"$" else packet
    return payload[:1] == b"O" and payload != b"OK"


_ACKNOWLEDGEMENTS: Final = (Control.ACK, Control.NACK, Control.DAMAGED)
