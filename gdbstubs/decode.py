"""Packets in words, for people who look at what a debugger and a stub say to each other.

``asked`` reads a request, ``answered`` the reply to it, ``notified`` a notification; all take any bytes and never
raise.  What is in the table of ``packets`` is read by its parser there; what debuggers send besides is known by
name only.

Source: GDB manual, "Packets", "General Query Packets"; LLDB, ``docs/lldb-gdb-remote.txt``.

>>> asked(b"mffffffff81000000,40").words
'read 64 bytes at ffffffff81000000'
>>> answered(b"E0e", asked(b"mffffffff81000000,40"))
'refused: EFAULT (bad address)'
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gdbstubs import decode_replies as replies
from gdbstubs import packets, requests
from gdbstubs.decode_replies import MOST_LISTED, MOST_TEXT, Answer, counted, listed, plain, thread_words
from gdbstubs.errors import RemoteProtocolError
from gdbstubs.packets import Malformed
from gdbstubs.target import ALL_THREADS, Action, Breakpoint, BreakpointKind, Motion

_NAME: Final = re.compile(rb"[qQvj][A-Za-z]*\??")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request means, and how its reply is to be read.

    ``answer`` is None for one that gets no reply.
    """

    words: str
    answer: Answer | None
    binary: bool = False
    """Whether the reply is bytes, which may look like anything."""

    def takes(self, payload: bytes) -> bool:
        """Whether a payload can be the reply: console output comes before it, and a stop may come unasked."""
        if replies.is_output(payload):
            return False
        return self.answer is replies.stop or not replies.is_stop(payload)


def asked(payload: bytes) -> Asked:
    """Say what a request means."""
    found = packets.find(payload)
    if found is None:
        return _by_name(payload)
    row, arguments = found
    try:
        request = row.parse(arguments)
    except (ValueError, RemoteProtocolError) as error:
        what = str(error) if isinstance(error, Malformed) else "its arguments cannot be read"
        return Asked(f"malformed: {_line(what)}", replies.anything)
    known = _REQUESTS.get(type(request))
    if known is None:
        return _by_name(payload)
    binary = isinstance(request, requests.ReadMemory) and request.binary
    return Asked(_line(known.words(request)), known.answer(request), binary)


def answered(payload: bytes, request: Asked | None) -> str:
    """Say what a reply means; ``request`` is what it answers, None where that is not known."""
    if not payload:
        return "not known here"
    if replies.is_output(payload) and (request is None or not request.binary):
        return replies.output(payload)
    refused = replies.refusal(payload)
    if refused is not None:
        return refused
    if request is None or request.answer is None:
        return replies.anything(payload)
    try:
        return request.answer(payload)
    except (ValueError, RemoteProtocolError):
        return replies.anything(payload)


def notified(payload: bytes) -> str:
    """Say what a notification means: ``Stop:T05thread:01;``."""
    name, _, rest = payload.partition(b":")
    return replies.stop(rest) if name == b"Stop" else f"notifies of {plain(name, MOST_TEXT)}"


def _line(words: str) -> str:
    return plain(words.encode("latin-1", "backslashreplace"), MOST_TEXT)


# -- what the table of packets has ---------------------------------------------------------------------------


def _supported(request: requests.Supported) -> str:
    features = sorted(request.features)
    return f"knows {listed(features)}" if features else "knows nothing beyond the protocol"


def _select(request: requests.SelectThread) -> str:
    what = "registers and memory" if request.general else "resuming"
    return f"select {thread_words(request.thread)} for {what}"


def _write_memory(request: requests.WriteMemory) -> str:
    if not request.data:
        return f"probe whether such writes are known (at {request.address:x})"
    return f"write {counted(len(request.data), 'byte')} at {request.address:x}"


_KINDS: Final = {
    BreakpointKind.SOFTWARE: "a breakpoint",
    BreakpointKind.HARDWARE: "a hardware breakpoint",
    BreakpointKind.WRITE: "a write watchpoint",
    BreakpointKind.READ: "a read watchpoint",
    BreakpointKind.ACCESS: "an access watchpoint",
}


def _breakpoint(one: Breakpoint) -> str:
    what = _KINDS[one.kind]
    if one.kind in (BreakpointKind.SOFTWARE, BreakpointKind.HARDWARE):
        return f"{what} at {one.address:x}"
    return f"{what} on {counted(one.size, 'byte')} at {one.address:x}"


_MOTIONS: Final = {
    Motion.CONTINUE: "run",
    Motion.STEP: "step",
    Motion.REVERSE_CONTINUE: "run backwards",
    Motion.REVERSE_STEP: "step backwards",
}


