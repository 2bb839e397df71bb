"""A stub like the one in QEMU 7.2, as far as a relay can see it, and the machine behind it.

The quirks were all seen on the real one (docs/protocol-notes.md): connecting stops the machine and says so before it
is asked; any byte stops a running one and is lost; `?` removes every breakpoint; inserting counts; `multiprocess` stays
on for later connections; closing the connection without `D` leaves everything as it is; a processor
that was told to step and did not come to it steps later.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

Place = tuple[int, int, int]
"""Kind, address and size of a breakpoint."""

MAPPED = range(0x1000, 0x100000)
REGISTERS = bytes(range(64))
DESCRIPTION = (
    b'<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>'
    b'<architecture>i386:x86-64</architecture><xi:include href="core.xml"/></target>'
)
CORE = b"""<?xml version="1.0"?>
<!-- the registers that there are -->
<!DOCTYPE feature SYSTEM "gdb-target.dtd">
<feature name="org.gnu.gdb.i386.core">
  <reg name="rax" bitsize="64" type="int64" regnum="0"/>
  <reg name="rbx" bitsize="64" type="int64"/>
  <reg name="rsp" bitsize="64" type="data_ptr"/>
  <reg name="rip" bitsize="64" type="code_ptr"/>
  <reg name="eflags" bitsize="32" type="int32"/>
  <reg name="cs" bitsize="32" type="int32"/>
  <reg name="cr3" bitsize="64" type="int64"/>
  <reg name="xmm0" bitsize="128" type="uint128"/>
