"""The ways into kgdb: their order, what is remembered, and the words for each that failed; no kernel here."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge import way_in
from kbridge.breakin import WAIT_SECONDS, BreakIn
from kbridge.breaks import Breaks
from kbridge.config import BreakInWay
from kbridge.console.ring import Ring
from kbridge.errors import GuestError, LineError, MachineError, RecordError
from kbridge.transports.endpoints import Break, Endpoint, Pty, Rfc2217, Serial, Tcp, Telnet, Unix

SYSRQ, NMI, PAUSE = BreakInWay.SYSRQ, BreakInWay.NMI, BreakInWay.PAUSE
SERIAL, TELNET, RFC2217 = BreakInWay.SERIAL_BREAK, BreakInWay.TELNET_BREAK, BreakInWay.RFC2217_BREAK
MONITOR = BreakInWay.MONITOR_BREAK
SERVER = Rfc2217("console-server", 2001)
DEVICE = Serial("/dev/ttyS0", 115200)


class World:
    """A guest's parts, and which way its kernel takes: line and machine note what is sent, in one list."""

    def __init__(
        self,
        *ways: BreakInWay,
        console: Endpoint | None = DEVICE,
        machine: bool = False,
        takes: BreakInWay | None = None,
        broken: tuple[BreakInWay, ...] = (),
        says: bytes = b"",
        memory: Path | None = None,
        stands: bool | None = None,
        pages: bool = False,
    ) -> None:
        self.takes, self.broken, self.says = takes, broken, says
        self.sent: list[BreakInWay | bytes] = []
        self.ring = Ring.anonymous(65536)
        self.ring.append(b"sysrq: HELP from long ago\n")
        self.waited: list[float] = []
        self.writes = True
        self.sought: list[int] = []
        self.is_deaf = False
        own: Any = self
        line = None if console is None else own
        self.breaks = Breaks(console, lambda: line, own if machine else None)
        self.break_in = BreakIn(
            "web1",
            ways,
            breaks=self.breaks,
            machine=own if machine else None,
            said=self.ring,
            memory=memory,
            seek=None if stands is None else lambda: self.sought.append(1) is None and stands,
            turn_pages=(lambda: self.sought.append(2) is None) if pages else None,
        )

    def _send(self, way: BreakInWay) -> None:
        if way in self.broken:
            raise MachineError(f"{way.value} failed", why="broken")
        self.sent.append(way)

    async def send_break(self, how: Break | str) -> None:
        """The line's, with a ``Break``; the machine's, with an endpoint."""
        self._send(BreakInWay(f"{how.value}-break") if isinstance(how, Break) else MONITOR)

    def write(self, data: bytes) -> None:
        if not self.writes:
            raise LineError("cannot write", why="the line is lost", todo="try again")
        self.sent.append(data)

    async def nmi(self) -> None:
        self._send(NMI)

    async def pause(self) -> None:
        self._send(PAUSE)

    async def arrived(self, seconds: float) -> bool:
        self.waited.append(seconds)
        self.ring.append(self.says)
        return self.takes in self.sent or (bool(self.sought) and not self.is_deaf)

    def enter(self) -> BreakInWay | None:
        self.sent.clear()
        return asyncio.run(self.break_in.enter(self.arrived))

    def refused(self) -> str:
        with pytest.raises(GuestError) as caught:
            self.enter()
        assert caught.value.todo
        return str(caught.value)


@pytest.mark.parametrize(
    ("console", "machine", "means"),
    [
        (DEVICE, False, [SERIAL]),
        (DEVICE, True, [SERIAL, MONITOR]),
        (Telnet("host", 23), True, [TELNET, MONITOR]),
        (SERVER, False, [RFC2217, TELNET]),
        (Unix("/run/serial"), True, [MONITOR]),
        (Pty("/dev/pts/1"), True, [MONITOR]),
        (Tcp("host", 23), False, []),
        (None, True, []),
    ],
)
def test_sysrq_means_each_break_that_the_guest_has(
    console: Endpoint | None, machine: bool, means: list[BreakInWay]
) -> None:
    world = World(SYSRQ, console=console, machine=machine)
    assert list(world.breaks.ways) == list(world.break_in.ways) == means
    for way in means:
        world.takes = way
        assert world.enter() is way
        assert world.sent[-2:] == [way, b"g"]
    assert world.waited.count(WAIT_SECONDS) == len(world.waited)


