"""A stub's registers in the order in which sessions were told that they come.

in:      what the stub's own description says, replies to ``g`` and ``p``
out:     one description for all sessions, for as long as the relay lives; registers in its order
invariant: no text is longer than an earlier one: gdb refuses a ``g`` that is ("packet reply is too long"), and
         a shorter one makes it expect no more from then on
"""

from __future__ import annotations

import binascii
from collections.abc import Callable

from gdbstubs.errors import EINVAL, EIO, ENOSYS, TargetError
from gdbstubs.memory import AskOf
from gdbstubs.registers import Description, DescriptionRead, Translation
from gdbstubs.replies import as_done, as_registers
from gdbstubs.target import Reply, ThreadId

_TARGET = "target.xml"


class StubRegisters:
    """The registers of a stub's client; what was served outlives each connection.

    ``own`` is the layout of a stub that does not describe it, ``described`` what sessions are served before a
    stub's own description is known, and for a stub that has none.
    """

    def __init__(self, ask_of: AskOf, own: Description | None, described: Description | None) -> None:
        self._ask_of = ask_of
        self._default = own
        self._described = described
        self._frozen: Description | None = None
        self._learnt: Description | None = None
        self._main = b""
        self._length: int | None = None
        """How long a text may be; None before any was served."""
        self.disconnected()

    def disconnected(self) -> None:
        """Forget what belongs to one connection."""
        self._translation: Translation | None = None
        self._raw: dict[str, bytes | None] = {}
        self.forget()

    def forget(self) -> None:
        """Forget the registers read at this stop, because something may have changed them."""
        self._known: dict[ThreadId, bytes] = {}
        self._wanted: dict[ThreadId, list[Reply[bytes]]] = {}

    # -- the description ------------------------------------------------------------------------------------

    @property
    def description(self) -> Description | None:
        """The description that registers follow now; it never changes once a session was served it."""
        return self._frozen or self._learnt or self._described

    def learn(self, read: Callable[[str, Reply[bytes]], None] | None, done: Callable[[], None]) -> None:
        """Learn a new connection's own description; ``read`` reads one document, None where there are none.

        A stub whose description cannot be understood is taken for one that has none.
        """
        if read is None:
            self._connect(self._default)
            done()
            return
        main: list[bytes] = []

        def read_main(name: str, told: Reply[bytes]) -> None:
            read(name, lambda result: arrived(name, told, result))

        def arrived(name: str, told: Reply[bytes], result: bytes | TargetError) -> None:
            if not main and isinstance(result, bytes):
                main.append(result)
                if self._learnt is not None and result == self._main:
                    # The same stub again: what it includes need not be read another time.
                    learnt(self._learnt)
                    return
            told(result)

        def learnt(result: Description | TargetError) -> None:
            if isinstance(result, Description):
                self._learnt, self._main = result, main[0]
                self._connect(result)
            else:
                self._connect(self._default)
            done()

        DescriptionRead(read_main, learnt).start()

    def _connect(self, own: Description | None) -> None:
        wanted = self.description
        self._translation = None
        if own is not None and wanted is not None and own.registers != wanted.registers:
            self._translation = Translation(own, wanted)

    def serve(self, annex: str) -> bytes | None:
        """Return a file of the description, which is one document; None where there is none.

        What is served once holds for good.
        """
        description = self.description
        if annex != _TARGET or description is None or not description.document:
            return None
        self._frozen = description
        return description.document

    @property
    def text_length(self) -> int:
        """How many characters the registers' text has; 0 where that is not known."""
        if self._length is not None:
            return self._length
        return self.description.text_length if self.description is not None else 0

    def unavailable(self) -> bytes:
        """Return the text of registers that cannot be read now; empty where their length is not known.

        The program counter is zero: gdb cannot attach where it is not available either.
        """
        length = self.text_length
        self._length = length or None
        counter = self.description.program_counter if self.description is not None else None
        if counter is None:
            return b"x" * length
        before, digits = 2 * counter.offset, 2 * counter.size
        return (b"x" * before + b"0" * digits).ljust(length, b"x")[:length]

    # -- all registers --------------------------------------------------------------------------------------

    def known(self, thread: ThreadId) -> bytes | None:
        """Return the registers that were read at this stop already."""
        return self._known.get(thread)

    def read(self, thread: ThreadId, done: Reply[bytes]) -> None:
        """Read all registers of a thread; asked once a stop."""
        known = self._known.get(thread)
        if known is not None:
            done(known)
            return
        wanted = self._wanted.get(thread)
        if wanted is not None:
            wanted.append(done)
            return
        # What is written meanwhile replaces both dictionaries, and this answer is then not kept.
        registers, all_wanted = self._known, self._wanted
        waiting = all_wanted[thread] = [done]

        def read(result: bytes | TargetError) -> None:
            all_wanted.pop(thread, None)
            if not isinstance(result, TargetError):
                if self._translation is not None:
                    result = self._translation.translate(result)
                if len(result) != self._length:
                    result = self._fit(result)
                registers[thread] = result
            for tell in waiting:
                tell(result)

        self._ask_of(thread, b"g", as_registers, read)

    def _fit(self, text: bytes) -> bytes:
        """Cut a text to what sessions may expect; a shorter one is the most that they will expect from now on."""
        most = self.text_length or len(text)
        self._length = min(most, len(text))
        return text[: self._length]

    def write(self, thread: ThreadId, data: bytes, done: Reply[None]) -> None:
        """Write all registers; where the stub has only some, the others keep their values."""
        self.forget()
        translation = self._translation
        if translation is None:
            self._ask_of(thread, b"G" + binascii.hexlify(data), as_done, done)
            return

        def read(result: bytes | TargetError) -> None:
            if isinstance(result, TargetError):
                done(result)
            else:
                # A stub that has no value for a byte has no use for one either.
                text = translation.overlay(result, data).replace(b"x", b"0")
                self._ask_of(thread, b"G" + text, as_done, done)

        self._ask_of(thread, b"g", as_registers, read)

    # -- one register ---------------------------------------------------------------------------------------

    def read_one(self, thread: ThreadId, number: int, done: Reply[bytes]) -> None:
        """Read one register, out of all of them where the stub cannot read one alone."""
        translation = self._translation
        own = number

        if translation is not None:
            wanted = translation.target.numbers.get(number)
            if wanted is None:
                done(TargetError(EINVAL, f"there is no register {number}"))
                return
            register = translation.register(number)
            if register is None:
                done(b"xx" * wanted.size)
                return
            own = register.number

        def read(result: bytes | TargetError) -> None:
            if isinstance(result, TargetError):
                if result.errno == ENOSYS:
                    self._read_out_of_all(thread, number, done)
                else:
                    done(result)
            else:
                done(result if translation is None else translation.fit_to_target(number, result))

        self._ask_of(thread, b"p%x" % own, as_registers, read)

    def _read_out_of_all(self, thread: ThreadId, number: int, done: Reply[bytes]) -> None:
        description = self.description
        register = None if description is None else description.numbers.get(number)
        if register is None:
            done(TargetError(ENOSYS, "the stub reads no single register, and does not say where they stand"))
            return
        self.read(thread, lambda all_: done(all_ if isinstance(all_, TargetError) else register.of(all_)))

    def write_one(self, thread: ThreadId, number: int, value: bytes, done: Reply[None]) -> None:
        """Write one register."""
        self.forget()
        translation = self._translation
        if translation is not None:
            register = translation.register(number)
            if register is None:
                done(TargetError(EINVAL, f"the stub has no register {number} of the description"))
                return
            number, value = register.number, translation.fit_to_source(register, value)
        self._ask_of(thread, b"P%x=%s" % (number, binascii.hexlify(value)), as_done, done)

    def program_counter(self, thread: ThreadId, done: Reply[int]) -> None:
        """Tell the address of a thread's next instruction."""
        description = self.description
        register = None if description is None else description.program_counter
        if description is None or register is None:
            done(TargetError(ENOSYS, "the stub does not say which register is the program counter"))
            return

        def read(result: bytes | TargetError) -> None:
            if isinstance(result, TargetError):
                done(result)
                return
            value = description.value(register.of(result))
            done(TargetError(EIO, "the program counter is not available") if value is None else value)

        self.read(thread, read)