</feature>
"""
DOCUMENTS = {b"target.xml": DESCRIPTION, b"core.xml": CORE}
PROGRAM_COUNTER = slice(24, 32)
"""Where `rip` stands in the registers."""
LONGEST = 4096


def packet(payload: bytes) -> bytes:
    return b"$%s#%02x" % (payload, sum(payload) % 256)


def memory_at(address: int, length: int) -> bytes:
    """What stands in memory: every byte is made from its address."""
    return bytes((one * 7 + (one >> 8)) & 0xFF for one in range(address, address + length))


@dataclass
class Machine:
    """A virtual machine with its monitor's words and its stub."""

    running: bool = True
    detail: str = "running"
    alive: bool = True
    breakpoints: Counter[Place] = field(default_factory=Counter)
    connected: bool = False
    output: bytearray = field(default_factory=bytearray)
    """What the stub sent, not yet delivered."""
    events: list[bool] = field(default_factory=list)
    """The monitor's events, not yet delivered: True for a resume."""
    spoilt: list[bytes] = field(default_factory=list)
    """Bytes other than 0x03 that stopped the machine while it ran for the debugger."""
    memory: dict[int, int] = field(default_factory=dict)
    seen: list[bytes] = field(default_factory=list)
    """The payloads received."""
    resumed_by_stub: bool = False
    continued: bool = False
    """Whether the last resume of the stub let every processor run on."""
    flags: set[int] = field(default_factory=set)
    """Processors that trap after one instruction; a stop clears the flag of the one that it reports."""
    sstep: int = 7
    multiprocess: bool = False
    registers: bytearray = field(default_factory=lambda: bytearray(REGISTERS))
    path: list[int] = field(default_factory=list)
    """Where the program counter is after each of the steps to come."""
    features: bytes = b"qXfer:features:read+;vContSupported+;multiprocess+"
    resumes: bytes = b"vCont;c;C;s;S"
    documents: dict[bytes, bytes] = field(default_factory=lambda: dict(DOCUMENTS))
    _unacknowledged: bytes = b""
    _buffer: bytes = b""
    _threads_left: int = 0

    # -- the machine ---------------------------------------------------------------------------------------------

    def start(self, *, by_stub: bool = False) -> None:
        if not self.running:
            self.events.append(True)
        self.running = True
        self.detail = "running"
        self.resumed_by_stub = by_stub

    def halt(self, signal: int, detail: str = "paused", thread: int = 1) -> None:
        """Stop, and have the stub say so."""
        if not self.running:
            return
        self.running = False
        self.flags.discard(thread)
        self.detail = detail
        self.events.append(False)
        if self.connected:
            self._say(b"T%02xthread:%s;" % (signal, self._thread(thread)))

    def advance(self) -> None:
        """Let guest time pass: a step ends, a breakpoint is met."""
        if self.running and (self.flags or self.breakpoints):
            if self.flags and self.path:
                self.registers[PROGRAM_COUNTER] = self.path.pop(0).to_bytes(8, "little")
            self.halt(5, "debug", min(self.flags, default=1))

    def panic(self) -> None:
        self.halt(0x8F, "guest-panicked")

    def die(self) -> None:
        self.alive = self.running = self.connected = False
        self.breakpoints.clear()
        self.output.clear()

    # -- the stub's connection -----------------------------------------------------------------------------------

    def connect(self) -> None:
        assert self.alive
        assert not self.connected, "the stub has one client"
        self.connected = True
        self.output.clear()
        self._buffer = self._unacknowledged = b""
        self.halt(2)

    def close(self) -> None:
        self.connected = False
        self.output.clear()
        if self.flags:
            self.advance()  # one instruction does not wait for anybody

    def _say(self, payload: bytes) -> None:
        self._unacknowledged = packet(payload)
        self.output += self._unacknowledged

    def receive(self, data: bytes) -> None:
        for value in data:
            self._byte(bytes((value,)))

    def _byte(self, byte: bytes) -> None:
        if not self._buffer and self._unacknowledged:
            if byte == b"-":
                self.output += self._unacknowledged
            if byte in b"+$":
                self._unacknowledged = b""
            if byte != b"$":
                return  # whatever it is: an interrupt is lost here, too
        if self.running:
            if byte != b"\x03" and self.resumed_by_stub:
                self.spoilt.append(byte)
            self.halt(2)
            return
        if not self._buffer and byte != b"$":
            return
        self._buffer += byte
        if self._buffer[-3:-2] == b"#":
            whole, self._buffer = self._buffer, b""
            payload = whole[1:-3]
            assert whole == packet(payload), f"the relay sent {whole!r}"
            assert len(payload) <= LONGEST, f"the relay sent {len(payload)} bytes at once"
            self.output += b"+"
            self._packet(payload)

    # -- requests ------------------------------------------------------------------------------------------------

    def _thread(self, number: int) -> bytes:
        return b"p01.%02x" % number if self.multiprocess else b"%02x" % number

    def _packet(self, payload: bytes) -> None:
        self.seen.append(payload)
        letter, rest = payload[:1], payload[1:]
        match letter:
            case b"?":
                self.breakpoints.clear()
                self._say(b"T05thread:%s;" % self._thread(1))
            case b"q" | b"Q" | b"v":
                self._named(payload)
            case b"H":
                self._say(b"OK" if self._known(rest[1:]) else b"E22")
            case b"g":
                self._say(self.registers.hex().encode())
            case b"p":
                self._say(bytes(self.registers[:8]).hex().encode() if int(rest, 16) < 8 else b"E14")
            case b"m":
                self._read(rest)
            case b"M":
                self._write(rest)
            case b"G" | b"P":
                self._say(b"OK")
            case b"Z" | b"z":
                self._breakpoint(letter == b"Z", rest)
            case b"D":
                self._detach(rest)
            case b"b" | b"c" | b"s":
                self._resume({1} if letter == b"s" else set())
            case _:
                self._say(b"")

    def _known(self, thread: bytes) -> bool:
        number = thread.rpartition(b".")[2]
        return number in (b"0", b"-1", b"1", b"2", b"01", b"02")

    def _named(self, payload: bytes) -> None:
        name = payload.partition(b":")[0].partition(b";")[0].partition(b",")[0]
        match name:
            case b"qSupported":
                self.multiprocess = self.multiprocess or b"multiprocess+" in payload
                self._say(b"PacketSize=%x;%s" % (LONGEST, self.features))
            case b"vCont?":
                self._say(self.resumes)
            case b"vCont":
                if all(self._known(action.partition(b":")[2] or b"-1") for action in payload.split(b";")[1:]):
                    self._resume(self._stepping(payload))
                else:
                    self._say(b"E22")
            case b"qqemu.sstep":
                self._say(b"0x%x" % self.sstep)
            case _ if name.startswith(b"Qqemu.sstep="):
                self.sstep = int(name.partition(b"=")[2], 16)
                self._say(b"OK")
            case b"qfThreadInfo":
                self._threads_left = 1
                self._say(b"m" + self._thread(1))
            case b"qsThreadInfo":
                self._say(b"m" + self._thread(2) if self._threads_left else b"l")
                self._threads_left = 0
            case b"qThreadExtraInfo":
                self._say(b"CPU#0 [running]".hex().encode())
            case b"qXfer":
                self._object(payload)
            case _:
                self._say(b"")

    def _stepping(self, payload: bytes) -> set[int]:
        """The processors that are told to step; the first action that names one holds for it."""
        left = {1, 2}
        steps: set[int] = set()
        for action in payload.split(b";")[1:]:
            letter, _, thread = action.partition(b":")
            number = int(thread.rpartition(b".")[2], 16) if thread not in (b"", b"-1") else -1
            named = left & ({1, 2} if number == -1 else {number})
            left -= named
            if letter[:1] in b"sSr":
                steps |= named
        return steps

    def _resume(self, stepping: set[int]) -> None:
        if self.sstep:
            self.flags |= stepping
        else:
            self.flags -= stepping
            stepping = set()
        self.continued = not stepping
        self.start(by_stub=True)

    def _object(self, payload: bytes) -> None:
        _, kind, _, annex, where = payload.split(b":")
        document = self.documents.get(annex)
        if kind != b"features" or document is None:
            self._say(b"E00")
            return
        offset, length = (int(one, 16) for one in where.split(b","))
        part = document[offset : offset + length]
        self._say((b"m" if offset + len(part) < len(document) else b"l") + part)

    def _read(self, rest: bytes) -> None:
        address, length = (int(one, 16) for one in rest.split(b","))
        if length * 2 > LONGEST or not length or address not in MAPPED or address + length > MAPPED.stop:
            self._say(b"E14" if length * 2 <= LONGEST else b"E22")
            return
        data = bytearray(memory_at(address, length))
        for offset in range(length):
            data[offset] = self.memory.get(address + offset, data[offset])
        self._say(data.hex().encode())

    def _write(self, rest: bytes) -> None:
        where, _, text = rest.partition(b":")
        address, length = (int(one, 16) for one in where.split(b","))
        data = bytes.fromhex(text.decode())
        assert len(data) == length
        if address not in MAPPED or address + length > MAPPED.stop:
            self._say(b"E14")
            return
        self.memory.update(enumerate(data, address))
        self._say(b"OK")

    def _breakpoint(self, insert: bool, rest: bytes) -> None:
        kind, address, size = (int(one, 16) for one in rest.split(b","))
        place = (kind, address, size)
        if kind == 0 and address not in MAPPED:
            self._say(b"E22")
        elif insert:
            if kind and sum(count for (one, _, _), count in self.breakpoints.items() if one) >= 4:
                self._say(b"E28")
                return
            self.breakpoints[place] += 1
            self._say(b"OK")
        elif place in self.breakpoints:
            self.breakpoints[place] -= 1
            self.breakpoints += Counter()
            self._say(b"OK")
        else:
            self._say(b"E22")

    def _detach(self, rest: bytes) -> None:
        if self.multiprocess and rest != b";1":
            self._say(b"E22")
            return
        self.breakpoints.clear()
        self.start()
        self._say(b"OK")
