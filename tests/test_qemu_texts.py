"""The pure parts round a QEMU machine: run states, character devices, the human monitor's answers."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import MachineError
from kbridge.hypervisors import examine, gdbserver, memory_map
from kbridge.hypervisors.chardevs import find_chardev, is_behind
from kbridge.hypervisors.interface import MachineState, RunState
from kbridge.hypervisors.qmp import Event
from kbridge.hypervisors.run_states import EVENT_NAMES, RUN_STATES, RunFollower, read_status
from kbridge.transports.endpoints import Pty, Tcp, Telnet, Unix, parse_endpoint

NONE: frozenset[str] = frozenset()

# All words of QEMU's RunState enumeration, as `query-qmp-schema` of 7.2 lists them.
WORDS = [
    "debug",
    "inmigrate",
    "internal-error",
    "io-error",
    "paused",
    "postmigrate",
    "prelaunch",
    "finish-migrate",
    "restore-vm",
    "running",
    "save-vm",
    "shutdown",
    "suspended",
    "watchdog",
    "guest-panicked",
    "colo",
]


@pytest.mark.parametrize("word", WORDS)
def test_every_run_state_of_qemu_has_a_meaning(word: str) -> None:
    state = read_status({"status": word, "running": word == "running"})
    assert state.detail == word
    assert state.run is not RunState.UNKNOWN
    assert state.run.executes == (word == "running")
    assert len(RUN_STATES) == len(WORDS)


def test_a_word_that_a_later_qemu_may_have_is_judged_by_whether_it_runs() -> None:
    assert read_status({"status": "dancing", "running": True}) == MachineState(RunState.RUNNING, "dancing")
    assert read_status({"status": "dancing", "running": False}) == MachineState(RunState.BUSY, "dancing")


@pytest.mark.parametrize("reply", [None, [], "running", {}, {"status": 3}, {"running": True}])
def test_a_status_without_a_word_is_unknown(reply: object) -> None:
    assert read_status(reply) == MachineState(RunState.UNKNOWN)


def running() -> RunFollower:
    follower = RunFollower()
    assert follower.told({"status": "running", "running": True})
    assert not follower.told({"status": "running", "running": True})
    return follower


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (Event("GUEST_PANICKED", {"action": "pause"}), MachineState(RunState.PANICKED, "guest-panicked")),
        (Event("BLOCK_IO_ERROR", {"action": "stop"}), MachineState(RunState.IO_ERROR, "io-error")),
        (Event("WATCHDOG", {"action": "pause"}), MachineState(RunState.PAUSED, "watchdog")),
        (Event("SHUTDOWN", {"guest": True}), MachineState(RunState.OFF, "shutdown")),
    ],
)
def test_a_stop_with_a_cause_is_not_ours_even_while_our_stop_waits(
    reason: Event, state: MachineState
) -> None:
    follower = running()
    follower.happened(reason, frozenset({"stop"}))
    stop = follower.happened(Event("STOP"), frozenset({"stop"}))
    assert stop.data["ours"] is False
    assert stop.data["cause"]
    assert follower.state == state
    assert not follower.stopped_by_us


@pytest.mark.parametrize(
    "reason",
    [
        Event("GUEST_PANICKED", {"action": "run"}),
        Event("BLOCK_IO_ERROR", {"action": "report"}),
        Event("WATCHDOG", {"action": "none"}),
        Event("GUEST_CRASHLOADED", {"action": "run"}),
    ],
)
def test_what_does_not_stop_the_machine_causes_no_stop(reason: Event) -> None:
    follower = running()
    follower.happened(reason, NONE)
    assert follower.state.run.executes
    assert follower.happened(Event("STOP"), frozenset({"stop"})).data["ours"] is True


def test_a_cause_is_forgotten_when_the_machine_runs_again() -> None:
    follower = running()
    follower.happened(Event("SHUTDOWN"), NONE)
    follower.happened(Event("RESUME"), NONE)
    assert follower.happened(Event("STOP"), NONE).data["cause"] == ""


def test_a_resume_by_others_ends_our_pause() -> None:
    follower = running()
    follower.happened(Event("STOP"), frozenset({"stop"}))
    assert follower.stopped_by_us
    assert follower.happened(Event("RESUME"), frozenset({"query-status"})).data["ours"] is False
    assert not follower.stopped_by_us
    assert follower.happened(Event("STOP"), NONE).data["ours"] is False


def test_a_reset_is_ours_only_if_it_came_by_qmp_and_was_expected() -> None:
    follower = running()
    guests = Event("RESET", {"guest": True, "reason": "guest-reset"})
    by_qmp = Event("RESET", {"guest": False, "reason": "host-qmp-system-reset"})
    follower.expect_reset()
    assert [follower.happened(e, NONE).data["ours"] for e in (guests, by_qmp, by_qmp)] == [False, True, False]
    follower.expect_reset()
    follower.reset_failed()
    assert follower.happened(by_qmp, NONE).data["ours"] is False


def test_the_loss_of_the_monitor_forgets_everything() -> None:
    follower = running()
    follower.happened(Event("STOP"), frozenset({"stop"}))
    follower.lost()
    assert follower.state == MachineState(RunState.UNKNOWN)
    assert not follower.stopped_by_us


def test_data_of_an_event_names_the_event_and_its_time_and_keeps_what_was_told() -> None:
    event = running().happened(Event("DEVICE_DELETED", {"device": "x", "event": "mine"}, 5.5), NONE)
    assert event.name == "machine.event"
    assert event.data == {"device": "x", "event": "DEVICE_DELETED", "time": 5.5}


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*EVENT_NAMES, "OTHER"]),
            st.sampled_from(["pause", "stop", "run", ""]),
            st.sets(st.sampled_from(["stop", "cont", "quit", "query-status"])),
        )
    )
)
def test_a_machine_that_rests_by_us_never_runs_and_only_a_stop_of_ours_makes_it_so(
    script: list[tuple[str, str, set[str]]],
) -> None:
    follower = running()
    for name, action, in_flight in script:
        before = follower.stopped_by_us
        event = follower.happened(Event(name, {"action": action}), in_flight)
        assert not (follower.stopped_by_us and follower.state.run.executes)
        if follower.stopped_by_us and not before:
            assert event.name == "machine.stop"
            assert event.data["ours"]
            assert "stop" in in_flight or "quit" in in_flight


@pytest.mark.parametrize(
    ("filename", "console", "behind"),
    [
        ("disconnected:unix:/r/s,server=on", Unix("/r/s"), True),
        ("unix:/r/s,server=on", Unix("/r/s"), True),
        ("unix:/r/s,server=on <-> ", Unix("/r/s"), True),
        ("unix:/r/s", Unix("/r/s"), True),
        ("unix:/r/a,b,server=on", Unix("/r/a,b"), True),
        ("unix:/r/s2,server=on", Unix("/r/s"), False),
        ("unix:/r/s,server=on", Pty("/r/s"), False),
        ("pty:/dev/pts/3", Pty("/dev/pts/3"), True),
        ("pty:/dev/pts/31", Pty("/dev/pts/3"), False),
        ("telnet:127.0.0.1:4000,server=on <-> 127.0.0.1:55728", Telnet("127.0.0.1", 4000), True),
        ("disconnected:telnet:0.0.0.0:4000,server=on", Telnet("10.0.0.1", 4000), True),
        ("disconnected:telnet::::4000,server=on", Telnet("localhost", 4000), True),
        ("disconnected:tcp:[::1]:4000,server=on", Tcp("localhost", 4000), True),
        ("disconnected:tcp:127.0.0.1:4000,server=on", Telnet("127.0.0.1", 4000), False),
        ("disconnected:tcp:127.0.0.1:4001,server=on", Tcp("127.0.0.1", 4000), False),
        ("disconnected:tcp:10.0.0.2:4000,server=on", Tcp("10.0.0.1", 4000), False),
        ("vc", Unix("/r/s"), False),
        ("null", parse_endpoint("serial:/dev/ttyS0:9600"), False),
    ],
)
def test_chardev_behind_an_endpoint(filename: str, console: Unix | Tcp | Pty | Telnet, behind: bool) -> None:
    assert is_behind(filename, console) is behind


@given(st.text(max_size=80))
def test_any_text_for_a_chardev_is_survived(filename: str) -> None:
    for console in (Unix("/r/s"), Pty("/dev/pts/3"), Tcp("h", 1), Telnet("h", 1)):
        assert is_behind(filename, console) in (True, False)


def test_two_chardevs_behind_one_endpoint_are_an_error() -> None:
    reply = [{"label": f"s{n}", "filename": f"tcp:10.0.0.{n}:40,server=on"} for n in (1, 2)]
    assert find_chardev(reply, Tcp("10.0.0.2", 40)) == "s2"
    both = [*reply, {"label": "s3", "filename": "tcp:0.0.0.0:40,server=on"}]
    with pytest.raises(MachineError, match="2 character devices"):
        find_chardev(both, Tcp("10.0.0.2", 40))
    with pytest.raises(MachineError, match="it has none"):
        find_chardev("nonsense", Tcp("10.0.0.2", 40))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("Failed to bind socket to /r/gdb: Permission denied\nCould not open gdbserver on …", "another user"),
        ("Failed to unlink socket /r/gdb: Permission denied\n", "another user"),
        ("Failed to bind socket to /r/gdb: No such file or directory\n", "sees no folder /r"),
        ("unknown command: 'gdbserver'\n", "has no `gdbserver` command"),
        ("Failed to bind socket to /r/gdb: Address already in use\n", "another runtime_dir"),
        ("duplicate yank instance\n", "duplicate yank instance"),
        ("", "no answer"),
    ],
)
def test_answers_that_are_failures_become_words(answer: str, words: str) -> None:
    with pytest.raises(MachineError, match=r"gdbstub was not started: ") as caught:
        gdbserver.check_started(answer, "/r/gdb")
    assert words in str(caught.value)


def test_answers_that_are_successes_pass() -> None:
    gdbserver.check_started(
        "Waiting for gdb connection on device 'unix:/r/gdb,server=on,wait=off'\n", "/r/gdb"
    )
    gdbserver.check_stopped("Disabled gdbserver\n")
    with pytest.raises(MachineError, match="was not closed: unknown command"):
        gdbserver.check_stopped("unknown command: 'gdbserver'\n")


# -- reading memory by the human monitor --------------------------------------------------------------------


def shown(address: int, data: bytes) -> str:
    """What QEMU 7.2 answers to `x /Nxb`: eight bytes a line."""
    lines = []
    for offset in range(0, len(data), 8):
        row = " ".join(f"{byte:#04x}" for byte in data[offset : offset + 8])
        lines.append(f"{address + offset:016x}: {row}\n")
    return "".join(lines)


@given(st.integers(0, examine.END_OF_MEMORY - 1), st.integers(0, 2 * examine.PAGE_BYTES))
def test_a_read_is_cut_at_pages_and_at_the_end_of_memory(address: int, length: int) -> None:
    pieces = examine.pieces(address, length)
    assert sum(size for _, size in pieces) == min(length, examine.END_OF_MEMORY - address)
    assert len(pieces) <= 3
    for start, size in pieces:
        assert size > 0
        assert start // examine.PAGE_BYTES == (start + size - 1) // examine.PAGE_BYTES
    for (start, size), (following, _) in itertools.pairwise(pieces):
        assert start + size == following


@pytest.mark.parametrize(("address", "length"), [(0, -1), (-1, 1), (1 << 64, 1)])
def test_what_cannot_be_addressed_is_refused(address: int, length: int) -> None:
    with pytest.raises(ValueError, match=r"cannot be read$"):
        examine.pieces(address, length)


@given(st.integers(0, examine.END_OF_MEMORY - examine.PAGE_BYTES), st.binary(min_size=1, max_size=600))
def test_what_the_monitor_shows_is_read_back(address: int, data: bytes) -> None:
    text = shown(address, data)
    assert examine.parse(text, len(data)) == data
    refused = f"{address + len(data):016x}: Cannot access memory\n"
    assert examine.parse(text + refused, len(data) + 9) == data
    assert examine.parse(refused, len(data)) == b""


@given(
    st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")), st.integers(1, 64)
)
def test_any_other_text_is_refused_or_yields_no_more_than_was_asked(text: str, length: int) -> None:
    with contextlib.suppress(MachineError):
        assert len(examine.parse(text, length)) <= length


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unknown command: 'x'\n",
        "0000000000000010: 0x01\n",
        "0000000000000010: 0x01 0x02 0x03\n",
        "0000000000000010: 0x01 0x0203\n",
        "0000000000000010: 0x01\nwarning: 0x02\n",
        "0000000000000010: 0x01 0x02 0x03\n0000000000000013: Cannot access memory\n",
    ],
)
def test_too_few_too_many_and_other_words_are_not_taken_for_two_bytes(text: str) -> None:
    with pytest.raises(MachineError, match="not understood"):
        examine.parse(text, 2)


MEMORY_MAP = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram KVM
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
  0000000000100000-000000000fffffff (prio 0, ram): pc.ram @0000000000100000
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  00000000ffc00000-00000000ffc83fff (prio 0, romd): system.flash1

FlatView #2
 AS "i440FX", root: bus master container
 Root memory region: (none)
  No rendered FlatView
"""


