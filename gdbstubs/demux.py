"""One serial line that carries a console's text, kdb's prompt and kgdb's packets: which byte is whose.

Source: Linux, kernel/debug/gdbstub.c (``get_packet``, ``put_packet``, ``kgdb_console_write``) and
kernel/debug/kdb/kdb_io.c; ``docs/serial-line.md`` has the rules in words, a picture, and what cannot be told apart.

in:      bytes of the guest; what was sent to the stub; what a user types; break-ins; time
out:     ``output``, in order: ``Console``, ``Stub`` (acknowledgements and packets as they stood), ``Again`` (a reply
         was harmed), and what ``keys`` gives: ``Typing`` (to be sent to the guest) and ``Told``; ``counts``
states:  runs (text; a packet needs its checksum, a form that is expected, and silence after it) · held (packets count
         at once) · doubt (text came from a guest that is held: packets need silence again)
invariant: each byte of the guest goes to the console or to the stub, once, in its order; the outputs depend on the
         bytes and their times only, not on how the bytes were split; no more than ``MOST_PACKETS`` packets or 8 KiB are
         kept, for no longer than ``UNFINISHED`` (held: ``UNFINISHED_REPLY``) after the last byte

Times are the caller's monotonic seconds.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gdbstubs.keys import Keys, Told, Typing
from gdbstubs.wire import checksum

SILENCE: Final = 0.005
"""Seconds of silence that make a packet of what looks like one: kgdb waits for its acknowledgement."""
UNFINISHED: Final = 0.050
"""Seconds of silence after which the beginning of a packet is text."""
UNFINISHED_REPLY: Final = 1.0
"""The same in a reply that is waited for, of a guest that is held: nothing else can be on the line."""
AGAIN: Final = 0.3
"""Seconds of silence behind text where a reply is owed, after which the link is to ask for it again."""
LONGEST: Final = 4096
"""Bytes of a payload.  kgdb's ``BUFMAX`` is 1024 on x86, 2048 on arm64."""
MOST_PACKETS: Final = 16
"""Packets one after the other: kgdb repeats one for each byte that it reads and is no acknowledgement."""
MOST_DAMAGED: Final = 16
"""Damaged packets in turn after which a guest that was believed to be held is doubted."""
MOST_DOUBT: Final = 512
"""Bytes of text after which a guest that was believed to be held runs: it was reset, or resumed by somebody else."""
_MOST_ACKS: Final = 8

# Without '#', '$' and what a C string of kgdb's never has.
_ASKED_WHOLE: Final = re.compile(rb'\$((?:[!"%-~][ !"%-~]*)?)#([0-9a-f]{2})[+-]{0,8}')
_ASKED_PART: Final = re.compile(rb'\$(?:[!"%-~][ !"%-~]*)?(?:#[0-9a-f]?)?')
_UNASKED_WHOLE: Final = re.compile(
    rb"\$(T[0-9a-f]{2}[0-9A-Za-z:;,.-]*|[SWE][0-9a-f]{2}|O(?:[0-9a-f]{2})+)#([0-9a-f]{2})"
)
# The answer to ``?``, which alone may be sent to a kernel that runs and waits in its UART, perhaps for long.
_STOP_WHOLE: Final = re.compile(_UNASKED_WHOLE.pattern + rb"[+-]{0,8}")
# A ``$`` that was typed makes kgdb give its stop up, by a ``-``; what looks like a packet behind it has one, too.
_GIVEN_UP_WHOLE: Final = re.compile(_UNASKED_WHOLE.pattern + rb"-{0,8}")
_UNASKED_PART: Final = re.compile(
    rb"\$(?:T(?:[0-9a-f](?:[0-9a-f][0-9A-Za-z:;,.-]*(?:#[0-9a-f]?)?)?)?"
    rb"|[SWE](?:[0-9a-f](?:[0-9a-f](?:#[0-9a-f]?)?)?)?|O(?:[0-9a-f]+(?:#[0-9a-f]?)?)?)?"
)
_SENT: Final = re.compile(rb"\$([^#$]*)#..", re.DOTALL)
# 3 hands over to kdb, which prints; k and the resumes are acknowledged and have no reply while the guest stands.
_RESUME: Final = re.compile(rb"[csCSik]|vCont;|vKill|3$")
_PROMPT: Final = re.compile(rb"(?:^|[\r\n])(?:\[\d{1,5}\])?kdb> $")
_PAGER: Final = re.compile(rb"(?:^|[\r\n])more> $")
# Of kernels with kdb, of those without, and of kdb when it was told `kgdb`.
_WAITS: Final = re.compile(
    rb"(?:KGDB: (?:[A-Za-z. ]{1,20} or \$3#33 for KDB|Waiting for remote debugger|Entering KGDB)"
    rb"|Entering please attach debugger or use \$D#44\+ or \$3#33)\r?\n$"
)
# A stop that noise has made text, with nothing behind it: wherever a byte was harmed, one of these is left.
_HARMED_STOP: Final = re.compile(rb"(?:\$T[0-9a-f]{2}(?:thr|.{0,4}ead:)|thread:[0-9a-f])[^\r\n]{0,32}$")
_MOST_TAIL: Final = 64
_DIGITS: Final[tuple[bytes, ...]] = tuple(b"%02x" % value for value in range(256))


