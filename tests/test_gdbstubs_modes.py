"""The 32-bit view of a 64-bit stub's registers, in real and in protected mode."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdbstubs.errors import EINVAL, TargetError
from gdbstubs.modes import Mode, NarrowView, mode_of
from gdbstubs.registers import Description, parse_description
from gdbstubs.target import Reply, ThreadId
from gdbstubs.viewing import MAIN_DOCUMENT, Viewing
from gdbstubs.x86 import KGDB_X86_64, X86_64

ONE = ThreadId(1)


def registers(**values: int) -> bytes:
    """The text of all registers; zero but for those given."""
    data = b"".join(values.get(one.name, 0).to_bytes(one.size, "little") for one in X86_64.registers)
    return data.hex().encode()


@pytest.mark.parametrize(
    ("cr0", "efer", "mode"),
    [
        (0x6000_0010, 0, Mode.REAL),
        (0x11, 0, Mode.PROTECTED),
        (0x8000_0011, 0x100, Mode.PROTECTED),  # long mode enabled, not active
        (0x8000_0011, 0x500, Mode.LONG),
    ],
)
def test_the_mode_is_what_the_control_registers_say(cr0: int, efer: int, mode: Mode) -> None:
    assert mode_of(X86_64, registers(cr0=cr0, efer=efer)) is mode


def test_long_mode_is_taken_for_granted_where_nothing_tells() -> None:
    assert mode_of(None, b"") is Mode.LONG
    assert mode_of(KGDB_X86_64, b"00" * 160) is Mode.LONG
    assert mode_of(X86_64, b"xx" * (X86_64.text_length // 2)) is Mode.LONG
    assert mode_of(X86_64, b"") is Mode.LONG


@pytest.mark.parametrize("mode", [Mode.REAL, Mode.PROTECTED])
def test_the_view_describes_what_it_translates_to(mode: Mode) -> None:
    view = NarrowView(X86_64, mode)
    served = parse_description(view.description.document)
    assert served.registers == view.description.registers
    assert served.architecture == mode.value
    assert len(view.narrow(registers())) == served.text_length


def test_in_real_mode_the_counter_is_the_linear_address() -> None:
    view = NarrowView(X86_64, Mode.REAL)
    text = registers(rip=0xFFF0, cs=0xF000, rax=0x1234)
    values = view.description.values(view.narrow(text))
    assert (values["eip"], values["cs"], values["eax"]) == (0xFFFF0, 0xF000, 0x1234)
    flat = NarrowView(X86_64, Mode.PROTECTED).narrow(registers(rip=0x10_0000, cs=0x10))
    assert view.description.values(flat)["eip"] == 0x10_0000


WORDS = st.integers(0, 0xFFFF_FFFF)


@given(st.sampled_from([Mode.REAL, Mode.PROTECTED]), st.integers(0, 0xFFFF), WORDS, WORDS)
def test_what_is_written_back_as_it_was_read_changes_nothing(mode: Mode, cs: int, ip: int, ax: int) -> None:
    view = NarrowView(X86_64, mode)
    text = registers(rip=ip, cs=cs, rax=ax, cr0=0x10, r8=1 << 40)
    assert view.widen(text, bytes.fromhex(view.narrow(text).decode())).hex().encode() == text


@given(st.sampled_from([Mode.REAL, Mode.PROTECTED]), st.integers(0, 0xFFFF), WORDS)
def test_a_counter_that_is_written_is_read_back(mode: Mode, cs: int, linear: int) -> None:
    view = NarrowView(X86_64, mode)
    text = registers(cs=cs, rip=0x7C00)
    number = view.description.names["eip"].number
    place = view.wide_register(number, linear.to_bytes(4, "little"), text)
    assert place is not None
    written = registers(cs=cs, rip=int.from_bytes(place[1], "little"))
    assert place[0] == X86_64.names["rip"].number
    assert view.register(number, written) == linear.to_bytes(4, "little").hex().encode()


class Processor:
    """A target of one processor, in whatever mode its registers say."""

    description: Description | None = X86_64

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.written: list[tuple[int, bytes]] = []

    def read_registers(self, thread: ThreadId, done: Reply[bytes]) -> None:
        done(self.text)

    def read_register(self, thread: ThreadId, number: int, done: Reply[bytes]) -> None:
        done(X86_64.numbers[number].of(self.text))

    def write_registers(self, thread: ThreadId, data: bytes, done: Reply[None]) -> None:
        self.text = data.hex().encode()
        done(None)

    def write_register(self, thread: ThreadId, number: int, value: bytes, done: Reply[None]) -> None:
        self.written.append((number, value))
        done(None)

    def read_description(self, annex: str, done: Reply[bytes | None]) -> None:
        done(b"its own")


REAL = registers(rip=0xE05B, cs=0xF000, cr0=0x10)
LONG = registers(rip=0xFFFF_FFFF_8100_0000, cr0=0x8000_0011, efer=0x500)


def viewing(processor: Processor) -> Viewing:
    return Viewing(processor)  # type: ignore[arg-type]


def described(one: Viewing, *, reads_again: bool = True, annex: str = MAIN_DOCUMENT) -> object:
    answers: list[object] = []
    one.describe(ONE, annex, answers.append, reads_again=reads_again)
    (answer,) = answers
    return answer


def test_a_session_is_described_what_its_processor_is_in_and_long_mode_for_good() -> None:
    processor = Processor(REAL)
    one = viewing(processor)
    document = described(one)
    assert isinstance(document, bytes)
    assert b"<architecture>i8086</architecture>" in document
    processor.text = LONG
    assert described(one) == b"its own"
    processor.text = REAL
    assert described(one) == b"its own"
    assert one.view is None


def test_a_debugger_that_does_not_read_again_is_never_given_the_narrow_view() -> None:
    one = viewing(Processor(REAL))
    assert described(one, reads_again=False) == b"its own"
    assert described(one) == b"its own"


def test_registers_are_in_the_view_that_was_described() -> None:
    processor = Processor(REAL)
    one = viewing(processor)
    answers: list[object] = []
    one.read(ONE, answers.append)
    assert answers.pop() == REAL
    described(one)
    assert one.view is not None
    names = one.view.description.names
    one.read(ONE, answers.append)
    text = answers.pop()
    assert isinstance(text, bytes)
    assert one.view.description.values(text)["eip"] == 0xFE05B
    one.read_one(ONE, names["eip"].number, answers.append)
    assert answers.pop() == b"5be00f00"
    one.read_one(ONE, 999, answers.append)
    error = answers.pop()
    assert isinstance(error, TargetError)
    assert error.errno == EINVAL
    one.write_one(ONE, names["eip"].number, (0xFE062).to_bytes(4, "little"), answers.append)
    assert processor.written == [(X86_64.names["rip"].number, (0xE062).to_bytes(8, "little"))]
    one.write(ONE, bytes.fromhex(text.decode()), answers.append)
    assert processor.text == REAL
    assert answers == [None, None]
