"""One serial line that carries the console and kgdb: the recorder before it, the debug client beside it.

in          bytes of the line (a ``Sink``); what users type (a ``ConsoleLine``); packets of the debug client, over a
            socket of its own
out         console text to the recorder; packets to the client; packets and typing to the line; words for who types
states      of the line: as the line's own.  Of the client: none, connected
invariant   nothing is written to the line for the client while the guest runs: the console's program would read it.
            What the client sends then waits here, as it waits in the UART of a port of kgdb's own

Which byte is whose, ``gdbstubs/demux.py`` decides; ``docs/serial-line.md`` draws it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from gdbstubs.demux import DAMAGED, Again, Console, LineDemultiplexer, State, Stub
from gdbstubs.keys import Told, Typing
from gdbstubs.wire import frame
from kbridge.errors import GuestError, LineError
from kbridge.transports.streams import Stream

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from kbridge.console.recorder import Recorder
    from kbridge.transports.channels import ReadInto
    from kbridge.transports.endpoints import Break
    from kbridge.transports.lines import ConsoleLine, LineState, Listener

RECEIVE_BYTES: Final = 1 << 16
LOOK_SECONDS: Final = 0.0005
"""After a deadline, for the reactor to read the line once more."""
MOST_WAITING: Final = 4096
"""Bytes of the client that wait for the guest to stand: a question, sent again a few times."""
PAGING_SECONDS: Final = 2.0
"""How long kdb's pages are turned for who wants its prompt: a screen full takes a fifth of a second at 115200 baud."""
BREAK_IN_SECONDS: Final = 3.0
"""How long typing is kept after a BREAK, for the stop that it leads to."""

Words = Callable[[str], None]


