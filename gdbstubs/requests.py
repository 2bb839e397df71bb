"""What a debugger may ask, once it is parsed: one frozen value for each packet, with an example of it on the wire.

Addresses and lengths are in bytes.  Source: GDB manual, "Packets", "General Query Packets", "vCont"; LLDB's
"GDB Remote Protocol Extensions" for what only LLDB sends.
"""

from __future__ import annotations

from dataclasses import dataclass

from gdbstubs.target import Action, Breakpoint, ThreadId


@dataclass(frozen=True, slots=True)
class Supported:
    """``qSupported:multiprocess+;swbreak+``: what the debugger can do."""

    features: frozenset[str]


@dataclass(frozen=True, slots=True)
class StartNoAck:
    """``QStartNoAckMode``: no acknowledgements from here on."""


@dataclass(frozen=True, slots=True)
class EnableErrorStrings:
    """``QEnableErrorStrings``: LLDB takes ``E01;hex text``."""


@dataclass(frozen=True, slots=True)
class NonStop:
    """``QNonStop:1``: whether threads are to stop one by one; only ``0`` is served."""

    on: bool


@dataclass(frozen=True, slots=True)
class DescribeHost:
    """``qHostInfo``: LLDB asks for the architecture and operating system."""


@dataclass(frozen=True, slots=True)
class DescribeProcess:
    """``qProcessInfo``: LLDB asks the same of what it debugs."""


@dataclass(frozen=True, slots=True)
class WhyStopped:
    """``?``: why the target stands still."""


@dataclass(frozen=True, slots=True)
class SelectThread:
    """``Hg1``, ``Hc-1``: the thread of later register and memory (``g``) or resume (``c``) packets."""

    general: bool
    thread: ThreadId


@dataclass(frozen=True, slots=True)
class ReadRegisters:
    """``g``: all general registers."""


@dataclass(frozen=True, slots=True)
class WriteRegisters:
    """``G0011…``: all general registers."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ReadRegister:
    """``p10``: one register, its number in hexadecimal."""

    number: int


@dataclass(frozen=True, slots=True)
class WriteRegister:
    """``P10=0011223344556677``: one register."""

    number: int
    value: bytes


@dataclass(frozen=True, slots=True)
class ReadMemory:
    """``mffffffff81000000,40``: memory, answered in hexadecimal; ``x…``: answered in binary."""

    address: int
    length: int
    binary: bool = False


@dataclass(frozen=True, slots=True)
class WriteMemory:
    """``Mffffffff81000000,1:cc`` in hexadecimal, ``Xffffffff81000000,1:`` and the byte itself in binary."""

    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SearchMemory:
    """``qSearch:memory:ffffffff81000000;1000;pattern``: where the pattern, sent in binary, is found first."""

    address: int
    length: int
    pattern: bytes


@dataclass(frozen=True, slots=True)
class ChecksumMemory:
    """``qCRC:ffffffff81000000,1000``: GDB's CRC-32 of a range of memory."""

    address: int
    length: int


@dataclass(frozen=True, slots=True)
class Insert:
    """``Z0,ffffffff81000000,1``: insert a breakpoint or watchpoint."""

    breakpoint: Breakpoint


@dataclass(frozen=True, slots=True)
class Remove:
    """``z0,ffffffff81000000,1``: remove a breakpoint or watchpoint."""

    breakpoint: Breakpoint


@dataclass(frozen=True, slots=True)
class Resume:
    """``vCont;s:1;c``, ``vCont;r1000,1010:1``, or ``c``, ``s``, ``C05``, ``S05`` of old; ``bc``, ``bs`` backwards.

    An action without a thread in an old packet holds for the thread of ``Hc`` (``legacy``).  A signal is
    dropped: processors take none.
    """

    actions: tuple[Action, ...]
    legacy: bool = False


@dataclass(frozen=True, slots=True)
class WhichResumes:
    """``vCont?``: the actions known."""


@dataclass(frozen=True, slots=True)
class Detach:
    """``D`` or ``D;1``: leave."""


@dataclass(frozen=True, slots=True)
class Kill:
    """``k``: no reply is expected; a relay takes it for leaving."""


@dataclass(frozen=True, slots=True)
class KillProcess:
    """``vKill;1``: always refused."""


@dataclass(frozen=True, slots=True)
class IsAlive:
    """``T1``: whether a thread exists."""

    thread: ThreadId


@dataclass(frozen=True, slots=True)
class ListThreads:
    """``qfThreadInfo`` (first) and ``qsThreadInfo``: the thread-ids."""

    first: bool


@dataclass(frozen=True, slots=True)
class ThreadExtra:
    """``qThreadExtraInfo,1``: what the stub says of a thread."""

    thread: ThreadId


@dataclass(frozen=True, slots=True)
class CurrentThread:
    """``qC``: the thread that stopped."""


@dataclass(frozen=True, slots=True)
class WasAttached:
    """``qAttached``: whether the target was there before the debugger (always)."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """``qXfer:features:read:target.xml:0,1000``: a piece of an object, offset and length in bytes."""

    kind: str
    annex: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class OpenFile:
    """``vFile:open:2f6b,0,0``: open a file; flags as the protocol numbers them, 0 being "to read"."""

    name: str
    flags: int


@dataclass(frozen=True, slots=True)
class ReadFile:
    """``vFile:pread:3,1000,0``: read from an offset, both in bytes."""

    descriptor: int
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class StatFile:
    """``vFile:fstat:3``: size and kind of an open file."""

    descriptor: int


@dataclass(frozen=True, slots=True)
class CloseFile:
    """``vFile:close:3``."""

    descriptor: int


@dataclass(frozen=True, slots=True)
class SelectFiles:
    """``vFile:setfs:0``: whose files are meant; there is one set only."""


@dataclass(frozen=True, slots=True)
class OtherFile:
    """``vFile:unlink``, ``lstat`` and others: files are served to be read, and there are no links."""

    operation: str


FileRequest = OpenFile | ReadFile | StatFile | CloseFile | SelectFiles | OtherFile


@dataclass(frozen=True, slots=True)
class OffersSymbols:
    """``qSymbol::``: the debugger can look symbols up; none are wanted."""


@dataclass(frozen=True, slots=True)
class Monitor:
    """``qRcmd,68656c70``: ``monitor help``."""

    command: str


Request = (
    Supported
    | StartNoAck
    | EnableErrorStrings
    | NonStop
    | DescribeHost
    | DescribeProcess
    | WhyStopped
    | SelectThread
    | ReadRegisters
    | WriteRegisters
    | ReadRegister
    | WriteRegister
    | ReadMemory
    | WriteMemory
    | SearchMemory
    | ChecksumMemory
    | Insert
    | Remove
    | Resume
    | WhichResumes
    | Detach
    | Kill
    | KillProcess
    | IsAlive
    | ListThreads
    | ThreadExtra
    | CurrentThread
    | WasAttached
    | Transfer
    | OpenFile
    | ReadFile
    | StatFile
    | CloseFile
    | SelectFiles
    | OtherFile
    | OffersSymbols
    | Monitor
)