def test_only_what_can_be_written_is_memory() -> None:
    assert memory_map.ram(MEMORY_MAP) == ((0, 0xC_0000), (0x10_0000, 0x1000_0000))


@pytest.mark.parametrize(
    "text", ["", "unknown command: 'info mtree'\n", MEMORY_MAP.replace('"memory"', '"ram"')]
)
def test_a_memory_map_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(MachineError, match="info mtree"):
        memory_map.ram(text)


# As QEMU 7.2 prints them for `info registers -a`, shortened: two processors of 64 bits.
REGISTERS = """\

CPU#0
RAX=0000000000000000 RBX=ffffffff9a60c9c0 RCX=0000000000000000 RDX=0000000000000001
R8 =0000000000000000 R9 =ffff9b8501016180 R10=0000000000000000 R11=0000000000000000
RIP=ffffffff99a1a8b2 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 ffffffff 00c00000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
GS =0000 ffff9b850f600000 ffffffff 00c00000
CR0=80050033 CR2=0000000000559c5a CR3=0000000002c08000 CR4=000006b0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
EFER=0000000000000d01
XMM00=00000000000000000000000000000000

CPU#1
RAX=0000000000000003 RSP=ffffb4a240163e48 R12=0000000000000000
RIP=ffffffffc02d0230 RFL=00000092 [--S-A--] CPL=0 II=0 A20=1 SMM=0 HLT=0
CS =0033 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
"""


def test_registers_of_all_processors_are_read_by_name() -> None:
    (first, one), (second, other) = examine.parse_registers(REGISTERS)
    assert (first, second) == (0, 1)
    assert one["rip"] == 0xFFFF_FFFF_99A1_A8B2
    assert (one["r8"], one["r9"]) == (0, 0xFFFF_9B85_0101_6180)
    assert (one["eflags"], one["cr2"], one["cr4"], one["efer"]) == (0x246, 0x559C5A, 0x6B0, 0xD01)
    assert (one["cs"], one["gs"], one["gs_base"]) == (0x10, 0, 0xFFFF_9B85_0F60_0000)
    assert (other["rsp"], other["cs"]) == (0xFFFF_B4A2_4016_3E48, 0x33)
    assert not {name for name in one if name.startswith(("xmm", "dr"))}


@given(st.text(max_size=60) | st.integers(0, 1000).map(lambda cut: REGISTERS[:cut]))
def test_any_other_text_is_no_list_of_registers(text: str) -> None:
    try:
        found = examine.parse_registers(text)
    except MachineError:
        return
    assert all("rip" in registers for _, registers in found)
