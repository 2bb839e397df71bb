"""The server half: modern RSP to one debugger.

in:      bytes of the debugger; answers of the target through callbacks
out:     bytes for the debugger (``take_output``), calls of the target port, ``finished``
states:  stopped · waiting for a stop · finished
invariant: requests are answered in order, each once; a resume is answered by exactly one stop reply; nothing is
         sent after the end

Thread selection, acknowledgements, features and words belong to the session, never to the stub.
Source: GDB manual, "Remote Protocol"; what gdb and LLDB make of each answer is in ``docs/protocol-notes.md``.
"""

from __future__ import annotations

import binascii
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from gdbstubs import objects
from gdbstubs.encoding import encode_bare, encode_ok, encode_prefixed, stop_reply
from gdbstubs.errors import EBUSY, EINVAL, ENOENT, ESRCH, LinkFailed, RemoteProtocolError, TargetError
from gdbstubs.files import Files
from gdbstubs.following import Follower
from gdbstubs.link import Link
from gdbstubs.modes import Mode, NarrowView
from gdbstubs.ordering import Place, Replies
from gdbstubs.packets import Malformed, Row, asked_whole, find, format_thread, parse
from gdbstubs.passage import Passage, read_asked
from gdbstubs.replies import as_data
from gdbstubs.requests import (
    ChecksumMemory,
    CloseFile,
    CurrentThread,
    DescribeHost,
    DescribeProcess,
    Detach,
    EnableErrorStrings,
    FileRequest,
    Insert,
    IsAlive,
    Kill,
    KillProcess,
    ListThreads,
    Monitor,
    NonStop,
    OffersSymbols,
    OpenFile,
    OtherFile,
    ReadFile,
    ReadMemory,
    ReadRegister,
    ReadRegisters,
    Remove,
    Request,
    Resume,
    SearchMemory,
    SelectFiles,
    SelectThread,
    StartNoAck,
    StatFile,
    Supported,
    ThreadExtra,
    Transfer,
    WasAttached,
    WhichResumes,
    WhyStopped,
    WriteMemory,
    WriteRegister,
    WriteRegisters,
)
from gdbstubs.rights import Right
from gdbstubs.searching import Checksum, PatternSearch, Question, Sweep
from gdbstubs.target import (
    ALL_THREADS,
    ANY_THREAD,
    SIGINT,
    Action,
    Ended,
    Halted,
    Motion,
    Stop,
    Target,
    Thread,
    ThreadId,
)
from gdbstubs.viewing import Viewing
from gdbstubs.wire import Control, Notification, compress_run_length
from gdbstubs.words import (
    MOST_WORDS,
    WAITS_INSTEAD,
    Debugger,
    console_output,
    forbidden,
    killed_nothing,
    not_served,
    recognise,
    refuse,
    refused_stop,
)

Library = Callable[[str, str, Callable[[bytes | None], None]], None]
"""Gives what a debugger reads beside the target, by kind and name, now or later, once; None where there is none.

``exec-file``: the name of the main file.  ``main-file``: the same for a processor in a mode (``Mode``'s values).
``libraries``: the document that lists them.  ``file``: a file by its name.
``changes``: what to read again since this session was given it, as in stop replies and with blanks between:
``exec:2f6b library:``.
"""

PACKET_SIZE: Final = 0x20000
"""What gdb is offered: it reads up to half of it at once; larger sizes make it ask for what it throws away."""
LONGEST_READ: Final = PACKET_SIZE // 2
MOST_HELD: Final = 256
"""How many packets may wait behind a resume."""
_NOTHING: Final = b"/kbridge/nothing"
"""The name of a main file of which nothing is known: gdb reads the description again with it all the same."""
_NO_LIBRARIES: Final = b"<library-list></library-list>"
_REPEATED: Final = (b"$g", b"$q", b"$?", b"$H", b"$T")
"""How packets begin that debuggers send again and again in the same bytes."""
_LONGEST_REPEATED: Final = 64
_SERVED: Final = (
    b"PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;qXfer:threads:read+;vContSupported+;swbreak+;hwbreak+;"
    b"error-message+" % PACKET_SIZE
)