def _resume(request: requests.Resume) -> str:
    """``vCont;s:1;c``: step thread 1, others run."""
    said: list[str] = []
    for action in request.actions[:MOST_LISTED]:
        verb = _MOTIONS[action.motion]
        if action.thread != ALL_THREADS:
            verb = f"{verb} {thread_words(action.thread)}"
        elif said:
            verb = f"others {verb}"
        said.append(verb + _within(action))
    more = len(request.actions) - len(said)
    return ", ".join(said) + (f" and {more} more" if more > 0 else "")


def _within(action: Action) -> str:
    if action.within is None:
        return ""
    start, end = action.within
    return f" while within {start:x} to {end:x}"


def _transfer(request: requests.Transfer) -> str:
    annex = f" {request.annex}" if request.annex else ""
    return f"read {request.kind}{annex}: {counted(request.length, 'byte')} from {request.offset} on"


def _file(request: requests.FileRequest) -> str:
    match request:
        case requests.OpenFile(name):
            return f"open file {name[:MOST_TEXT]}"
        case requests.ReadFile(descriptor, length, offset):
            return f"read {counted(length, 'byte')} from {offset} on of file {descriptor}"
        case requests.StatFile(descriptor):
            return f"how large is file {descriptor}?"
        case requests.CloseFile(descriptor):
            return f"close file {descriptor}"
        case requests.SelectFiles():
            return "whose files?"
        case requests.OtherFile(operation):
            return f"file operation {operation}"


def _search(request: requests.SearchMemory) -> str:
    pattern = counted(len(request.pattern), "byte")
    return f"search {counted(request.length, 'byte')} at {request.address:x} for {pattern}"


def _read_memory(request: requests.ReadMemory) -> Answer:
    return (replies.binary_memory if request.binary else replies.memory)(request.length)


@dataclass(frozen=True, slots=True)
class _Known:
    """A kind of request: its words, and how the reply to it is read."""

    words: Callable[[Any], str]
    answer: Callable[[Any], Answer | None]


def _row(words: str | Callable[[Any], str], answer: Answer | None = replies.done) -> _Known:
    return _Known((lambda _: words) if isinstance(words, str) else words, lambda _: answer)


_REQUESTS: Final[dict[type, _Known]] = {
    requests.Supported: _row(_supported, replies.features),
    requests.StartNoAck: _row("no acknowledgements from here on"),
    requests.EnableErrorStrings: _row("errors may be text"),
    requests.WhyStopped: _row("why does it stand still?", replies.stop),
    requests.SelectThread: _row(_select),
    requests.ReadRegisters: _row("read all registers", replies.registers),
    requests.WriteRegisters: _row(lambda one: f"write all registers ({counted(len(one.data), 'byte')})"),
    requests.ReadRegister: _row(lambda one: f"read register {one.number}", replies.registers),
    requests.WriteRegister: _row(
        lambda one: f"write register {one.number} ({counted(len(one.value), 'byte')})"
    ),
    requests.ReadMemory: _Known(
        lambda one: f"read {counted(one.length, 'byte')} at {one.address:x}", _read_memory
    ),
    requests.WriteMemory: _row(_write_memory),
    requests.SearchMemory: _row(_search, replies.found),
    requests.ChecksumMemory: _row(
        lambda one: f"checksum of {counted(one.length, 'byte')} at {one.address:x}", replies.checksum
    ),
    requests.NonStop: _row(lambda one: "threads stop one by one" if one.on else "all threads stop together"),
    requests.DescribeHost: _row("what is the host?", replies.anything),
    requests.DescribeProcess: _row("what is the process?", replies.anything),
    requests.Insert: _row(lambda one: f"insert {_breakpoint(one.breakpoint)}"),
    requests.Remove: _row(lambda one: f"remove {_breakpoint(one.breakpoint)}"),
    requests.Resume: _row(_resume, replies.stop),
    requests.WhichResumes: _row("which ways to resume are known?", replies.resumes),
    requests.Detach: _row("detach"),
    requests.Kill: _row("kill", None),
    requests.KillProcess: _row("kill"),
    requests.IsAlive: _row(lambda one: f"is there {thread_words(one.thread)}?", replies.alive),
    requests.ListThreads: _row(
        lambda one: "list threads" if one.first else "list more threads", replies.threads
    ),
    requests.ThreadExtra: _row(lambda one: f"what is {thread_words(one.thread)}?", replies.hex_text),
    requests.CurrentThread: _row("which thread stopped?", replies.current),
    requests.WasAttached: _row("was the target there before?", replies.attached),
    requests.Transfer: _row(_transfer, replies.piece),
    requests.OpenFile: _row(_file, replies.file),
    requests.ReadFile: _row(_file, replies.file),
    requests.StatFile: _row(_file, replies.file),
    requests.CloseFile: _row(_file, replies.file),
    requests.SelectFiles: _row(_file, replies.file),
    requests.OtherFile: _row(_file, replies.file),
    requests.OffersSymbols: _row("offers to look up symbols", replies.symbols),
    requests.Monitor: _row(lambda one: f"monitor {one.command[:MOST_TEXT]}", replies.hex_text),
}
"""Each value that the table's parsers make."""