def test_the_ways_are_tried_in_the_users_order_each_checked_before_the_next() -> None:
    order = (MONITOR, NMI, TELNET, PAUSE)
    world = World(*order, console=Telnet("host", 23), machine=True)
    checked: list[list[BreakInWay | bytes]] = []

    async def arrived(seconds: float) -> bool:
        checked.append([one for one in world.sent if one != b"g"])
        return False

    with pytest.raises(GuestError):
        asyncio.run(world.break_in.enter(arrived))
    assert checked == [[MONITOR], [MONITOR, NMI], [MONITOR, NMI, TELNET]]
    assert world.sent == [MONITOR, b"g", NMI, TELNET, b"g", PAUSE]


def test_what_worked_is_tried_first_the_next_time() -> None:
    world = World(SYSRQ, NMI, machine=True, takes=NMI)
    assert world.break_in.worked is None
    assert world.enter() is NMI
    assert world.break_in.worked is NMI
    assert world.break_in.ways == (NMI, SERIAL, MONITOR)
    world.waited.clear()
    assert world.enter() is NMI
    assert len(world.waited) == 1
    world.takes = SERIAL
    assert world.enter() is SERIAL
    # The others keep their order.
    assert world.break_in.ways == (SERIAL, MONITOR, NMI)


def test_a_way_that_cannot_be_gone_does_not_keep_from_the_next() -> None:
    world = World(SYSRQ, console=SERVER, takes=TELNET, broken=(RFC2217,))
    assert world.enter() is TELNET
    assert world.waited == [WAIT_SECONDS]
    world = World(SYSRQ, NMI, machine=True, takes=NMI)
    world.writes = False
    assert world.enter() is NMI


def test_break_without_a_key_goes_the_first_way_that_can_be_gone() -> None:
    world = World(console=SERVER, broken=(RFC2217,))
    assert asyncio.run(world.breaks.send_somehow()) is TELNET
    world = World(console=SERVER, broken=(RFC2217, TELNET))
    with pytest.raises(MachineError, match="rfc2217-break failed"):
        asyncio.run(world.breaks.send_somehow())
    with pytest.raises(LineError, match="this kind of line has none"):
        asyncio.run(World(console=Tcp("host", 23)).breaks.send_somehow())


# -- words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (b"sysrq: This sysrq operation is disabled.\r\n", "kernel.sysrq=1, or a value with bit 8"),
        (b"sysrq: HELP : loglevel(0-9) reboot(b)", "boot it with kgdboc=PORT"),
        (b"g", "the g was typed on the console; set kernel.sysrq to 1"),
        (b"tick 3\r\ng", "the g was typed on the console; set kernel.sysrq to 1"),
        (b"tick 3\r\n", "no stop came within 2 s, and the kernel said nothing"),
    ],
)
@pytest.mark.parametrize("way", [SERIAL, TELNET, RFC2217, MONITOR])
def test_the_kernels_own_words_tell_why_break_did_not_work(way: BreakInWay, says: bytes, words: str) -> None:
    console = {SERIAL: DEVICE, TELNET: Telnet("host", 23), RFC2217: SERVER, MONITOR: Unix("/run/serial")}[way]
    error = World(way, console=console, machine=True, says=says).refused()
    assert f"web1 was not broken into: BREAK and g were sent ({way.value})" in error
    assert words in error


def test_a_kernel_that_answered_is_sent_no_other_break() -> None:
    world = World(SYSRQ, NMI, machine=True, says=b"sysrq: This sysrq operation is disabled.\r\n")
    world.refused()
    assert world.sent == [SERIAL, b"g", NMI]


def test_every_way_that_failed_is_named() -> None:
    world = World(
        SYSRQ, NMI, PAUSE, machine=True, broken=(MONITOR,), says=b"Uhhuh. NMI received for unknown reason"
    )
    words = world.refused()
    assert "BREAK and g were sent (serial-break)" in words
    assert "monitor-break failed: broken" in words
    assert "the kernel took it for none of its own" in words
    assert "the machine was paused as the last resort: its kernel stands, but not in kgdb" in words
    assert "`kbridge power web1 resume`" in words
    assert world.break_in.worked is None


def test_what_is_missing_is_said() -> None:
    assert "`break_in` is empty" in World().refused()
    assert "configure `console`" in World(SYSRQ, console=None).refused()
    assert "configure `console`" in World(MONITOR, console=None, machine=True).refused()
    assert "configure `qmp`" in World(MONITOR).refused()
    assert "configure `qmp`" in World(NMI).refused()
    assert "configure `qmp`" in World(PAUSE).refused()
    assert "this kind of line has none" in World(SYSRQ, console=Tcp("host", 23)).refused()


def test_a_failed_attempt_can_be_repeated() -> None:
    world = World(SYSRQ)
    world.refused()
    world.takes = SERIAL
    assert world.enter() is SERIAL


