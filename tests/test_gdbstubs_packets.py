"""The table of packets: what each row understands, what it refuses, and who may send it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rsp import grammar

from gdbstubs import packets
from gdbstubs.errors import RemoteProtocolError
from gdbstubs.packets import LETTERS, NAMES, Malformed, Request, find, format_thread, parse_thread
from gdbstubs.rights import Right
from gdbstubs.target import ALL_THREADS, ANY_THREAD, Action, Breakpoint, BreakpointKind, Motion, ThreadId
from gdbstubs.wire import frame

STEP, GO = Motion.STEP, Motion.CONTINUE
ONE = ThreadId(1)

UNDERSTOOD: dict[bytes, Request] = {
    b"qSupported:multiprocess+;swbreak+": packets.Supported(frozenset({"multiprocess+", "swbreak+"})),
    b"qSupported": packets.Supported(frozenset()),
    b"QStartNoAckMode": packets.StartNoAck(),
    b"QEnableErrorStrings": packets.EnableErrorStrings(),
    b"?": packets.WhyStopped(),
    b"Hg1": packets.SelectThread(True, ONE),
    b"Hc-1": packets.SelectThread(False, ALL_THREADS),
    b"Hg0": packets.SelectThread(True, ANY_THREAD),
    b"Hgp1.2": packets.SelectThread(True, ThreadId(2)),
    b"Hgp-1.-1": packets.SelectThread(True, ALL_THREADS),
    b"Hgp2": packets.SelectThread(True, ALL_THREADS),
    b"g": packets.ReadRegisters(),
    b"G0011": packets.WriteRegisters(b"\x00\x11"),
    b"p10": packets.ReadRegister(16),
    b"P10=0011223344556677": packets.WriteRegister(16, bytes.fromhex("0011223344556677")),
    b"mffffffff81000000,40": packets.ReadMemory(0xFFFFFFFF81000000, 64),
    b"xffffffff81000000,40": packets.ReadMemory(0xFFFFFFFF81000000, 64, binary=True),
    b"x0,0": packets.ReadMemory(0, 0, binary=True),
    b"Mffffffff81000000,1:cc": packets.WriteMemory(0xFFFFFFFF81000000, b"\xcc"),
    b"Xffffffff81000000,1:\xcc": packets.WriteMemory(0xFFFFFFFF81000000, b"\xcc"),
    b"X10,2:}\x03}]": packets.WriteMemory(16, b"#}"),
    b"X0,0:": packets.WriteMemory(0, b""),
    b"Z0,ffffffff81000000,1": packets.Insert(Breakpoint(BreakpointKind.SOFTWARE, 0xFFFFFFFF81000000, 1)),
    b"Z2,10,8": packets.Insert(Breakpoint(BreakpointKind.WRITE, 16, 8)),
    b"Z0,10,1;X3,220027": packets.Insert(Breakpoint(BreakpointKind.SOFTWARE, 16, 1)),
    b"z4,10,8": packets.Remove(Breakpoint(BreakpointKind.ACCESS, 16, 8)),
    b"vCont;s:1;c": packets.Resume((Action(STEP, ONE), Action(GO))),
    b"vCont;C05:p1.1;S02:2": packets.Resume((Action(GO, ONE), Action(STEP, ThreadId(2)))),
    b"c": packets.Resume((Action(GO),), legacy=True),
    b"s": packets.Resume((Action(STEP),), legacy=True),
    b"C05": packets.Resume((Action(GO),), legacy=True),
    b"S05": packets.Resume((Action(STEP),), legacy=True),
    b"vCont;r1000,1010:1;c": packets.Resume((Action(STEP, ONE, (0x1000, 0x1010)), Action(GO))),
    b"vCont;r1000,1010": packets.Resume((Action(STEP, ALL_THREADS, (0x1000, 0x1010)),)),
    b"vCont;r1000,1000:1": packets.Resume((Action(STEP, ONE),)),
    b"bs": packets.Resume((Action(Motion.REVERSE_STEP),)),
    b"bc": packets.Resume((Action(Motion.REVERSE_CONTINUE),)),
    b"vCont?": packets.WhichResumes(),
    b"D": packets.Detach(),
    b"D;1": packets.Detach(),
    b"k": packets.Kill(),
    b"vKill;1": packets.KillProcess(),
    b"T1": packets.IsAlive(ONE),
    b"qfThreadInfo": packets.ListThreads(first=True),
    b"qsThreadInfo": packets.ListThreads(first=False),
    b"qThreadExtraInfo,1": packets.ThreadExtra(ONE),
    b"qC": packets.CurrentThread(),
    b"qAttached": packets.WasAttached(),
    b"qAttached:1": packets.WasAttached(),
    b"qXfer:features:read:target.xml:0,1000": packets.Transfer("features", "target.xml", 0, 4096),
    b"qXfer:threads:read::10,ffb": packets.Transfer("threads", "", 16, 4091),
    b"qSymbol::": packets.OffersSymbols(),
    b"qRcmd,68656c70": packets.Monitor("help"),
    b"qSearch:memory:ffffffff81000000;1000;a;}\x03:": packets.SearchMemory(0xFFFFFFFF81000000, 4096, b"a;#:"),
    b"qCRC:ffffffff81000000,1000": packets.ChecksumMemory(0xFFFFFFFF81000000, 4096),
    b"QNonStop:0": packets.NonStop(False),
    b"QNonStop:1": packets.NonStop(True),
    b"vFile:open:2f6b6272696467652f76,0,0": packets.OpenFile("/kbridge/v", 0),
    b"vFile:pread:3,1000,20": packets.ReadFile(3, 4096, 32),
    b"vFile:fstat:3": packets.StatFile(3),
    b"vFile:close:3": packets.CloseFile(3),
    b"vFile:setfs:0": packets.SelectFiles(),
    b"vFile:unlink:2f": packets.OtherFile("unlink"),
    b"vFile:lstat:2f757372": packets.OtherFile("lstat"),
    b"qHostInfo": packets.DescribeHost(),
    b"qProcessInfo": packets.DescribeProcess(),
}

NEVER = [
    b"", b"!", b"R00", b"r", b"A4,0,61", b"d", b"i", b"I", b"t0:0,0", b"F-1,4",
    b"vRun", b"vRun;2f62696e2f7368", b"vAttach;1", b"vStopped", b"vCtrlC", b"vMustReplyEmpty",
    b"vFlashErase:0,1000", b"vFlashDone",
    b"Qqemu.PhyMemMode:1", b"qqemu.PhyMemMode", b"qqemu.sstepbits", b"Qqemu.sstep=7", b"qqemu.Supported",
    b"QPassSignals:e", b"QProgramSignals:0", b"QAgent:1", b"QSetWorkingDir:2f",
    b"QEnvironmentHexEncoded:413d42", b"QStartupWithShell:1", b"QDisableRandomization:1", b"QThreadEvents:1",
    b"QTinit", b"QTStart", b"QTDP:1:0:E:0:0", b"Qbtrace:bts", b"qGetTLSAddr:1,0,0",
    b"qTStatus", b"jThreadsInfo", b"qRcmdX", b"qSupportedX:1",
    b"QStartNoAckModeX", b"vContX", b"vCont??", b"vKill1", b"q", b"Q", b"v", b"q\xff", b"\x00", b"\xff",
]  # fmt: skip
"""Packets without a row: they get the empty reply, whatever a stub would do with them."""

CONTROLLERS = set("GMPX")
"""What an observer is refused at once; its resumes and breakpoints go to its seat, which keeps them from the guest."""


@pytest.mark.parametrize("payload", UNDERSTOOD, ids=repr)
def test_each_packet_is_parsed(payload: bytes) -> None:
    found = find(payload)
    assert found is not None
    row, arguments = found
    assert row.parse(arguments) == UNDERSTOOD[payload]


def test_every_row_has_an_example() -> None:
    rows = {id(found[0]) for payload in UNDERSTOOD if (found := find(payload)) is not None}
    assert rows == {id(row) for row in (*LETTERS.values(), *NAMES.values())}


@pytest.mark.parametrize("payload", NEVER, ids=repr)
def test_what_is_not_in_the_table_is_unknown(payload: bytes) -> None:
    assert find(payload) is None


def test_an_observer_may_not_write() -> None:
    rows = {chr(letter): row for letter, row in LETTERS.items()}
    rows |= {name.decode(): row for name, row in NAMES.items()}
    assert {name for name, row in rows.items() if row.right is Right.CONTROLLER} == CONTROLLERS
    assert {row.right for row in rows.values()} == {Right.OBSERVER, Right.CONTROLLER}
    assert Right.OBSERVER < Right.CONTROLLER


WRONG = [
    b"vFile",
    b"vFile:",
    b"vFile:open:2f",
    b"vFile:open:zz,0,0",
    b"vFile:pread:3,1000",
    b"vFile:pread:x,1000,0",
    b"vFile:fstat:",
    b"vFile:close:3,4",
    b"vFile:open:" + b"61" * 5000 + b",0,0",
    b"m",
    b"m10",
    b"m10,",
    b"m,4",
    b"m-1,4",
    b"m+1,4",
    b"m 1,4",
    b"m1_0,4",
    b"m0x10,4",
    b"m10000000000000000,4",
    b"mg,4",
    b"x10",
    b"M10,1",
    b"M10,2:cc",
    b"M10,1:c",
    b"M10,1:zz",
    b"M10,1:\xff\xff",
    b"X10,1:",
    b"X10,1:}",
    b"X10,2:a",
    b"G0",
    b"Gxx",
    b"p",
    b"pzz",
    b"P10",
    b"P10=",
    b"P=00",
    b"P10=0",
    b"gg",
    b"?1",
    b"H",
    b"H1",
    b"Hx1",
    b"Hg",
    b"Hg--1",
    b"Hgp",
    b"Hgp1.",
    b"Hgp.1",
    b"Hg1.1",
    b"T",
    b"Tp1.x",
    b"Z",
    b"Z0",
    b"Z0,10",
    b"Z5,10,1",
    b"Z0,10,1,1",
    b"Z0,,1",
    b"z0,10,",
    b"vCont",
    b"vCont;",
    b"vCont;x",
    b"vCont;c:",
    b"vCont;c;",
    b"vCont;C:1",
    b"vCont;cc",
    b"vCont;r",
    b"vCont;r10",
    b"vCont;r10,",
    b"vCont;r20,10:1",
    b"vCont;r10,20,30",
    b"vCont;R10,20",
    b"b",
    b"b9600",
    b"bcs",
    b"QNonStop",
    b"QNonStop:2",
    b"QNonStop:01",
    b"qCRC",
    b"qCRC:10",
    b"qCRC:10,x",
    b"qSearch",
    b"qSearch:memory",
    b"qSearch:memory:0;100",
    b"qSearch:memory:0;100;",
    b"qSearch:memory:0;x;a",
    b"qSearch:memory:0;100;}",
    b"qSearch:memory:0;100;" + b"a" * (packets.LONGEST_PATTERN + 1),
    b"qSearch:registers:0;100;a",
    b"qHostInfo:1",
    b"vCont;t",
    b"vCont" + b";c" * 65,
    b"c10",
    b"s10",
    b"C",
    b"Cxx",
    b"C05;10",
    b"S05;10",
    b"qXfer",
    b"qXfer:features:read:target.xml",
    b"qXfer:features:write:target.xml:0:00",
    b"qXfer:features:read:a:0,",
    b"qXfer:FEATURES:read::0,1",
    b"qXfer:features:read:a:b:0,1",
    b"qXfer:features:read:a:100000000,1",
    b"qRcmd,6",
    b"qRcmd,zz",
    b"qThreadExtraInfo",
    b"qThreadExtraInfo,x",
    b"qC1:",
    b"QStartNoAckMode:1",
    b"qfThreadInfo:1",
]


@pytest.mark.parametrize("payload", WRONG, ids=repr)
def test_wrong_arguments_are_refused(payload: bytes) -> None:
    found = find(payload)
    if payload == b"qC1:":
        assert found is None
        return
    assert found is not None
    row, arguments = found
    with pytest.raises((Malformed, RemoteProtocolError)):
        row.parse(arguments)


@given(st.sampled_from([bytes((letter,)) for letter in LETTERS] + list(NAMES)), st.binary(max_size=40))
@example(b"Z", b"0,ffffffffffffffff1,1")
@example(b"qRcmd", b",ff")
def test_any_arguments_are_parsed_or_refused(name: bytes, arguments: bytes) -> None:
    found = find(name + arguments)
    if found is None:
        return
    try:
        request = found[0].parse(found[1])
    except (Malformed, RemoteProtocolError):
        return
    assert isinstance(request, Request)
    check_bounds(request)


@given(st.integers(0, 1 << 48))
def test_what_is_parsed_is_what_its_row_says(seed: int) -> None:
    payload = grammar.request(Random(seed))
    found = find(payload)
    if found is not None:
        try:
            assert type(found[0].parse(found[1])) is found[0].kind
        except (Malformed, RemoteProtocolError):
            return


@given(st.integers(0, 1 << 48))
def test_mutated_requests_are_parsed_or_refused(seed: int) -> None:
    payload = grammar.mutated(chance := Random(seed), grammar.request(chance))
    found = find(payload)
    if found is None:
        return
    try:
        check_bounds(found[0].parse(found[1]))
    except (Malformed, RemoteProtocolError):
        return


def check_bounds(request: Request) -> None:
    match request:
        case packets.ReadMemory(address, length):
            assert 0 <= address < 1 << 64
            assert 0 <= length < 1 << 64
        case packets.WriteMemory(address, data):
            assert 0 <= address < 1 << 64
            assert isinstance(data, bytes)
        case packets.Insert(one) | packets.Remove(one):
            assert 0 <= one.address < 1 << 64
        case packets.Transfer(_, _, offset, length):
            assert 0 <= offset < 1 << 32
            assert 0 <= length < 1 << 32
        case packets.Resume(actions):
            assert 1 <= len(actions) <= 64
            for within in (action.within for action in actions if action.within is not None):
                assert 0 <= within[0] < within[1] < 1 << 64
        case packets.SearchMemory(_, _, pattern):
            assert 1 <= len(pattern) <= packets.LONGEST_PATTERN
        case _:
            pass


@given(st.one_of(st.just(-1), st.integers(0, (1 << 64) - 1)))
def test_thread_ids_there_and_back(number: int) -> None:
    assert parse_thread(format_thread(ThreadId(number))) == number
    assert parse_thread(b"p1." + format_thread(ThreadId(number))) == number


@given(st.integers(2, 1 << 31))
def test_a_thread_id_that_gdb_took_for_a_negative_number(number: int) -> None:
    assert parse_thread(b"-%x" % number) == 0x1_0000_0000 - number


@pytest.mark.parametrize("payload", [*UNDERSTOOD, b"qUnknown", b"g0", b"", b"Hgx"])
def test_a_packet_in_the_bytes_of_before_is_what_it_is_taken_apart(payload: bytes) -> None:
    packet = frame(payload)
    try:
        expected = packets.parse(payload)
    except (Malformed, RemoteProtocolError):
        expected = None
    for _ in range(2):
        assert packets.asked_whole(packet) == expected


@given(st.sampled_from([*UNDERSTOOD]), st.data())
def test_no_other_bytes_are_taken_for_one_whole_packet(payload: bytes, data: st.DataObject) -> None:
    packet = frame(payload)
    cut = data.draw(st.integers(1, len(packet) - 1))
    around = data.draw(st.sampled_from([b"+", b"-", b"\x03", b"x", b"$", b"$g#67"]))
    wrong = b"#%02x" % ((int(packet[-2:], 16) + data.draw(st.integers(1, 255))) % 256)
    for other in (packet[:cut], packet[cut:], around + packet, packet + around, packet[:-3] + wrong):
        assert packets.asked_whole(other) is None
