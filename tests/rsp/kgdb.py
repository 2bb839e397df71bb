"""A stub like the kernel's own, kernel/debug/gdbstub.c in Linux 6.1, as a line sees it.

Only what is in the debugger is answered; acknowledgements are waited for; what is not known gets the empty reply.
"""

from __future__ import annotations

from rsp.stub import memory_at, packet

CPUS = (b"fffffffe", b"fffffffd")
TASKS = {b"01": b"init", b"02": b"kthreadd", b"3f": b"sh"}
NUMREGBYTES = 17 * 8 + 5 * 4
PROGRAM_COUNTER = slice(128, 136)
FLAGS = slice(136, 140)
LONGEST = 1023


class Kgdb:
    def __init__(self, *, connected: bool = False) -> None:
        self.in_debugger = False
        self.connected = connected
        self.output = bytearray()
        self.seen: list[bytes] = []
        self.registers = bytearray(range(NUMREGBYTES))
        self.memory: dict[int, int] = {}
        self.breakpoints: set[bytes] = set()
        self.hardware: set[bytes] = set()
        self.removed: set[bytes] = set()
        """Where a processor that hit a breakpoint and comes second is let go on: there was one."""
        self.path: list[int] = []
        self.current = CPUS[0]
        self.tasks = dict(TASKS)
        self.is_read_only = False
        """Whether it refuses to write registers, as it does those of a task that is on no processor."""
        self.is_typed_at = False
        """Whether what is no packet may come: keys that the console's driver had not read."""
        self._unacknowledged = b""
        self._buffer = b""
        self._leaving = False

    def break_in(self) -> None:
        """What BREAK and `g` do."""
        if not self.in_debugger:
            self.halt()

    def halt(self) -> None:
        self.in_debugger = True
        self._buffer = b""
        if self.connected:
            self._say(b"T05thread:%s;" % self.current)

    def trap(self, address: int, *, flags: int | None = None) -> None:
        """Run into the `int3` at an address, which the processor is then one byte past."""
        assert not self.in_debugger
        self.registers[PROGRAM_COUNTER] = (address + 1).to_bytes(8, "little")
        if flags is not None:
            self.registers[FLAGS] = flags.to_bytes(4, "little")
        self.halt()

    def exit_task(self, task: bytes) -> None:
        del self.tasks[task]

    @property
    def program_counter(self) -> int:
        return int.from_bytes(self.registers[PROGRAM_COUNTER], "little")

    def _say(self, payload: bytes) -> None:
        self._unacknowledged = packet(payload)
        self.output += self._unacknowledged

    def receive(self, data: bytes) -> None:
        for value in data:
            byte = bytes((value,))
            if not self.in_debugger:
                continue
            if self._unacknowledged:
                if byte == b"$":
                    # It gives up, and so does the request that came too early: its rest is noise.
                    self.output += b"-"
                    self._unacknowledged = b""
                elif byte == b"+":
                    self._unacknowledged = b""
                    # It goes on only when its answer to `D` was acknowledged.
                    self.in_debugger, self._leaving = not self._leaving, False
                elif byte != b"\x03":
                    self.output += self._unacknowledged
                continue
            if not self._buffer and byte != b"$":
                continue
            self._buffer += byte
            if self._buffer[-3:-2] == b"#":
                whole, self._buffer = self._buffer, b""
                payload = whole[1:-3]
                if self.is_typed_at and whole != packet(payload):
                    self.output += b"-"
                    continue
                assert whole == packet(payload)
                assert len(payload) < LONGEST, "longer than BUFMAX"
                self.connected = True
                self.output += b"+"
                self._packet(payload)

    def _packet(self, payload: bytes) -> None:
        self.seen.append(payload)
        letter, rest = payload[:1], payload[1:]
        assert letter not in (b"k", b"R", b"3", b"C"), f"the relay sent {payload!r}"
        match letter:
            case b"?":
                self.breakpoints.clear()
                self.removed.clear()
                self.hardware.clear()
                self._say(b"S05")
            case b"q":
                self._say(self._query(payload))
            case b"H" | b"T":
                known = rest.lstrip(b"gc") in (*CPUS, *self.tasks, b"0", b"1", b"2")
                self._say(b"OK" if known else b"E22")
            case b"g" | b"G" | b"p" | b"P":
                self._register(letter, rest)
            case b"m":
                self._read(rest)
            case b"M" | b"X":
                self._write(letter, rest)
            case b"Z" | b"z":
                self._breakpoint(letter, rest)
            case b"c" | b"s":
                self._go(stepping=letter == b"s")
            case b"D":
                self.breakpoints.clear()
                self.removed.clear()
                self.connected = False
                self._leaving = True
                self._say(b"OK")
            case _:
                self._say(b"")

    def _register(self, letter: bytes, rest: bytes) -> None:
        if letter == b"g":
            self._say(self.registers.hex().encode())
            return
        if letter == b"G":
            self.registers[:] = bytes.fromhex(rest.decode())
            assert len(self.registers) == NUMREGBYTES
        number, _, value = rest.partition(b"=")
        if letter == b"p":
            start, end = self._place(int(rest, 16))
            self._say(bytes(self.registers[start:end]).ljust(end - start, b"\0").hex().encode())
            return
        if letter == b"P":
            start, end = self._place(int(number, 16))
            assert len(value) == 2 * (end - start), "a register of another size"
            if self.is_read_only:
                self._say(b"E22")
                return
            self.registers[start:end] = bytes.fromhex(value.decode())
        self._say(b"OK")

    def _read(self, rest: bytes) -> None:
        address, length = (int(one, 16) for one in rest.split(b","))
        data = bytearray(memory_at(address, length))
        for offset in range(length):
            data[offset] = self.memory.get(address + offset, data[offset])
        self._say(data.hex().encode() if address >= 0x1000 else b"E22")

    def _place(self, number: int) -> tuple[int, int]:
        return (
            (8 * number, 8 * number + 8)
            if number < 17
            else (136 + 4 * (number - 17), 140 + 4 * (number - 17))
        )

    def _query(self, payload: bytes) -> bytes:
        if payload == b"qC":
            return b"QC" + self.current
        if payload == b"qfThreadInfo":
            self._left = True
            return b"m" + b",".join((*CPUS, *self.tasks))
        if payload.startswith(b"qThreadExtraInfo,"):
            task = payload.partition(b",")[2]
            return (self.tasks[task].ljust(16, b"\0") if task in self.tasks else b"shadowCPU0").hex().encode()
        return b""  # the end of the threads, too

    def _write(self, letter: bytes, rest: bytes) -> None:
        where, _, text = rest.partition(b":")
        address, length = (int(one, 16) for one in where.split(b","))
        if letter == b"M":
            data = bytes.fromhex(text.decode())
        else:
            data = bytearray()
            left = iter(text)
            data = bytes(next(left) ^ 0x20 if one == 0x7D else one for one in left)
        assert len(data) == length
        self.memory.update(enumerate(data, address))
        self._say(b"OK")

    def _breakpoint(self, letter: bytes, rest: bytes) -> None:
        places = self.breakpoints if rest[:1] == b"0" else self.hardware
        if letter == b"Z":
            if rest in places:
                self._say(b"E17")
            elif places is self.hardware and len(places) == 4:
                self._say(b"E01")
            else:
                places.add(rest)
                self.removed.discard(rest)
                self._say(b"OK")
        elif rest in places:
            places.remove(rest)
            if places is self.breakpoints:
                self.removed.add(rest)
            self._say(b"OK")
        else:
            self._say(b"E02")

    def _go(self, *, stepping: bool) -> None:
        self.in_debugger = False
        self._unacknowledged = b""
        if stepping:
            if self.path:
                self.registers[PROGRAM_COUNTER] = self.path.pop(0).to_bytes(8, "little")
            self.halt()