DAMAGED: Final = b"$#ff"
"""What a link is given in place of a reply that noise has made text: it refuses it, and kgdb sends the reply again."""
_ALL_DIGITS: Final = frozenset(_DIGITS)
_UNFINISHED_PACKET: Final = -1
_TEXT: Final = -2


class State(Enum):
    """What the line is believed to carry; the module's text says it."""

    RUNS = "runs"
    HELD = "held"
    DOUBT = "doubt"


@dataclass(frozen=True, slots=True)
class Console:
    """Text of the guest."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Stub:
    """Acknowledgements and packets of the stub, as they stood on the line."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Again:
    """The reply that is owed has become text: the stub's client is to have it sent again, as by ``DAMAGED``."""


Output = Console | Stub | Again | Typing | Told


@dataclass(slots=True)
class Counts:
    """What was decided, and where it might have been wrong."""

    packets: int = 0
    """Packets that were given to the stub's client, by whatever evidence."""
    by_silence: int = 0
    """Those of them that checksum, form and silence alone have shown: text with all three would look the same."""
    chained: int = 0
    """How often several different packets came in one piece before a silence: one may be text."""
    contradicted: int = 0
    """How often text followed such a packet before anything was sent: it was none, and the console lacks it."""
    unfinished: int = 0
    """Pieces of text that looked like a packet's beginning until the line had fallen silent."""
    damaged: int = 0
    """Packets of a held guest that were given on for being repeated."""
    doubts: int = 0
    """How often text came from a guest that was believed to be held."""


