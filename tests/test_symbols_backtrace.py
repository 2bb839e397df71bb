"""What lines of a kernel's log name, and whether a place was to be returned to."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbols.backtrace import MOST_CODE, MOST_LINE, Code, Line, Place, read
from symbols.model import BuildId


def one(text: str) -> Line:
    (line,) = read([text])
    return line


def place(text: str) -> Place:
    (found,) = one(text).places
    return found


@pytest.mark.parametrize(
    ("text", "name", "offset", "size", "module"),
    [
        ("[   48.998996]  vfs_write+0xce/0x1c6", "vfs_write", 0xCE, 0x1C6, None),
        (" ? full_proxy_poll+0x42/0x42", "full_proxy_poll", 0x42, 0x42, None),
        ("[    4.099676]  __handle_sysrq.cold+0x44/0x11c\r", "__handle_sysrq.cold", 0x44, 0x11C, None),
        ("  xfs_do_it.isra.0+0x1/0x2 [xfs]", "xfs_do_it.isra.0", 1, 2, "xfs"),
        ("[   48.997255] RIP: 0010:lkdtm_EXCEPTION+0x2/0xa", "lkdtm_EXCEPTION", 2, 10, None),
        ("[ 12.000001][ T123]  f+0x10/0x20 [snd-hda]", "f", 16, 32, "snd-hda"),
        ("pc : el1_abort+0x10/0x20", "el1_abort", 16, 32, None),
        ("WARNING: CPU: 0 PID: 65 at a/b.c:85 lkdtm_WARNING+0x8/0xb", "lkdtm_WARNING", 8, 11, None),
        ("softirqs last  enabled at (9): [<ffffffff81000000>] f+0x1/0x2", "f", 1, 2, None),
    ],
)
def test_places(text: str, name: str, offset: int, size: int, module: str | None) -> None:
    found = place(text)
    assert (found.name, found.offset, found.size, found.module) == (name, offset, size, module)


def test_a_module_with_its_build_id() -> None:
    build_id = "0123456789abcdef0123456789abcdef01234567"
    found = place(f" nfs_get+0x1/0x2 [nfs {build_id}]")
    assert (found.module, found.build_id) == ("nfs", BuildId(build_id))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no place",
        "a+0x1",
        "a+1/2",
        "a+0x/0x1",
        "a+0x1/0x",
        "path/a+0x1/0x2",
        "3a+0x1/0x2b/c",
        "a+0x123456789/0x2",
    ],
)
def test_what_is_no_place(text: str) -> None:
    assert one(text) == Line(text, one(text).prefix)


def test_what_is_returned_to() -> None:
    texts = [
        "RIP: 0010:fault+0x2/0xa",
        "Call Trace:",
        " called+0xb2/0xc8",
        " ? seen+0x42/0x50",
        " begun+0x0/0x50",
        " [<ffffffff81234567>] old+0x1/0x2",
        " [<ffffffff81234567>] ? doubted+0x1/0x2",
        "Workqueue: events work+0x3/0x9",
    ]
    lines = [line for line in read(texts) if line.places]
    said = {
        line.places[0].name: (line.places[0].is_return, line.is_frame, line.is_doubtful) for line in lines
    }
    assert said == {
        "fault": (False, False, False),
        "called": (True, True, False),
        "seen": (True, True, True),
        # The kernel names what is before a return address: this is none.
        "begun": (False, True, False),
        "old": (True, True, False),
        "doubted": (True, True, True),
        "work": (False, False, False),
    }


def test_what_was_interrupted_is_not_returned_to() -> None:
    def returned(*texts: str) -> bool:
        return list(read(texts))[-1].places[0].is_return

    assert returned(" caller+0x5/0x9", " f+0x1/0x2")
    assert not returned(" asm_exc_page_fault+0x22/0x30", " f+0x1/0x2")
    assert not returned(" asm_sysvec_apic_timer_interrupt+0x1a/0x20", "  </IRQ>", " f+0x1/0x2")
    # With its registers shown, the interrupted place is RIP, and what follows called it.
    interrupted = ["asm_common_interrupt+0x22/0x40", "RIP: 0010:halt+0xb/0x10", "RSP: 0018:ffffffffa5403e98"]
    assert returned(*interrupted, " idle+0x3d/0x50")
    assert returned(" ? asm_exc_page_fault+0x22/0x30", " f+0x1/0x2")


def test_prefixes_are_told_apart_from_what_is_said() -> None:
    for prefix in (
        "",
        "  ",
        "[    4.099676]  ",
        "/ # [6n[   50.709324] ",
        "<4>[ 1.0]  ",
        "kernel: [ 1.000000][  T1] ",
    ):
        assert one(f"{prefix}f+0x1/0x2").prefix == prefix
        assert one(f"{prefix}f+0x1/0x2").is_frame


def test_code() -> None:
    assert one("[ 1.0] Code: 31 c0 <89> 04 25").code == Code(bytes.fromhex("31c0890425"), 2)
    assert one("Code: <0f> 0b").code == Code(b"\x0f\x0b", 0)
    for text in (
        "Code: Unable to access opcode bytes at 0x1.",
        "Code: 31 c0",
        "Code: <31> <c0>",
        "Code: Bad RIP value.",
    ):
        assert one(text).code is None
    many = one("Code: <90> " + "90 " * 1000).code
    assert many is not None
    assert len(many.data) == MOST_CODE


def test_registers() -> None:
    texts = [
        "[   48.998202] RSP: 0018:ffff92ad80163df8 EFLAGS: 00000246",
        "RAX: 0000000000000001 RBX: ffff8fcec1025000 RCX: c0000000ffffefff",
        "RBP: 000000000000000a R08: 0000000000000003 R09: 0000000000001000",
        "FS:  0000000031aff3c0(0000) GS:ffff8fcecf800000(0000) knlGS:0000000000000004",
        "CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033",
        "CR2: 0000000000000020 CR3: 0000000001063000 CR4: 00000000000006b0",
    ]
    registers = {name: value for line in read(texts) for name, value in line.registers.items()}
    assert registers["RSP"] == 0xFFFF92AD80163DF8
    assert (registers["RAX"], registers["R09"], registers["CR2"], registers["CR4"]) == (
        1,
        0x1000,
        0x20,
        0x6B0,
    )
    assert (registers["GS"], registers["knlGS"], registers["CS"]) == (0xFFFF8FCECF800000, 4, 0x10)
    assert one("RIP: 0010:lkdtm+0x1/0x2").registers == {}
    assert one("RIP: 0010:fadd_x+0x1/0x2").registers == {}


def test_program_counters() -> None:
    user = one("[ 48.9] RIP: 0033:0x47b7a0")
    assert (user.segment, user.is_user, user.counter) == (0x33, True, 0x47B7A0)
    kernel = one("RIP: 0010:f+0x1/0x2")
    assert (kernel.segment, kernel.is_user, kernel.counter) == (0x10, False, None)
    assert one("RIP: 0010:0x0").counter == 0


def test_which_kernel_it_is_and_where() -> None:
    untainted = one("[ 4.1] CPU: 0 PID: 1 Comm: sh Not tainted 6.1.0-56-cloud-amd64 #1  Debian 6.1.192-2")
    assert untainted.release == "6.1.0-56-cloud-amd64"
    assert (
        one("CPU: 0 PID: 64 Comm: sh Tainted: G      D W          6.1.192-kgdb #1 ").release == "6.1.192-kgdb"
    )
    assert (
        one("CPU: 1 UID: 0 PID: 9 Comm: a b Tainted: P           O        6.12.1+rc-x #2").release
        == "6.12.1+rc-x"
    )
    moved = one("[ 4.1] Kernel Offset: 0x3a400000 from 0xffffffff81000000 (relocation range: 0x1-0x2)")
    assert moved.slide == 0x3A400000
    assert one("Kernel Offset: disabled").slide is None


def test_a_line_that_is_too_long_is_passed_on() -> None:
    text = "f+0x1/0x2 " * MOST_LINE
    assert one(text) == Line(text, "")


_PIECES = st.sampled_from(
    ["[ 1.0] ", "f+0x1/0x2", " ? ", "RIP: 0010:", "Code: ", "<90>", " 90", "RAX: ", "00ff", "[xfs]",
     "Kernel Offset: 0x", "CPU: 0 ", "Tainted: G ", "6.1 #", "\0", "\x1b[6n", "[", "]", "\udc80"]
)  # fmt: skip


@given(st.lists(st.one_of(st.text(max_size=200), st.lists(_PIECES, max_size=300).map("".join)), max_size=20))
def test_every_line_comes_back_whatever_it_says(texts: list[str]) -> None:
    lines = list(read(texts))
    assert [line.text for line in lines] == texts
    for line in lines:
        assert line.text.startswith(line.prefix)
        for found in line.places:
            assert re.search(r"\+0x[0-9a-f]+/0x[0-9a-f]+", line.text[: found.end])
