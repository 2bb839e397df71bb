"""A debugger's end of a connection to the relay, without I/O: packets to bytes, bytes to replies.

It is strict: what the relay sends must be whole packets with right checksums and acknowledgements, no more.
"""

from __future__ import annotations

import re
from collections import deque

from rsp.stub import packet

_WHOLE = re.compile(rb"\$([^$#]*)#([0-9a-f]{2})", re.DOTALL)
RESUMES = re.compile(rb"vCont(?!\?)|[cCsSb]")
STOPS = (b"T", b"S", b"W", b"X")


class Debugger:
    """One debugger; `check` compares the replies with what was asked, in order."""

    def __init__(self, *, no_ack: bool = False) -> None:
        self.no_ack = no_ack
        self.replies: list[bytes] = []
        """Each reply, in order; console output while it waited stands before it, as it came."""
        self.answered: list[tuple[bytes, bytes]] = []
        self.words: list[str] = []
        self.asked: deque[bytes] = deque()
        self.acks = 0
        self.nacks = 0
        self._buffer = b""

    def ask(self, payload: bytes) -> bytes:
        """The bytes that send a request."""
        self.asked.append(payload)
        return packet(payload)

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the relay; give the acknowledgements for them."""
        self._buffer += data
        acks = b""
        while self._buffer:
            first = self._buffer[:1]
            if first == b"+":
                assert not self.no_ack, "an acknowledgement in no-ack mode"
                self.acks += 1
                self._buffer = self._buffer[1:]
            elif first == b"-":
                self.nacks += 1
                self._buffer = self._buffer[1:]
            else:
                whole = _WHOLE.match(self._buffer)
                if whole is None:
                    assert first == b"$", f"the relay sent {self._buffer[:40]!r}"
                    assert b"#" not in self._buffer[:-2], f"the relay sent {self._buffer[:40]!r}"
                    break
                payload, digits = whole.groups()
                assert int(digits, 16) == sum(payload) % 256
                self._buffer = self._buffer[whole.end() :]
                acks += b"" if self.no_ack else b"+"
                self._take(payload)
        return acks

    def _take(self, payload: bytes) -> None:
        self.replies.append(payload)
        request = self.asked[0] if self.asked else b""
        waits = RESUMES.match(request) is not None
        if payload[:1] == b"O" and payload != b"OK" and (waits or request.startswith(b"qRcmd")):
            self.words.append(bytes.fromhex(payload[1:].decode()).decode())
            return
        assert self.asked, f"{payload!r} answers nothing"
        self.asked.popleft()
        self.answered.append((request, payload))
        if request == b"QStartNoAckMode" and payload == b"OK":
            self.no_ack = True

    @property
    def waits(self) -> bool:
        """Whether a resume was asked and not answered."""
        return bool(self.asked) and RESUMES.match(self.asked[0]) is not None