class LineDemultiplexer:
    """Tells one line's bytes apart; the module's text says how."""

    __slots__ = (
        "_acked_ahead",
        "_acks",
        "_asks",
        "_asks_stop",
        "_complete",
        "_damaged_run",
        "_doubted",
        "_is_garbled",
        "_kept",
        "_last",
        "_leaving",
        "_now",
        "_refusals",
        "_repeats",
        "_resuming",
        "_stop",
        "_stop_until",
        "_stopped_at",
        "_tail",
        "_unanswered",
        "counts",
        "keys",
        "output",
        "state",
    )

    def __init__(self) -> None:
        self.output: list[Output] = []
        """What to do, in order; whoever does it clears the list."""
        self.counts = Counts()
        self.keys = Keys(self.output.append)
        """What a user types; whoever asks for ``deadline`` and calls ``expired`` need not look at it."""
        self.state = State.RUNS
        self._kept = b""
        self._complete = False  # what is kept ends with a whole packet
        self._last = 0.0
        self._now = 0.0
        self._acks = 0  # acknowledgements that may come
        self._asks = False  # a reply is waited for
        self._asks_stop = False  # the last question was ``?``
        self._resuming = False
        self._leaving = False
        self._acked_ahead = False
        self._unanswered = False  # a packet was shown by silence, and nothing was sent since
        self._damaged_run = 0
        self._doubted = 0
        self._is_garbled = False  # text came where a reply is owed
        self._stop_until: float | None = None
        self._stop: bytes | None = None  # not acknowledged yet: kgdb repeats it for each byte that it reads
        self._repeats = 0
        self._refusals = 0  # of typed keys, which may come
        self._stopped_at = 0.0
        self._tail = b""

    @property
    def at_prompt(self) -> bool:
        """Whether the console's text ends with kdb's prompt, ``[1]kdb> `` or ``kdb> ``."""
        return not self._kept and _PROMPT.search(self._tail) is not None

    @property
    def at_pager(self) -> bool:
        """Whether the console's text ends with ``more> ``: kdb waits for a key in the middle of what it prints."""
        return not self._kept and _PAGER.search(self._tail) is not None

    @property
    def is_waiting(self) -> bool:
        """Whether the text ends with kgdb's word that it waits for a debugger: it says no more until asked."""
        return not self._kept and _WAITS.search(self._tail) is not None

    @property
    def deadline(self) -> float | None:
        """When ``expired`` wants to be called."""
        gives = None if self._kept else self.keys.deadline
        times = [one for one in (self.silent_at, gives, self._again_at) if one is not None]
        return min(times, default=None)

    @property
    def _again_at(self) -> float | None:
        """When the reply that is owed is to be asked for again."""
        is_owed = self._asks or self.state is State.RUNS
        return self._last + AGAIN if self._is_garbled and is_owed and not self._kept else None

    @property
    def silent_at(self) -> float | None:
        """When a silence, if it lasts until then, decides something."""
        decides = self._decides_at
        if self._stop_until is not None:
            return self._stop_until if decides is None else min(decides, self._stop_until)
        return decides

    @property
    def _decides_at(self) -> float | None:
        if not self._kept:
            return None
        if self._complete:
            return self._last + SILENCE
        waits_for_reply = self.state is State.HELD and self._asks
        return self._last + (UNFINISHED_REPLY if waits_for_reply else UNFINISHED)

    # -- what happens ---------------------------------------------------------------------------------------

    def received(self, data: bytes, now: float, *, watched: bool = True) -> None:
        """Take bytes of the guest.

        ``watched``: whether it would have been seen if these had come before ``silent_at``; else they may have, and
        no silence is concluded from the time.
        """
        if watched and (self._kept or self._stop_until is not None):
            self.expired(now)
        if not data:
            return
        self._last = self._now = now
        if self._unanswered:
            self._unanswered = False
            if data[0] not in b"$+-":
                self.counts.contradicted += 1
                self._run()
        if self._kept:
            data = self._kept + data
            self._kept = b""
        if self.state is State.HELD:
            self._strict(data)
        else:
            self._loose(data)
        if self._stop_until is not None and self.at_prompt:
            # The break-in has led to kdb, which what is typed is for.
            self._stop_until = None
            self.keys.is_held = self.state is not State.RUNS
        if self.keys.wait:
            self._give()

    def sent_to_stub(self, data: bytes) -> None:
        """Take note that acknowledgements and packets were written to the line for the stub."""
        self._unanswered = False
        if self._leaving and not self._asks and self.state is not State.RUNS and data[:1] == b"+":
            # The reply to D or R was acknowledged: the guest runs.
            self._run()
        for payload in _SENT.findall(data):
            resume = _RESUME.match(payload) is not None
            if resume and self.state is State.RUNS and not self._asks:
                continue  # sent once more, to a guest whose acknowledgement was lost
            self._acks = min(self._acks + 1, _MOST_ACKS)
            self._resuming = resume
            self._leaving = payload[:1] in (b"D", b"R")
            # Who leaves may close the line before the reply comes, and acknowledges it beforehand.
            self._acked_ahead = data.endswith(b"+")
            self._asks = not resume
            self._asks_stop = payload == b"?"
            self._damaged_run = 0

    def stands(self) -> None:
        """Take note that the guest is in kgdb, known from elsewhere."""
        self.state = State.HELD
        self.keys.is_held = True

    def breaking_in(self, until: float) -> None:
        """Take note that a break-in was sent: what is typed is kept until the stop, or until then."""
        self._stop_until = until
        self.keys.is_held = True
        self.keys.forget()

    def typed(self, data: bytes, now: float) -> None:
        """Take what a user types."""
        self._now = now
        self.keys.typed(data, now, settled=not self._complete)

    def expired(self, now: float) -> None:
        """Act on passed deadlines."""
        self._now = now
        if self._stop_until is not None and now >= self._stop_until:
            self._stop_until = None
            self.keys.is_held = self.state is not State.RUNS
        decides = self._decides_at
        if decides is not None and now >= decides:
            self._decide()
        if self._again_at is not None and now >= self._again_at:
            self._is_garbled = False
            if self.state is State.RUNS or self._may_be_damaged():
                self.counts.damaged += self.state is State.RUNS
                self.output.append(Again())
        if self.keys.wait:
            self._give()

    def runs(self, now: float) -> None:
        """Take note that the guest runs, known from elsewhere: it was reset, or its line is new."""
        self._now = now
        self._run()
        self._give()

    # -- text or packets ------------------------------------------------------------------------------------

    def _loose(self, data: bytes) -> None:
        """Keep the longest end of the text that may be packets before a silence; the rest is text."""
        start = self._viable(data)
        if start == 0:
            self._kept = data
            return
        if start < len(data):
            self._kept = data[start:]
            data = data[:start]
        state = self.state
        self._text(data)
        if self._kept and self.state is not state:
            # So much text shows that the guest runs: what was kept must be what a running guest says.
            kept, self._kept = self._kept, b""
            self._loose(kept)

    def _viable(self, data: bytes) -> int:
        """Return where the longest end of ``data`` starts of which more input can make packets.

        The beginning of such an end is one itself, so that what was given away before never belongs to it: this is
        why splitting changes nothing.  Packets hold no ``$``, so each of them is taken from the end, and the first
        that is none ends the search.
        """
        self._complete = False
        end = len(data)
        asked = self._asks or self._acks > 0
        low = max(0, end - 2 * (LONGEST + 4))
        any_reply = asked and not self._asks_stop
        unasked = _GIVEN_UP_WHOLE if self.keys.has_sent_dollar(self._now) else _UNASKED_WHOLE
        whole = _ASKED_WHOLE if any_reply else _STOP_WHOLE if asked else unasked
        start = data.rfind(b"$", low)
        if start >= 0:
            if _is_packet(whole, data, start, end):
                self._complete = True
            elif (
                end - start > LONGEST + 3
                or (_ASKED_PART if any_reply else _UNASKED_PART).fullmatch(data, start) is None
            ):
                start = -1
        if start < 0:
            return self._before(data, end, low) if asked else end
        for _ in range(MOST_PACKETS - 1):
            before = data.rfind(b"$", low, start)
            if before < 0 or not _is_packet(whole, data, before, start):
                break
            start = before
        return self._before(data, start, low) if asked else start

    def _before(self, data: bytes, start: int, low: int) -> int:
        """Return where the acknowledgements that may come begin, right before ``start``."""
        first = max(low, start - self._acks)
        while start > first and data[start - 1] in b"+-":
            start -= 1
        return start

    def _decide(self) -> None:
        """Decide what is kept, as the line has fallen silent."""
        data, self._kept = self._kept, b""
        if not self._complete:
            if self._asks and self.state is State.RUNS and not data.strip(b"+-"):
                # Asked although nothing showed that it stands, and it did: a kgdb that waited for an acknowledgement
                # gives its packet up at the question's ``$``, says so by a ``-``, and nothing else.
                self._acks = max(0, self._acks - len(data))
                self.state = State.HELD
                self.keys.is_held = True
                self.output.append(Stub(data))
                return
            self.counts.unfinished += 1
            if self.state is State.HELD:
                self._doubt()
            self._text(data)
            return
        self._complete = False
        packets = [match.group(1) for match in _ASKED_WHOLE.finditer(data)]
        self.counts.packets += len(packets)
        self.counts.by_silence += len(packets)
        self.counts.chained += len(set(packets)) > 1
        asked = self._asks or self._acks > 0
        self._acks = max(0, self._acks - sum(map(data.count, (b"+$", b"-$"))) - (data[-1] in b"+-"))
        self.output.append(Stub(data))
        self._tail = b""
        for payload in packets:
            if payload[:1] != b"W":  # gdbstub_exit() of a kernel that reboots: it waits for nothing
                self._unanswered = True
                if _is_output(payload):
                    continue
                self._asks = self._is_garbled = False
                self._resuming = False
                self._stop_until = None
                self._doubted = 0
                self._damaged_run = 0
                self.state = State.HELD
                self.keys.is_held = True
        if self.state is State.HELD and packets[-1][:1] == b"T":
            self._stop, self._stopped_at = packets[-1], self._last
            self._repeats = packets.count(packets[-1]) - 1
            if data[-1] in b"+-":
                # kgdb has read a `$`: it was typed, or a question was under way.
                self._acknowledged_stop(gave_up=True, surely=not asked)

    # -- a guest that is held -------------------------------------------------------------------------------

    def _strict(self, data: bytes) -> None:
        """Take packets and acknowledgements at once; what is neither puts the guest in doubt."""
        position, length = 0, len(data)
        while position < length:
            position = self._whole_packets(data, position)
            if position == length or self._has_left():
                break
            byte = data[position]
            if byte == 0x24:
                after = self._packet(data, position)
                if after == _UNFINISHED_PACKET:
                    self._complete = False
                    self._kept = data[position:]
                    break
            else:
                after = self._acknowledgement(byte, position)
            if after < 0:
                break
            position = after
            if self._has_left():
                break
        if position:
            self.output.append(Stub(data[:position]))
        if position < length and not self._kept:
            if self.state is State.HELD:
                self._doubt()
            self._loose(data[position:])

    def _whole_packets(self, data: bytes, position: int) -> int:
        """Return where the whole and right packets end that begin here."""
        packets = 0
        length = len(data)
        find, digits, adler32 = data.find, _DIGITS, zlib.adler32
        while position < length and data[position] == 0x24:
            end = find(b"#", position)
            if end < 0 or end - position > LONGEST + 1:
                break
            payload = data[position + 1 : end]
            total = (adler32(payload) - 1) & 0xFF if end - position <= 256 else checksum(payload)
            if data[end + 1 : end + 3] != digits[total] or b"$" in payload:
                break
            packets += 1
            position = end + 3
            if self._stop is not None:
                self._repeated(payload)
            if self._asks and not _is_output(payload):
                self._replied(payload)
                if self._has_left():
                    break
        if packets:
            self.counts.packets += packets
            self._damaged_run = 0
        return position

    def _has_left(self) -> bool:
        return self.state is State.RUNS

    def _replied(self, payload: bytes) -> None:
        self._asks = False
        self._refusals = 0
        if payload != b"OK":
            self._leaving = False
        elif self._leaving and self._acked_ahead:
            self._run()

    def _repeated(self, payload: bytes) -> None:
        """Count the stop's repeats; another packet means that its acknowledgement was lost on the way."""
        if payload == self._stop:
            self._repeats += 1
        else:
            self._acknowledged_stop(gave_up=False, surely=False)

    def _acknowledged_stop(self, *, gave_up: bool, surely: bool) -> None:
        """Take note that kgdb waits for an acknowledgement no more, and before has read a byte for each repeat."""
        self._stop = None
        self._refusals = _MOST_ACKS if gave_up else 0
        surely = surely and not self.counts.damaged
        self.keys.swallowed(self._repeats, self._stopped_at, gave_up=gave_up, surely=surely)

    def _acknowledgement(self, byte: int, position: int) -> int:
        """Return where to go on after an acknowledgement that may come, or that it is text."""
        if byte == 0x2D and self._stop is not None and self.keys.has_sent_dollar(self._stopped_at):
            # At a key of the user's; what was sent to the stub is yet to be read.
            self._acknowledged_stop(gave_up=True, surely=True)
            return position + 1
        if byte == 0x2D and self._refusals:
            # Of what was typed behind the ``$``, or of a request that this has spoiled: the link's to find out.
            self._refusals -= 1
            return position + 1
        if byte not in b"+-" or not self._acks:
            return _TEXT
        if self._stop is not None:
            self._acknowledged_stop(gave_up=False, surely=byte == 0x2B)
        self._acks -= 1
        if self._resuming:
            self._resuming = False
            if byte == 0x2B:
                self._run()
        return position + 1

    def _packet(self, data: bytes, start: int) -> int:
        """Return where to go on after a packet that is damaged, or that it is unfinished, or text."""
        furthest = start + LONGEST + 2
        end = data.find(b"#", start, furthest)
        again = data.find(b"$", start + 1, end if end >= 0 else furthest)
        if again >= 0:
            return again if self._may_be_damaged() else _TEXT
        if end < 0:
            return _TEXT if len(data) >= furthest else _UNFINISHED_PACKET
        if end + 2 >= len(data):
            return _UNFINISHED_PACKET
        # It is damaged: right ones were taken before.
        if not self._may_be_damaged():
            return _TEXT
        return end + 3 if data[end + 1 : end + 3] in _ALL_DIGITS else end + 1

    def _may_be_damaged(self) -> bool:
        """Whether what ends wrongly is a damaged reply rather than text."""
        if not self._asks or self._damaged_run >= MOST_DAMAGED:
            return False
        self._damaged_run += 1
        self.counts.damaged += 1
        return True

    def _doubt(self) -> None:
        self.counts.doubts += 1
        self._doubted = 0
        self.state = State.DOUBT

    # -- what follows ---------------------------------------------------------------------------------------

    def _text(self, data: bytes) -> None:
        self.output.append(Console(data))
        self._tail = data[-_MOST_TAIL:] if len(data) >= _MOST_TAIL else (self._tail + data)[-_MOST_TAIL:]
        if self.is_waiting:
            self.keys.stopped_in_silence(self._now)
        self.keys.echoed(self._now)
        if self.state is State.RUNS:
            self._is_garbled = self.keys.is_attended and _HARMED_STOP.search(self._tail) is not None
        elif self.state is State.DOUBT:
            self._doubted += len(data)
            if self._resuming or self._doubted >= MOST_DOUBT:
                self._run()
            else:
                self._is_garbled = True

    def _run(self) -> None:
        if self.state is not State.RUNS:
            self.keys.runs(self._now)
            self.keys.is_held = self._stop_until is not None
        self.state = State.RUNS
        self._stop = None
        self._is_garbled = False
        self._acks = self._refusals = 0
        self._asks = self._resuming = self._leaving = self._unanswered = False
        self._doubted = 0

    def _give(self) -> None:
        self.keys.give(self._now, settled=not self._kept)


def _is_output(payload: bytes) -> bool:
    """Whether a packet is ``O`` and text, after which the reply, or the running guest, is still to come."""
    return payload[:1] == b"O" and payload != b"OK"


def _is_packet(form: re.Pattern[bytes], data: bytes, start: int, end: int) -> bool:
    """Whether ``data[start:end]`` is one packet of this form, with its checksum."""
    match = form.fullmatch(data, start, end)
    return match is not None and len(match[1]) <= LONGEST and match[2] == _DIGITS[checksum(match[1])]