class Server:
    """One debugger's session; the module's text says how.

    ``monitor`` is given the text of a ``monitor`` command and what to call, once, with the answer; ``library`` is asked
    for what the debugger reads beside the target: see ``Library``.  ``compress`` run-length encodes replies, which pays
    on slow links only.
    """

    def __init__(
        self,
        target: Target,
        monitor: Callable[[str, Callable[[str], None]], None],
        *,
        library: Library | None = None,
        compress: bool = False,
    ) -> None:
        self.now = 0.0
        self.finished = False
        """Whether the connection is to be closed once the output is written."""
        self.failed = ""
        """Why the session was finished, where the debugger broke the protocol."""
        self.waiting = False
        """Whether the debugger waits for a stop reply."""
        self.on_forbidden: Callable[[str], None] | None = None
        """Called with the words of a refusal for want of the right."""
        self.unknown = 0
        """How many packets had no row in the table."""
        self._target = target
        self._viewing = Viewing(target)
        self._monitor = monitor
        self._library = library
        self._files = None if library is None else Files(partial(library, "file"), LONGEST_READ)
        self._follower = Follower()
        self._compress = compress
        self._link = Link(PACKET_SIZE, window=64)
        self.output = self._link.output
        """What waits to be sent, one list for the whole session; ``take_output`` empties it."""
        self._replies = Replies(self._send)
        self._passage = Passage(self._passed_back, self._not_passed)
        self._passed = ReadMemory(0, 0)
        """The read that was passed on last."""
        self._passed_place = Place()
        self._held: deque[bytes] = deque()
        self._releasing = False
        """Whether the packets that were held behind a resume are being handled."""
        self._words: deque[str] = deque(maxlen=MOST_WORDS)
        self._features: frozenset[str] = frozenset()
        self._debugger = Debugger.OLD_GDB
        self._prefixes_binary = False
        self._steps = False
        """Whether the resume under way is a step."""
        self._actions: tuple[Action, ...] = ()
        """What was resumed last."""
        self._reads_again = False
        """Whether the stop under way is ours: only to have the debugger read what changed, and go on."""
        self._repeats_step = False
        """Whether the debugger goes on with a step that was refused, whatever its user asks for."""
        self._sweeping = False
        self._swept: set[type[Request]] = set()
        self._general = ANY_THREAD
        self._resuming = ANY_THREAD
        self._stopped_thread: ThreadId | None = None
        self._object: tuple[str, str, bytes] | None = None
        self._dismissed = False
        self._thread_ids: deque[Thread] = deque()
        self._listed: tuple[Thread, ...] = ()
        self._quick: dict[bytes, Callable[[bytes], bool]] = {
            b"$m": self._passes,
            **dict.fromkeys(_REPEATED, self._repeats),
        }
        """What may handle bytes that begin so without taking them apart."""
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            ChecksumMemory: self._checksum_memory,
            CurrentThread: self._current_thread,
            DescribeHost: partial(self._describe, objects.host_info),
            DescribeProcess: partial(self._describe, objects.process_info),
            Detach: self._detach,
            EnableErrorStrings: self._enable_error_strings,
            Insert: self._insert,
            IsAlive: self._is_alive,
            CloseFile: self._do_file,
            Kill: self._kill,
            KillProcess: self._kill_process,
            ListThreads: self._list_threads,
            Monitor: self._monitor_command,
            NonStop: self._non_stop,
            OffersSymbols: self._offers_symbols,
            OpenFile: self._do_file,
            OtherFile: self._do_file,
            ReadFile: self._do_file,
            SelectFiles: self._do_file,
            StatFile: self._do_file,
            ReadMemory: self._read_memory,
            ReadRegister: self._read_register,
            ReadRegisters: self._read_registers,
            Remove: self._remove,
            Resume: self._resume,
            SearchMemory: self._search_memory,
            SelectThread: self._select_thread,
            StartNoAck: self._start_no_ack,
            Supported: self._supported,
            ThreadExtra: self._thread_extra,
            Transfer: self._transfer,
            WasAttached: self._was_attached,
            WhichResumes: self._which_resumes,
            WhyStopped: self._why_stopped,
            WriteMemory: self._write_memory,
            WriteRegister: self._write_register,
            WriteRegisters: self._write_registers,
        }

    # -- bytes in and out -----------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes of the debugger.  Raises a ``ProtocolError`` when the connection must be closed."""
        quick = self._quick.get(data[:2])
        if quick is not None and quick(data):
            return
        for event in self._link.receive(data, self.now):
            if self.finished:
                return
            if isinstance(event, bytes):
                if self.waiting:
                    self._hold(event)
                else:
                    self._packet(event)
            elif event is Control.INTERRUPT:
                if self.waiting:
                    self._reads_again = False
                    self._target.interrupt()
            elif event is Control.OVERLONG:
                if self.waiting:
                    raise RemoteProtocolError("an over-long packet was sent while the target runs")
                self._replies.reply(b"E%02x" % EINVAL)
            elif isinstance(event, Notification):
                raise RemoteProtocolError("a debugger sends no notifications")

    def _passes(self, data: bytes) -> bool:
        """Pass a read on as it came, if it is all that this session waits for; False: nothing was done."""
        if (
            self.waiting
            or self.finished
            or self._dismissed
            or self._compress
            or self._replies.is_pending
            or not self._link.is_open
        ):
            return False
        asked = read_asked(data)
        if asked is None:
            return False
        address, length = asked
        if not 0 < length <= LONGEST_READ:
            return False
        if not self._target.pass_read(self._thread(), address, length, data, self._passage):
            return False
        self._passed = ReadMemory(address, length)
        self._passed_place = self._replies.reserve()
        return True

    def _repeats(self, data: bytes) -> bool:
        """Answer what was understood before in the same bytes; False: nothing was done."""
        if (
            self.waiting
            or self.finished
            or self._dismissed
            or len(data) > _LONGEST_REPEATED
            or not self._link.is_open
        ):
            return False
        found = asked_whole(data)
        if found is None:
            return False
        self._request(*found)
        return True

    def _passed_back(self, packet: bytes) -> None:
        if not self.finished:
            self._link.send_packet(packet, self.now)
            self._replies.leave(self._passed_place)

    def _not_passed(self, reply: bytes | TargetError) -> None:
        self._answer(self._passed, self._passed_place, binascii.hexlify, as_data(reply))

    def take_output(self) -> bytes:
        """Return what to send to the debugger now."""
        output = self._link.output
        if not output:
            return b""
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return data

    def _hold(self, payload: bytes) -> None:
        if len(self._held) >= MOST_HELD:
            raise RemoteProtocolError(f"more than {MOST_HELD} packets sent while the target runs")
        self._held.append(payload)

    def _packet(self, payload: bytes) -> None:
        if self._dismissed:
            self.finished = True
            return
        try:
            found = parse(payload)
        except (Malformed, RemoteProtocolError) as error:
            self._malformed(payload, error)
            return
        if found is None:
            self.unknown += 1
            self._replies.reply(b"")
            return
        self._request(*found)

    def _request(self, row: Row, request: Request) -> None:
        if row.right is Right.CONTROLLER and self._target.right < Right.CONTROLLER and _acts(request):
            denied = forbidden(self._debugger, request)
            if self.on_forbidden is not None:
                self.on_forbidden(denied.words)
            self._refuse(request, denied)
            return
        self._handlers[type(request)](request)

    def _malformed(self, payload: bytes, error: Exception) -> None:
        found = find(payload)
        assert found is not None, "only a known packet can be malformed"
        self._refuse(found[0].kind, TargetError(EINVAL, f"{payload[:20]!r} is malformed: {error}"))

    # -- replies --------------------------------------------------------------------------------------------

    def _send(self, payload: bytes) -> None:
        if self._compress and len(payload) > 16:
            payload = compress_run_length(payload)
        try:
            self._link.send(payload, self.now)
        except LinkFailed as error:
            self._fail(error)

    def _fail(self, error: LinkFailed) -> None:
        """End the session; as often as not it is the stub's word that is passed on, and the stub is not to blame."""
        self.failed = str(error)
        self.finished = True

    def _fill(self, place: Place, *payloads: bytes) -> None:
        if not self.finished:
            self._replies.fill(place, payloads)

    def _refuse(self, refused: Request | type[Request], error: TargetError) -> None:
        if refused is Resume:
            self.waiting = True
            self._steps = False
            self._stop_arrived(error)
            return
        for payload in self._error(refused, error):
            self._replies.reply(payload)

    def _error(self, refused: Request | type[Request], error: TargetError) -> tuple[bytes, ...]:
        refusal = refuse(self._debugger, refused, error)
        if refusal.later:
            self.say(refusal.later)
        return refusal.payloads

    def _answer(self, request: Request, place: Place, encode: Callable[[Any], bytes], result: object) -> None:
        if isinstance(result, TargetError):
            self._fill(place, *self._error(request, result))
        else:
            self._fill(place, encode(result))

    def _ok(self, request: Request) -> Callable[[TargetError | None], None]:
        """Return a reply function that answers ``OK`` or the error."""
        return partial(self._answer, request, self._replies.reserve(), encode_ok)

    def say(self, words: str) -> None:
        """Tell the user: at once while the debugger waits for a stop, else before the next stop reply."""
        if self.finished:
            return
        if self.waiting and not self._replies.is_full:
            self._replies.append(console_output(words))
        elif words not in self._words:
            self._words.append(words)

    @property
    def follows(self) -> bool:
        """Whether the debugger reads again what has changed, when it is told to."""
        return self._follower.follows

    @property
    def is_to_be_stopped(self) -> bool:
        """Whether only a stop can make the debugger read again, and it has the right to one."""
        return (
            self.waiting
            and self.follows
            and not self._steps
            and self._follower.stop is None
            and self._target.right >= Right.CONTROLLER
        )

    def read_again(self) -> None:
        """Stop the target, have the debugger read again what has changed, and go on as if nothing had been."""
        if self.is_to_be_stopped and not self._reads_again:
            self._reads_again = True
            self._target.interrupt()

    def end(self, words: str) -> None:
        """End the session from our side, saying why where the debugger listens."""
        if self.finished:
            return
        if self.waiting:
            self._stop_arrived(Ended(words=words))
        self.finished = True

    # -- the session itself ---------------------------------------------------------------------------------

    def _supported(self, request: Supported) -> None:
        self._features = request.features
        self._debugger = recognise(request.features)
        place = self._replies.reserve()

        def attached(result: TargetError | None) -> None:
            if result is not None:
                # Here gdb shows the words of an error; to a refused '?' it would listen for ever.  It must be
                # able to acknowledge first, or it reports a broken pipe instead: close at its next packet.
                self._fill(place, *self._error(request, result))
                self._dismissed = True
                return
            features = _SERVED
            # LLDB 14 knows binary memory without a prefix only, LLDB 23 wants one where this is announced.
            self._prefixes_binary = self._debugger is not Debugger.LLDB
            if self._prefixes_binary:
                features += b";binary-upload+"
            if self._library is not None and self._debugger is not Debugger.LLDB:
                features += b";qXfer:exec-file:read+;qXfer:libraries:read+"
            if self._target.reverses:
                features += b";ReverseStep+;ReverseContinue+"
            self._fill(place, features)

        self._target.attach(attached)

    def _start_no_ack(self, request: StartNoAck) -> None:
        self._replies.reply(b"OK")
        self._link.start_no_ack()

    def _enable_error_strings(self, request: EnableErrorStrings) -> None:
        self._debugger = Debugger.LLDB
        self._replies.reply(b"OK")

    def _non_stop(self, request: NonStop) -> None:
        if request.on:
            self._refuse(request, not_served(request))
        else:
            self._replies.reply(b"OK")

    def _describe(
        self, tell: Callable[[bytes | None], bytes], request: DescribeHost | DescribeProcess
    ) -> None:
        place = self._replies.reserve()

        def arrived(description: bytes | TargetError | None) -> None:
            self._fill(place, b"" if isinstance(description, TargetError) else tell(description))

        self._target.read_description("target.xml", arrived)

    def _offers_symbols(self, request: OffersSymbols) -> None:
        self._replies.reply(b"OK")

    def _was_attached(self, request: WasAttached) -> None:
        self._replies.reply(b"1")

    def _which_resumes(self, request: WhichResumes) -> None:
        self._replies.reply(b"vCont;c;C;s;S;r")

    def _select_thread(self, request: SelectThread) -> None:
        if request.general:
            self._general = request.thread
        else:
            self._resuming = request.thread
        # An error here is ignored by gdb, which then shows one thread's registers as another's: a thread that
        # does not exist is refused by the next request that needs it.
        self._replies.reply(b"OK")

    def _monitor_command(self, request: Monitor) -> None:
        place = self._replies.reserve()

        def answered(answer: str) -> None:
            text = "".join(f"{words}\n" for words in self._words) + answer
            self._words.clear()
            pieces = [text[start : start + 4096] for start in range(0, len(text), 4096)]
            self._fill(place, *(b"O" + binascii.hexlify(piece.encode()) for piece in pieces), b"OK")

        self._monitor(request.command, answered)

    def _detach(self, request: Detach) -> None:
        place = self._replies.reserve()

        def detached(result: TargetError | None) -> None:
            # A refusal would keep gdb's user from leaving at all.
            self._fill(place, b"OK")
            self.finished = True

        self._target.detach(detached)

    def _kill(self, request: Kill) -> None:
        if self._debugger is Debugger.LLDB:
            # It waits for a reply, shows one that it does not expect, and takes the process for gone whatever comes.
            self._replies.reply(killed_nothing())
        self.finished = True

    def _kill_process(self, request: KillProcess) -> None:
        # Never empty: gdb would send ``k`` instead and report success.
        self._refuse(request, not_served(request))

    # -- threads and objects --------------------------------------------------------------------------------

    def _current_thread(self, request: CurrentThread) -> None:
        thread = self._stopped_thread
        self._replies.reply(b"" if thread is None else b"QC" + format_thread(thread))

    def _is_alive(self, request: IsAlive) -> None:
        place = self._replies.reserve()

        def told(result: bool | TargetError) -> None:
            # gdb forgets a thread at any error: one of which nothing can be learned now is still there.
            self._fill(place, b"E%02x" % ESRCH if result is False else b"OK")

        self._target.is_alive(request.thread, told)

    def _list_threads(self, request: ListThreads) -> None:
        if not request.first:
            self._replies.reply(self._next_threads())
            return
        place = self._replies.reserve()

        def listed(result: tuple[Thread, ...] | TargetError) -> None:
            self._thread_ids = deque(self._threads_or_known(request, result))
            self._fill(place, self._next_threads())

        self._target.list_threads(listed)

    def _threads_or_known(
        self, request: Request, result: tuple[Thread, ...] | TargetError
    ) -> tuple[Thread, ...]:
        """Return the threads, or, where they cannot be listed now, the ids that are known already.

        LLDB crashes without a list, and gdb forgets the threads that are not on it.
        """
        if isinstance(result, TargetError) or not result:
            if isinstance(result, TargetError):
                self._error(request, result)
            return tuple(Thread(one.id) for one in self._listed) or (Thread(self._thread()),)
        self._listed = result
        return result

    def _next_threads(self) -> bytes:
        if not self._thread_ids:
            return b"l"
        count = min(len(self._thread_ids), 512)
        return b"m" + b",".join(format_thread(self._thread_ids.popleft().id) for _ in range(count))

    def _thread_extra(self, request: ThreadExtra) -> None:
        place = self._replies.reserve()

        def listed(result: tuple[Thread, ...] | TargetError) -> None:
            if isinstance(result, TargetError):
                self._fill(place, *self._error(request, result))
                return
            said = next((one.extra for one in result if one.id == request.thread), "")
            self._fill(place, binascii.hexlify(said.encode()))

        self._target.list_threads(listed)

    def _transfer(self, request: Transfer) -> None:
        cached = self._object
        if request.offset and cached is not None and cached[:2] == (request.kind, request.annex):
            self._replies.reply(objects.piece(cached[2], request.offset, min(request.length, LONGEST_READ)))
            return
        place = self._replies.reserve()

        def arrived(data: bytes | TargetError | None) -> None:
            if data is None:
                data = TargetError(ENOENT)
            if isinstance(data, TargetError):
                self._fill(place, *self._error(request, data))
                return
            self._object = (request.kind, request.annex, data)
            self._fill(place, objects.piece(data, request.offset, min(request.length, LONGEST_READ)))

        match request.kind:
            case "features":
                self._describe_registers(request.annex, arrived)
            case "threads":
                self._target.list_threads(
                    lambda result: arrived(objects.threads_xml(self._threads_or_known(_LISTS, result)))
                )
            case "exec-file" | "libraries" if self._library is not None:
                self._follower.follows = True
                view = self._viewing.view
                if view is None:
                    self._library(request.kind, request.annex, arrived)
                elif request.kind == "exec-file":
                    self._library("main-file", view.mode.value, arrived)
                else:
                    arrived(_NO_LIBRARIES)
            case _:
                self._fill(place, b"")

    def _describe_registers(self, annex: str, done: Callable[[bytes | TargetError | None], None]) -> None:
        """Describe the registers for the mode that the processor is in at the stop of which the debugger is told."""
        reads_again = self._library is not None and "exec-events+" in self._features

        def stopped(stop: Stop | TargetError) -> None:
            thread = self._thread_of(self._follower.stop or stop)
            self._viewing.describe(thread, annex, done, reads_again=True)

        if reads_again:
            # What a session has not been told of it cannot read: gdb asks why the guest stands after this only.
            self._target.why_stopped(stopped)
        else:
            self._viewing.describe(self._thread(), annex, done, reads_again=False)

    def _do_file(self, request: FileRequest) -> None:
        place = self._replies.reserve()
        if self._files is None:
            self._fill(place, b"")
        else:
            self._files.do(request, partial(self._fill, place))

    # -- registers, memory, breakpoints ---------------------------------------------------------------------

    def _thread(self) -> ThreadId:
        """Return the thread that reads are for."""
        if self._general > ANY_THREAD:
            return self._general
        return self._stopped_thread or ThreadId(1)

    def _thread_of(self, stop: Stop | TargetError) -> ThreadId:
        """Return the thread that a stop is of; where it names none, the one that reads are for."""
        if isinstance(stop, Halted) and stop.thread not in (None, ALL_THREADS):
            return stop.thread or ThreadId(1)
        return self._thread()

    def _read_registers(self, request: ReadRegisters) -> None:
        self._viewing.read(self._thread(), partial(self._registers, request, self._replies.reserve()))

    def _write_registers(self, request: WriteRegisters) -> None:
        self._viewing.write(self._thread(), request.data, self._ok(request))

    def _read_register(self, request: ReadRegister) -> None:
        self._viewing.read_one(
            self._thread(), request.number, partial(self._registers, request, self._replies.reserve())
        )

    def _registers(self, request: Request, place: Place, result: bytes | TargetError) -> None:
        if not result:
            # gdb waits for another reply after an empty one, for ever.
            result = TargetError(EBUSY, "no registers are available now")
        if isinstance(result, TargetError):
            self._fill(place, *self._error(request, result))
        else:
            self._fill(place, result)

    def _write_register(self, request: WriteRegister) -> None:
        self._viewing.write_one(self._thread(), request.number, request.value, self._ok(request))

    def _read_memory(self, request: ReadMemory) -> None:
        if request.length == 0:
            # LLDB probes ``x0,0`` this way.
            self._replies.reply(b"OK" if request.binary else b"E%02x" % EINVAL)
            return
        if not request.binary:
            encode: Callable[[bytes], bytes] = binascii.hexlify
        else:
            encode = encode_prefixed if self._prefixes_binary else encode_bare
        self._target.read_memory(
            self._thread(),
            request.address,
            min(request.length, LONGEST_READ),
            partial(self._answer, request, self._replies.reserve(), encode),
        )

    def _search_memory(self, request: SearchMemory) -> None:
        search = PatternSearch(request.address, request.pattern)
        self._sweep(request, search, lambda: b"0" if search.found is None else b"1,%x" % search.found)

    def _checksum_memory(self, request: ChecksumMemory) -> None:
        checksum = Checksum()
        self._sweep(request, checksum, lambda: b"C%x" % checksum.value)

    def _sweep(
        self, request: SearchMemory | ChecksumMemory, question: Question, answer: Callable[[], bytes]
    ) -> None:
        if self._sweeping:
            self._refuse(request, TargetError(EBUSY, "another search is under way"))
            return
        self._sweeping = True
        place = self._replies.reserve()

        def done(result: TargetError | None) -> None:
            self._sweeping = False
            if result is None:
                self._swept.add(type(request))
                self._fill(place, answer())
            elif type(request) not in self._swept:
                # Nothing was answered yet, so that gdb can still be told that the packet is unknown: it then does
                # the work itself, in its own time, and can be interrupted.
                self._fill(place, b"")
            else:
                self._fill(place, *self._error(request, result))

        Sweep(
            partial(self._target.read_memory, self._thread()),
            request.address,
            request.length,
            question,
            lambda: self.now,
            done,
        ).start()

    def _write_memory(self, request: WriteMemory) -> None:
        if not request.data:
            # gdb asks whether binary writes are known by writing nothing.
            self._replies.reply(b"OK")
            return
        self._target.write_memory(self._thread(), request.address, request.data, self._ok(request))

    def _insert(self, request: Insert) -> None:
        self._target.insert(request.breakpoint, self._ok(request))

    def _remove(self, request: Remove) -> None:
        self._target.remove(request.breakpoint, self._ok(request))

    # -- stops ----------------------------------------------------------------------------------------------

    def _why_stopped(self, request: WhyStopped) -> None:
        place = self._replies.reserve()

        def told(stop: Stop | TargetError) -> None:
            if isinstance(stop, TargetError):
                self._fill(place, *self._error(request, stop))
                self._dismissed = True
                return
            self._note(stop)
            self._fill(place, stop_reply(stop, self._features))

        self._target.why_stopped(told)

    def _resume(self, request: Resume) -> None:
        actions = request.actions
        if request.legacy:
            thread = self._resuming if self._resuming > ANY_THREAD else self._stopped_thread
            if actions[0].motion is Motion.STEP and thread is not None:
                actions = (Action(Motion.STEP, thread), Action(Motion.CONTINUE))
        self._steps = any(action.motion is Motion.STEP for action in actions)
        if self._repeats_step and self._steps and self._target.right < Right.CONTROLLER:
            # LLDB keeps a step for as long as the program counter stays, and sends it for each ``continue`` too.
            self.say(WAITS_INSTEAD)
            actions = (Action(Motion.CONTINUE),)
        self.waiting = True
        self._actions = actions
        self._object = None
        if self._follower.is_telling:
            # The debugger has read what it was told to.  What it resumes stands still, at a stop not told yet.
            self._follow()
            return
        self._general = ANY_THREAD
        # From here on the debugger listens: it need not wait for the stop to learn what it missed.
        self._tell()
        self._target.resume(actions, self._stop_arrived)

    def _tell(self) -> None:
        while self._words:
            self._replies.append(console_output(self._words.popleft()))

    def _stop_arrived(self, stop: Stop | TargetError) -> None:
        if self.finished or not self.waiting:
            return
        if isinstance(stop, Ended):
            self._follower.forget()
        elif self._viewing.view is not None and isinstance(stop, Halted):
            self._follower.withhold(stop)
            self._viewing.look(self._thread_of(stop), partial(self._mode_known, stop, self._viewing.view))
            return
        elif (
            self._library is not None
            and self._follower.follows
            and not self._steps
            and isinstance(stop, Halted)
        ):
            self._follower.withhold(stop)
            self._library("changes", "", partial(self._changes_known, stop))
            return
        self._deliver(stop)

    def _mode_known(self, stop: Halted, view: NarrowView, mode: Mode) -> None:
        """Tell a stop, but first of a processor that has come into another mode: ``view`` fits it no longer."""
        if self.finished or self._follower.stop is not stop:
            return
        if mode is view.mode or self._library is None:
            self._changes_known(stop, b"")
            return

        def named(name: bytes | None) -> None:
            self._changes_known(stop, b"exec:" + binascii.hexlify(name or _NOTHING))

        self._library("main-file", mode.value, named)

    def _changes_known(self, stop: Halted, changes: bytes | None) -> None:
        if self.finished or self._follower.stop is not stop:
            return
        self._follower.must_read(tuple((changes or b"").split()))
        try:
            self._follow()
        except LinkFailed as error:
            self._fail(error)

    def _follow(self) -> None:
        """Tell the debugger the next thing that it must read again, or at last the stop itself."""
        stop = self._follower.stop
        assert stop is not None, "changes belong to a stop"
        change = self._follower.next_change()
        if change is None:
            self._follower.release()
            is_ours = self._reads_again and stop.signal == SIGINT and stop.reason is None
            self._reads_again = False
            if is_ours:
                self._target.resume(self._actions, self._stop_arrived)
            else:
                self._deliver(stop)
            return
        if change.startswith(b"exec:"):
            self._target.forget_breakpoints()
        self._tell()
        self._hand_over(b"T05thread:%s;%s;" % (format_thread(self._thread_of(stop)), change))

    def _deliver(self, stop: Stop | TargetError) -> None:
        """Answer the resume under way."""
        self._tell()
        if isinstance(stop, TargetError):
            words, stop = refused_stop(stop, self._stopped_thread)
            self._replies.append(words)
            self._repeats_step = self._steps and self._debugger is Debugger.LLDB
        elif stop.words:
            self._replies.append(console_output(stop.words))
        if stop.signal != SIGINT:
            self._repeats_step = False
        self._note(stop)
        if isinstance(stop, Ended):
            self.finished = True
        self._hand_over(stop_reply(stop, self._features))

    def _hand_over(self, reply: bytes) -> None:
        """End the debugger's waiting, and do what it asked for meanwhile."""
        self.waiting = False
        self._replies.append(reply)
        if self._releasing:
            return
        # A resume among them may be answered at once: it must not take out the rest within itself.
        self._releasing = True
        try:
            while self._held and not self.waiting and not self.finished:
                self._packet(self._held.popleft())
        except LinkFailed as error:
            self._fail(error)
        finally:
            self._releasing = False

    def _note(self, stop: Stop) -> None:
        self._thread_ids.clear()
        if isinstance(stop, Halted) and stop.thread not in (None, ALL_THREADS):
            self._stopped_thread = stop.thread


_LISTS: Final = ListThreads(first=True)


def _acts(request: Request) -> bool:
    """Return whether a request does something: gdb asks whether binary writes are known by writing nothing."""
    return not isinstance(request, WriteMemory) or bool(request.data)