class SharedLine:
    """The line; the module's text says how.  ``line`` is set once it was opened with this as its sink."""

    def __init__(self, reactor: Any, recorder: Recorder) -> None:
        self._reactor = reactor
        self._recorder = recorder
        self._demux = LineDemultiplexer()
        self._buffer = bytearray(RECEIVE_BYTES)
        self._line: ConsoleLine | None = None
        self._client: Stream | None = None
        self._waiting = b""
        self._has_looked = False
        """Whether the line was read since the deadline passed: only then there was silence."""
        self._is_sought = False
        """Whether the client may ask a guest of which nothing shows that it stands."""
        self._listeners: tuple[Words, ...] = ()
        self._timer: IDelayedCall | None = None
        self._is_asked_again = False
        """Whether the client is about to refuse what noise has made text."""
        self._turns_pages_until = 0.0
        self._unattended = 0
        self._has_stood = False
        """Whether the guest has ever shown that kgdb is on this line."""

    def opened(self, line: ConsoleLine) -> None:
        """Take the line, which was opened with this as its sink."""
        self._line = line

    # -- as the line's sink -----------------------------------------------------------------------------------

    def receive(self, read_into: ReadInto) -> int | None:
        """Take the line's next bytes."""
        count = read_into(memoryview(self._buffer))
        if count:
            now, silent_at = self._reactor.seconds(), self._demux.silent_at
            self._has_looked = False
            self._demux.received(
                bytes(self._buffer[:count]), now, watched=silent_at is None or now < silent_at
            )
            self._act()
            if now < self._turns_pages_until:
                self._turn_page()
        return count

    def line_opened(self, detail: str) -> None:
        """Note that the line is there."""
        self.machine_reset()
        self._recorder.line_opened(detail)

    def line_lost(self, detail: str, reason: str) -> None:
        """Note that the line is gone, and the stub with it."""
        self._recorder.line_lost(detail, reason)
        if self._client is not None:
            self._client.abort(f"its line is gone ({reason})")

    # -- as the console's line --------------------------------------------------------------------------------

    @property
    def state(self) -> LineState:
        """Whether the line is there."""
        return self._own.state

    @property
    def reason(self) -> str:
        """Why it is not, in words."""
        return self._own.reason

    @property
    def breaks(self) -> tuple[Break, ...]:
        """The ways in which BREAK goes over this kind of line."""
        return self._own.breaks

    def write(self, data: bytes) -> None:
        """Send what a user types, or keep it while kgdb holds the guest."""
        if self._own.reason:
            self._own.write(data)  # which says what is wrong
        self._demux.typed(data, self._reactor.seconds())
        self._act()

    async def send_break(self, how: Break) -> None:
        """Hold the line in BREAK for a moment."""
        self._demux.keys.forget()
        await self._own.send_break(how)

    async def close(self) -> None:
        """Let go of the line and the client."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._client is not None:
            self._client.abort("the line is closed")
        if self._line is not None:
            await self._line.close()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` at each change of the line's state."""
        return self._own.subscribe(listener)

    def on_words(self, listener: Words) -> Callable[[], None]:
        """Call ``listener`` with words for who types, until the function returned is called."""
        self._listeners = (*self._listeners, listener)

        def stop() -> None:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

        return stop

    def hurry(self) -> None:
        """Try now to open a line that waits to be tried again."""
        self._own.hurry()

    @property
    def _own(self) -> ConsoleLine:
        assert self._line is not None, "the line was not opened yet"
        return self._line

    # -- kdb --------------------------------------------------------------------------------------------------

    @property
    def is_attended(self) -> bool:
        """Whether a debugger uses the kernel's stub."""
        return self._client is not None

    @property
    def stands(self) -> bool:
        """Whether the guest is in kgdb or kdb, as far as the line shows."""
        return self._demux.state is not State.RUNS or self.at_prompt or self._demux.is_waiting

    @property
    def at_prompt(self) -> bool:
        """Whether kdb waits for a command."""
        return self._demux.at_prompt

    def turn_pages(self) -> bool:
        """Have kdb go on to its prompt where it waits for a key in the middle of what it prints; else False."""
        if not self._demux.at_pager:
            return False
        self._turns_pages_until = self._reactor.seconds() + PAGING_SECONDS
        self._turn_page()
        return True

    def _turn_page(self) -> None:
        if self.at_prompt:
            self._turns_pages_until = 0.0
        elif self._demux.at_pager:
            try:
                # `q` would end what is printed: of an oops, its trace.
                self._own.write(b" ")
            except LineError:
                # No prompt comes, and whoever wants it fails by the same line, in words.
                self._turns_pages_until = 0.0

    def ask_for_kdb(self) -> None:
        """Have a guest that stands in kgdb go on to kdb; raises ``LineError``."""
        self._tell_kgdb(b"3")

    def let_go(self) -> None:
        """Have a guest that stands in kgdb run; raises ``LineError``."""
        self._tell_kgdb(b"c")

    def _tell_kgdb(self, payload: bytes) -> None:
        """Send a packet in nobody's name, behind an acknowledgement of what kgdb may have said before."""
        data = b"+" + frame(payload)
        self._own.write(data)
        self._demux.stands()
        self._demux.sent_to_stub(data)
        self._act()

    # -- breaking in ------------------------------------------------------------------------------------------

    @property
    def for_sysrq(self) -> SysrqLine:
        """The line as whoever sends BREAK uses it: a key of SysRq is not typing, and is never kept."""
        return SysrqLine(self)

    @property
    def is_held(self) -> bool:
        """Whether kgdb holds the guest: it would read a BREAK, and nobody acts on it when the guest runs."""
        return self._demux.state is State.HELD

    def press(self, key: bytes) -> None:
        """Send a SysRq key; where it breaks in, typing is kept until the guest stands, or for ``BREAK_IN_SECONDS``."""
        if key == b"g":
            self._demux.breaking_in(self._reactor.seconds() + BREAK_IN_SECONDS)
        # Behind a BREAK, which kgdb reads too: neither is a key that a user typed.
        self._demux.keys.forget()
        self._own.write(key)
        self._act()

    # -- the debug client -------------------------------------------------------------------------------------

    async def connect(self, is_sought: bool) -> socket.socket:
        """Return a socket on which the guest's kgdb answers, one at a time.  Raises ``GuestError``.

        ``is_sought``: a predecessor left the guest standing, perhaps: it is asked though nothing shows that it stands,
        and again once the ways to break in have failed.
        """
        if self._own.reason:
            raise GuestError("kgdb cannot be reached", why=f"its line is not there: {self._own.reason}")
        if self._client is not None:
            self._client.abort("another client came")
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._is_sought = is_sought
        self._has_stood = self._has_stood or is_sought
        self._waiting = b""
        self._client = Stream(self._reactor, ours, self._from_client, self._client_lost)
        self._demux.keys.is_attended = True
        return theirs

    def _from_client(self, data: bytes) -> None:
        if data == b"-" and self._is_asked_again:
            # Also to a guest that seems to run: its stop was harmed.
            self._is_asked_again = False
            self._send(data)
            return
        if not (self.stands or self._is_sought):
            if data not in self._waiting and len(self._waiting) + len(data) <= MOST_WAITING:
                self._waiting += data
            return
        self._send(data)

    def _send(self, data: bytes) -> None:
        try:
            self._own.write(data)
        except LineError as error:
            if self._client is not None:
                self._client.abort(str(error))
            return
        self._demux.sent_to_stub(data)
        self._act()

    def _client_lost(self, reason: str) -> None:
        self._client = None
        self._waiting = b""
        self._demux.keys.is_attended = False

    def seek(self) -> bool:
        """Let the client ask a guest of which nothing shows that it stands; False where it never stood, or none asks.

        If the guest runs, the console's program reads the question.
        """
        if self._client is None or not self._has_stood:
            return False
        self._is_sought = True
        waiting, self._waiting = self._waiting, b""
        if waiting:
            self._send(waiting)
        return True

    # -- what the demultiplexer decides -----------------------------------------------------------------------

    def machine_reset(self) -> None:
        """Take note that the guest was reset, or that its line is new: it runs."""
        self._demux.runs(self._reactor.seconds())
        self._act()

    def _act(self) -> None:
        output = self._demux.output
        while output:
            batch = output.copy()
            output.clear()
            for one in batch:
                match one:
                    case Console(data):
                        self._recorder.append(data)
                    case Stub(data):
                        self._to_client(data)
                    case Again():
                        if self._client is not None:
                            self._is_asked_again = True
                            self._client.send(DAMAGED)
                    case Typing(data):
                        self._write_keys(data)
                    case Told() as told:
                        self._say(told.value)
        if self._waiting and self.stands:
            waiting, self._waiting = self._waiting, b""
            self._send(waiting)
        self._arm()

    def _to_client(self, data: bytes) -> None:
        self._is_sought = False
        self._has_stood = True
        if self._client is not None:
            self._client.send(data)
        elif self._unattended < self._demux.counts.packets:
            self._unattended = self._demux.counts.packets
            self._recorder.record("kgdb.unattended", bytes=len(data))

    def _write_keys(self, data: bytes) -> None:
        try:
            self._own.write(data)
        except LineError as error:
            self._say(f"{error.why or error.what}: what you typed is lost")

    def _say(self, words: str) -> None:
        for listener in self._listeners:
            listener(words)

    def _arm(self) -> None:
        deadline = self._demux.deadline
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = self._reactor.callLater(max(0.0, deadline - self._reactor.seconds()), self._expired)

    def _expired(self) -> None:
        self._timer = None
        if not self._has_looked:
            # What came meanwhile may not have been read yet: the reactor's turn comes first.
            self._has_looked = True
            self._timer = self._reactor.callLater(LOOK_SECONDS, self._expired)
            return
        self._has_looked = False
        self._demux.expired(self._reactor.seconds())
        self._act()


class SysrqLine:
    """A shared line for whoever sends BREAK."""

    def __init__(self, shared: SharedLine) -> None:
        self._shared = shared

    async def send_break(self, how: Break) -> None:
        """Hold the line in BREAK for a moment."""
        await self._shared.send_break(how)

    def write(self, data: bytes) -> None:
        """Send a SysRq key."""
        self._shared.press(data)