# -- what is known by name only ------------------------------------------------------------------------------

_NAMES: Final[dict[bytes, tuple[str, Answer]]] = {
    b"QAgent": ("switch the tracing agent", replies.done),
    b"QListThreadsInStopReply": ("stop replies may list the threads", replies.done),
    b"QNonStop": ("threads stop one by one, or all at once", replies.done),
    b"QPassSignals": ("signals that need not be told", replies.done),
    b"QProgramSignals": ("signals that the target may see", replies.done),
    b"QRestoreRegisterState": ("restore the registers' state", replies.done),
    b"QSaveRegisterState": ("keep the registers' state", replies.anything),
    b"QThreadEvents": ("tell when threads come and go", replies.done),
    b"QThreadSuffixSupported": ("requests may name their thread", replies.done),
    b"Qqemu": ("set an option of QEMU's stub", replies.done),
    b"jThreadExtendedInfo": ("what is this thread?", replies.anything),
    b"jThreadsInfo": ("what are the threads?", replies.anything),
    b"qCRC": ("checksum of memory", replies.checksum),
    b"qGDBServerVersion": ("which stub is this?", replies.anything),
    b"qGetTIBAddr": ("where is the thread's block?", replies.anything),
    b"qGetTLSAddr": ("where is the thread's variable?", replies.anything),
    b"qHostInfo": ("what is the host?", replies.anything),
    b"qL": ("list threads, the old way", replies.anything),
    b"qMemoryRegionInfo": ("what is mapped there?", replies.anything),
    b"qOffsets": ("where was the program loaded?", replies.anything),
    b"qP": ("what is this thread, the old way?", replies.anything),
    b"qProcessInfo": ("what is the process?", replies.anything),
    b"qRegisterInfo": ("what is this register?", replies.anything),
    b"qSearch": ("search memory", replies.found),
    b"qShlibInfoAddr": ("where are the libraries listed?", replies.anything),
    b"qStructuredDataPlugins": ("what structured data is there?", replies.anything),
    b"qTMinFTPILen": ("how long is a fast tracepoint's instruction?", replies.anything),
    b"qTStatus": ("does a trace experiment run?", replies.anything),
    b"qTfP": ("list tracepoints", replies.anything),
    b"qTfV": ("list trace variables", replies.anything),
    b"qTsP": ("list more tracepoints", replies.anything),
    b"qTsV": ("list more trace variables", replies.anything),
    b"qVAttachOrWaitSupported": ("can it wait for a process?", replies.anything),
    b"qWatchpointSupportInfo": ("how many watchpoints are there?", replies.anything),
    b"qfProcessInfo": ("list processes", replies.anything),
    b"qqemu": ("ask for an option of QEMU's stub", replies.anything),
    b"qsProcessInfo": ("list more processes", replies.anything),
    b"vAttach": ("attach to a process", replies.stop),
    b"vCont": ("resume", replies.stop),
    b"vCtrlC": ("interrupt", replies.done),
    b"vFile": ("a file operation", replies.file),
    b"vFlashDone": ("finish writing flash memory", replies.done),
    b"vFlashErase": ("erase flash memory", replies.done),
    b"vFlashWrite": ("write flash memory", replies.done),
    b"vMustReplyEmpty": ("how are unknown packets answered?", replies.anything),
    b"vRun": ("start a program", replies.stop),
    b"vStdio": ("which other output is there?", replies.anything),
    b"vStopped": ("which other thread stopped?", replies.stop),
}
"""What debuggers send beside what the table has, by its name up to the first byte that is no letter."""

_LETTERS: Final[dict[bytes, tuple[str, Answer | None]]] = {
    b"!": ("extended mode", replies.done),
    b"A": ("arguments of a program", replies.done),
    b"B": ("a breakpoint, the old way", replies.done),
    b"F": ("the result of a file operation", None),
    b"R": ("start again", None),
    b"_": ("allocate or free memory", replies.anything),
    b"i": ("step a clock cycle", replies.stop),
    b"r": ("reset the target", None),
    b"t": ("search memory backwards", replies.anything),
}

_WHOLE: Final[dict[bytes, tuple[str, Answer]]] = {
    b"": ("an empty packet", replies.anything),
    b"bc": ("run backwards", replies.stop),
    b"bs": ("step backwards", replies.stop),
}


def _by_name(payload: bytes) -> Asked:
    whole = _WHOLE.get(payload)
    if whole is not None:
        return Asked(*whole)
    match = _NAME.match(payload)
    if match is not None:
        return Asked(*_NAMES.get(match.group(), ("", replies.anything)))
    return Asked(*_LETTERS.get(payload[:1], ("", replies.anything)))