def test_a_kernel_that_stands_in_silence_is_asked_when_nothing_else_says_a_word() -> None:
    world = World(SYSRQ, stands=True)
    assert world.enter() is None
    assert world.sent == [SERIAL, b"g"]
    assert world.break_in.worked is None
    # It is not where it said something, and so runs, nor where there is nobody to ask it.
    world = World(SYSRQ, stands=True, says=b"tick 3\r\n")
    world.refused()
    assert world.sought == []
    world = World(SYSRQ, stands=False)
    world.refused()


def test_a_kdb_in_the_middle_of_its_words_is_waited_for_before_a_way_is_tried() -> None:
    world = World(SYSRQ, pages=True)
    assert world.enter() is None
    assert world.sent == []
    assert world.break_in.worked is None
    # It came to no prompt: then the ways are tried.
    world = World(SYSRQ, takes=SERIAL, pages=True)
    world.is_deaf = True
    assert world.enter() is SERIAL


def test_who_comes_meanwhile_waits_and_finds_the_kernel_standing() -> None:
    world = World(SYSRQ, takes=SERIAL)

    async def both() -> list[BreakInWay | None]:
        from twisted.internet.defer import Deferred

        checks: list[Deferred[bool]] = []

        def arrived(seconds: float) -> Deferred[bool]:
            checks.append(Deferred())
            return checks[-1]

        found: list[BreakInWay | None] = []
        for _ in range(2):
            Deferred.fromCoroutine(world.break_in.enter(arrived)).addCallback(found.append)
        assert len(checks) == 1
        checks[0].callback(True)
        assert len(checks) == 2
        checks[1].callback(True)
        return found

    assert asyncio.run(both()) == [SERIAL, None]
    assert world.sent == [SERIAL, b"g"]


# -- what is kept ---------------------------------------------------------------------------------------------


def test_the_next_relay_knows_what_worked(tmp_path: Path) -> None:
    memory = tmp_path / "way-in"
    assert World(SYSRQ, NMI, machine=True, takes=MONITOR, memory=memory).enter() is MONITOR
    world = World(SYSRQ, NMI, machine=True, takes=MONITOR, memory=memory)
    assert world.break_in.worked is MONITOR
    assert world.break_in.ways == (MONITOR, SERIAL, NMI)
    # Who orders the ways anew wants that order.
    other = World(NMI, SYSRQ, machine=True, memory=memory)
    assert other.break_in.worked is None
    assert other.break_in.ways == (NMI, SERIAL, MONITOR)
    assert memory.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_used_costs_the_memory_only(tmp_path: Path) -> None:
    memory = tmp_path / "way-in"
    memory.write_text("nonsense")
    world = World(SYSRQ, takes=SERIAL, memory=memory)
    assert world.break_in.worked is None
    assert world.enter() is SERIAL
    assert way_in.read(memory, [SERIAL]) is SERIAL


def test_a_disk_that_is_full_does_not_keep_anybody_out(tmp_path: Path, logged_errors: list[Any]) -> None:
    world = World(SYSRQ, takes=SERIAL, memory=tmp_path / "nowhere" / "way-in")
    assert world.enter() is SERIAL
    assert len(logged_errors) == 1
    logged_errors.clear()


WAYS = st.lists(st.sampled_from([way for way in BreakInWay if way is not SYSRQ]), min_size=1, unique=True)


@settings(deadline=None)
@given(ways=WAYS, data=st.data())
def test_what_is_kept_comes_back(ways: list[BreakInWay], data: st.DataObject) -> None:
    import tempfile

    worked = data.draw(st.sampled_from(ways))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "way-in"
        assert way_in.read(path, ways) is None
        way_in.write(path, ways, worked)
        assert way_in.read(path, ways) is worked
        if len(ways) > 1:
            assert way_in.read(path, ways[::-1]) is None
        # Whatever became of the file: the way that worked, nothing, or an error that says which file it is.
        whole = path.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(
            data.draw(st.sampled_from([whole[:place], whole[:place] + b"\xff" + whole[place + 1 :]]))
        )
        found: BreakInWay | None = None
        try:
            found = way_in.read(path, ways)
        except RecordError as error:
            words = str(error)
        else:
            words = str(path)
        assert found in (None, worked)
        assert str(path) in words


@pytest.mark.parametrize(
    "found", [[], {}, {"version": 1}, {"version": 1, "ways": ["nmi"], "worked": 7}, 5, None]
)
def test_what_is_no_memory_is_an_error(tmp_path: Path, found: object) -> None:
    path = tmp_path / "way-in"
    path.write_text(json.dumps(found))
    with pytest.raises(RecordError):
        way_in.read(path, [NMI])
