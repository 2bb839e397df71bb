"""What the goldens do not have: each row of the table, texts that only look like a crash, logs shown again, limits."""

from __future__ import annotations

import re
import time

import pytest
from crash_lab import Log, begins, ends, logs, parse
from crash_table import LKDTM, SYSRQ_C, Crash
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.crash.detector import MOST_CRASH, MOST_LINE, MOST_TEXT, Detector, _match
from kbridge.crash.functions import is_skipped, plain, short
from kbridge.crash.kinds import ROWS, Kind, Row

LOGS = {log.name[4:]: log for log in logs()}


def stamped(text: str, *, start: float = 50.0) -> bytes:
    """Return lines as the kernel prints them."""
    return b"".join(
        f"[{start + number / 1e4:12.6f}] {line}\r\n".encode() for number, line in enumerate(text.split("\n"))
    )


HEADER = "CPU: 1 PID: 77 Comm: a Not tainted 6.1.0 #1"
TRACE = f"""{HEADER}
Call Trace:
 <TASK>
 dump_stack_lvl+0x44/0x5c
 ext4_map_blocks.isra.0+0x1d7/0x5e0
 ext4_write_begin+0x1a/0x90
 do_syscall_64+0x35/0xb0
 </TASK>"""
OOPS = f"""{HEADER}
RIP: 0010:ext4_map_blocks.cold+0x1d7/0x5e0
{TRACE.partition(chr(10))[2]}"""


# ── lkdtm's table ───────────────────────────────────────────────────────────────────────────────────────────────


def lkdtm(name: str) -> Log:
    return LOGS["lkdtm-" + name.lower().replace("_", "-")]


@pytest.mark.parametrize("name", LKDTM)
def test_each_of_lkdtms_crashes_is_called_as_the_table_says(name: str) -> None:
    expected = LKDTM[name]
    found = [end.title for end in ends(parse(lkdtm(name).data))]
    if not isinstance(expected, Crash):
        assert found == []
        return
    assert found[0].title in (expected.title, *(one.title for one in expected.may_be))
    assert (found[0].function, found[0].corrupted) == (expected.function, "")
    # One crash, or the same by another detector.
    assert all(title.function == expected.function for title in found) or name == "SPINLOCKUP"


def test_the_table_is_lkdtms_list() -> None:
    assert {"lkdtm-" + name.lower().replace("_", "-") for name in LKDTM} == {
        name for name in LOGS if name.startswith("lkdtm-")
    }


@pytest.mark.parametrize("name", ["sysrq-c", "break-sysrq-c"])
def test_sysrq_c_is_called_as_the_table_says(name: str) -> None:
    (end,) = ends(parse(LOGS[name].data))
    assert (end.title.title, end.title.function, end.title.corrupted) == (SYSRQ_C.title, SYSRQ_C.function, "")


def test_the_same_crash_has_the_same_title_wherever_and_however_it_is_met() -> None:
    """On other boots, with other slides, processes and processors, with kdb, with oops=panic, in a log shown again."""
    for names, title in (
        (
            ("lkdtm-exception", "kdb-oops", "oops-panic", "oops-twice", "oopses-on-two-processors", "dmesg"),
            "BUG: unable to handle kernel NULL pointer dereference in lkdtm_EXCEPTION",
        ),
        (("lkdtm-bug", "two-consoles", "no-stamps"), "kernel BUG in lkdtm_BUG"),
        (("lkdtm-panic", "kdb-panic"), "kernel panic: dumptest"),
        (("lkdtm-warning", "warning-panic", "warnings-on-two-processors"), "WARNING in lkdtm_WARNING"),
    ):
        assert {ends(parse(LOGS[name].data))[0].title.title for name in names} == {title}


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────

# Lines as the kernel's files print them that the goldens do not have, and what follows.
EXAMPLES = [
    (
        "KASAN: wild-memory-access",
        Kind.KASAN,
        "BUG: KASAN: wild-memory-access on address dead000000000108",
        TRACE,
    ),
    (
        "KCSAN: data-race in tick_sched_do_timer",
        Kind.KCSAN,
        "BUG: KCSAN: data-race in tick_sched_do_timer+0x51/0x160",
        TRACE,
    ),
    (
        "KFENCE: invalid-free in ext4_map_blocks".replace("-", " "),
        Kind.KFENCE,
        "BUG: KFENCE: invalid free in ext4_map_blocks+0x1d7/0x5e0",
        TRACE,
    ),
    (
        "UBSAN: undefined-behaviour in ext4_map_blocks",
        Kind.UBSAN,
        "UBSAN: Undefined behaviour in fs/ext4/inode.c:77:3",
        TRACE,
    ),
    ("stack segment fault in ext4_map_blocks", Kind.OOPS, "stack segment: 0000 [#1] SMP", OOPS),
    ("PANIC: double fault in ext4_map_blocks", Kind.DOUBLE_FAULT, "Oops: double fault: 0000 [#1] SMP", OOPS),
    ("int3 in ext4_map_blocks", Kind.OOPS, "int3: 0000 [#1] SMP", OOPS),
    ("invalid opcode in ext4_map_blocks", Kind.OOPS, "invalid opcode: 0000 [#1] SMP", OOPS),
    (
        "Internal error in ext4_map_blocks",
        Kind.OOPS,
        "Internal error: synchronous external abort: 0000000096000210 [#1] SMP",
        OOPS,
    ),
    ("WARNING: locking bug in ext4_map_blocks", Kind.LOCKDEP, "[ BUG: Invalid wait context ]", TRACE),
    ("WARNING: held lock freed in ext4_map_blocks", Kind.LOCKDEP, "WARNING: held lock freed!", TRACE),
    (
        "WARNING: lock held when returning to user space in ext4_map_blocks",
        Kind.LOCKDEP,
        "WARNING: lock held when returning to user space!",
        "6.1.0 #1 Not tainted\n1 lock held by a/77:\n #0: ffff8880 (&a){+.+.}-{3:3}, at: ext4_map_blocks+0x1d7/0x5e0",
    ),
    (
        "INFO: trying to register non-static key in ext4_map_blocks",
        Kind.LOCKDEP,
        "INFO: trying to register non-static key.",
        TRACE,
    ),
    (
        "INFO: task can't die in ext4_map_blocks",
        Kind.HUNG_TASK,
        "INFO: task a:77 can't die for more than 143 seconds.",
        f"      Not tainted 6.1.0 #1\n{TRACE}".replace("dump_stack_lvl", "schedule"),
    ),
    ("BUG: Bad page map", Kind.BAD_PAGE, "BUG: Bad page map in process a  pte:8000 pmd:1f0", TRACE),
    (
        "BUG: Bad rss-counter state",
        Kind.BAD_PAGE,
        "BUG: Bad rss-counter state mm:00000000c8 type:MM_ANONPAGES val:2",
        "",
    ),
    (
        "WARNING: ODEBUG bug in ext4_map_blocks",
        Kind.WARNING,
        "WARNING: CPU: 1 PID: 77 at lib/debugobjects.c:505 debug_print_object+0x16c/0x250",
        OOPS.replace("ext4_map_blocks.cold", "debug_print_object"),
    ),
    (
        "WARNING: bad usercopy in ext4_map_blocks",
        Kind.USERCOPY,
        "WARNING: CPU: 1 PID: 77 at mm/usercopy.c:81 usercopy_warn+0xd9/0x110",
        OOPS.replace("ext4_map_blocks.cold", "usercopy_warn"),
    ),
    (
        "WARNING: kobject bug in ext4_map_blocks",
        Kind.WARNING,
        "WARNING: CPU: 1 PID: 77 at lib/kobject.c:718 kobject_get+0x5c/0xd0",
        OOPS.replace("ext4_map_blocks.cold", "kobject_get"),
    ),
    (
        "WARNING: locking bug in ext4_map_blocks",
        Kind.LOCKDEP,
        "WARNING: CPU: 1 PID: 77 at kernel/locking/lockdep.c:4731 check_wait_context+0x1/0x2",
        OOPS.replace("ext4_map_blocks.cold", "__lock_acquire"),
    ),
    (
        "WARNING in ext4_map_blocks",
        Kind.LIST,
        "WARNING: CPU: 1 PID: 77 at lib/list_debug.c:30 __list_add_valid+0x1/0x2",
        OOPS.replace("ext4_map_blocks.cold", "__list_add_valid"),
    ),
    (
        "kernel panic: stack is corrupted in ext4_map_blocks",
        Kind.STACK_PROTECTOR,
        "Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: ffffffff81abcdef",
        TRACE.replace(" ext4_map", " __stack_chk_fail+0x1/0x2\n ext4_map"),
    ),
    (
        "kernel stack overflow in ext4_write_begin",
        Kind.STACK_OVERFLOW,
        "Kernel panic - not syncing: kernel stack overflow",
        TRACE,
    ),
    (
        "kernel panic: Fatal local machine check",
        Kind.MACHINE_CHECK,
        "Kernel panic - not syncing: Fatal local machine check",
        TRACE,
    ),
]


@pytest.mark.parametrize(("title", "kind", "line", "after"), EXAMPLES, ids=lambda each: str(each)[:40])
def test_a_row_takes_its_line(title: str, kind: Kind, line: str, after: str) -> None:
    (end,) = ends(parse(stamped(f"usb 1-1: new device\n{line}\n{after}\nusb 1-1: gone")))
    assert (end.title.title, end.title.kind) == (title, kind)
    assert end.begin.line.endswith(line)


def test_every_row_is_tried() -> None:
    used: set[Row] = set()
    lines = [line for log in LOGS.values() for line in log.data.decode("latin-1").splitlines()]
    lines += [line for _, _, line, _ in EXAMPLES]
    for line in lines:
        matched = _match(re.sub(r"^.*?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ", "", line))
        if matched is not None:
            used.add(matched[0])
    assert [row.begins.pattern for row in ROWS if row not in used] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.begins.pattern[:40])
def test_a_row_takes_a_hostile_line_in_little_time(row: Row) -> None:
    start = re.sub(r"\\(.)", r"\1", row.begins.pattern)[:30]
    begun = time.process_time()
    for filling in ("a", " ", "a ", " @offset=", ": 0", "/", "\u00ff", "0x1", ", at: "):
        for prefix in (
            start,
            "BUG: KASAN: ",
            "WARNING: CPU: 1 PID: 1 at ",
            "INFO: task ",
            "BUG x (Not tainted): A",
        ):
            row.begins.match((prefix + filling * MOST_LINE)[:MOST_LINE])
            if row.more is not None:
                row.more.search((prefix + filling * MOST_LINE)[:MOST_LINE])
    assert time.process_time() - begun < 2


# ── functions ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_names_are_without_what_compilers_and_architectures_add() -> None:
    assert [plain(name) for name in ("a.isra.0", "b.cold", "c.constprop.0.isra.1", ".d", "e")] == list(
        "abcde"
    )
    assert short("__x64_sys_write") == "sys_write"
    assert short("ksys_write") == "write"
    assert short("ext4_write") == "ext4_write"


def function_of(line: str, *frames: str) -> str:
    text = "\n".join(
        (line, HEADER, "Call Trace:", " <TASK>", *(f" {frame}+0x1/0x2" for frame in frames), " </TASK>")
    )
    (end,) = ends(parse(stamped(text)))
    return end.title.function


STALL = "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [a:77]"


def test_a_stall_is_called_after_what_was_dispatched() -> None:
    assert function_of(STALL, "memset", "foo_poll", "foo_write", "vfs_write", "ksys_write") == "foo_write"
    assert (
        function_of(STALL, "csd_lock_wait", "smp_call_function_many_cond", "on_each_cpu")
        == "smp_call_function"
    )
    assert function_of(STALL, "foo_poll", "foo_write") == ""


def test_a_hang_is_called_after_what_waits() -> None:
    line = "INFO: task a:77 blocked for more than 10 seconds."
    assert (
        function_of(line, "__schedule", "schedule", "io_schedule", "__mutex_lock", "foo_open", "x")
        == "foo_open"
    )
    assert function_of(line, "__schedule", "schedule", "__mutex_lock", "foo", "rtnl_lock") == "rtnl_lock"
    assert function_of(line, "__schedule", "__wait_rcu_gp", "synchronize_rcu_expedited") == "synchronize_rcu"


def test_what_reports_and_lends_is_skipped() -> None:
    for name in (
        "panic",
        "kasan_report",
        "__asan_load8",
        "kfree",
        "memcpy",
        "_raw_spin_lock_irqsave",
        "asm_exc_page_fault",
    ):
        assert is_skipped(name), name
    for name in (
        "ext4_free_blocks",
        "tcp_v4_rcv",
        "panic_handler_of_mine",
        "my_kfree_wrapper",
        "do_exit",
        "schedule_me",
    ):
        assert not is_skipped(name), name


# ── what is no crash ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: apt does not have a stable CLI interface. Use with caution in scripts.",
        "systemd[1]: BUG: unable to handle page fault for address: 0",
        "traps: a[77] general protection fault ip:7f2b sp:7ffe error:0 in libc.so.6[7f2b+1000]",
        "a[77]: segfault at 0 ip 0000 sp 0000 error 4 in a[400000+1000]",
        "rcu: INFO: Stall ended before state dump start",
        "INFO: lockdep is turned off. Not tainted 6.1.0 #1",
        "INFO: NMI handler (nmi_cpu_backtrace_handler) took too long to run: 16.931 msecs",
        "---[ end Kernel panic - not syncing: Fatal exception ]---",
        "---[ end trace 0000000000000000 ]---",
        "mce: [Hardware Error]: Machine check events logged",
        "NMI watchdog: Perf NMI watchdog permanently disabled",
        "ODEBUG: selftest passed, DEBUG: 1, KASAN is on, UBSAN too, kernel panic not",
        HEADER,
    ],
)
def test_a_line_that_only_looks_like_it_is_none(line: str) -> None:
    assert parse(stamped(f"{line}\n{HEADER}\nCall Trace:\n foo+0x1/0x2\n{line}")) == []


@pytest.mark.parametrize(
    "command", ["echo BUG: unable to handle page fault for address: 0", "# kernel BUG at a.c:1!"]
)
def test_what_somebody_types_is_none(command: str) -> None:
    assert parse(f"root@web1:~# {command}\r\n{HEADER}\r\nroot@web1:~# ".encode()) == []


CRASH = (
    "BUG: kernel NULL pointer dereference, address: 0\nOops: 0002 [#1] SMP\n"
    + OOPS
    + "\n---[ end trace 0000000000000000 ]---"
)


@pytest.mark.parametrize(
    "command",
    ["dmesg", "sudo dmesg | tail -n 40", "journalctl -k", "cat /var/log/kern.log", "tail /var/log/messages"],
)
def test_a_log_that_somebody_shows_is_no_crash_of_now(command: str) -> None:
    data = stamped("Linux version 6.1.0") + f"root@web1:~# {command}\r\n".encode() + stamped(CRASH)
    (begin,), (end,) = begins(parse(data)), ends(parse(data))
    assert begin.doubt == end.title.corrupted == "printed by a command that shows a log"
    # A prompt later it is real, and so it is after a pause.
    detector = Detector()
    detector.feed(stamped("Linux version 6.1.0") + f"root@web1:~# {command}\r\n".encode())
    detector.settle()
    (begin,) = begins(detector.feed(stamped(CRASH)))
    assert begin.doubt == ""
    data = f"root@web1:~# {command}\r\nroot@web1:~# ls\r\n".encode() + stamped(CRASH)
    assert begins(parse(data))[0].doubt == ""


@pytest.mark.parametrize(
    "command", ["echo c > /proc/sysrq-trigger", "cat /sys/kernel/debug/x", "dmesg -w", "./reproducer"]
)
def test_a_crash_that_somebody_causes_is_real(command: str) -> None:
    data = stamped("Linux version 6.1.0") + f"root@web1:~# {command}\r\n".encode() + stamped(CRASH)
    assert begins(parse(data))[0].doubt == ""


def test_the_same_crash_shown_again_is_none_of_now() -> None:
    detector = Detector()
    begun = detector.feed(stamped(CRASH) + b"root@web1:~# ")
    detector.settle()
    # By a command that is known, at the prompt that stood there; and by one that is not, within the second.
    assert begins(begun + detector.feed(b"dmesg | tail -n 40\r\n" + stamped(CRASH)))[-1].doubt.startswith(
        "printed "
    )
    detector.settle()
    (begin,) = begins(detector.feed(b"root@web1:~# ./collect\r\n" + stamped(CRASH)))
    assert begin.doubt == "printed again: the same line, of the same time, began a crash before"


NOW = stamped("eth0: up\n" * 3, start=900.0)
LONG = "usb 1-1: new device\n" * 900


def test_of_a_machine_that_may_have_been_put_back_the_next_stamp_is_of_now() -> None:
    typed = b"root@web1:~# ./provoke\r\n"

    def doubts(*starts: float, put_back: bool) -> list[str]:
        detector = Detector()
        events = detector.feed(stamped(CRASH, start=900.0)) + detector.settle()
        if put_back:
            detector.may_be_put_back()
        for start in starts:
            events += detector.feed(typed + stamped(CRASH, start=start)) + detector.settle()
        return [begin.doubt for begin in begins(events)]

    again = "printed again: its time stamps are of before"
    assert doubts(1.0, 2.0, put_back=False) == ["", again, again]
    assert doubts(1.0, 2.0, put_back=True) == ["", "", ""]
    # It was not: its clock goes on, and a log that is shown after that is one.
    assert doubts(901.0, 1.0, put_back=True) == ["", "", again]


def test_a_machine_that_was_put_back_may_say_the_same_at_the_same_time() -> None:
    """Its clock too: a watchdog's timer rings at the microsecond at which it rang before."""
    text = stamped("eth0: up\n", start=5.0) + stamped(CRASH, start=8.741696)

    def doubts(*, put_back: bool) -> list[str]:
        detector = Detector()
        events = []
        for _ in range(3):
            if put_back:
                detector.may_be_put_back()
            events += detector.feed(text) + detector.settle()
        return [begin.doubt for begin in begins(events)]

    assert doubts(put_back=True) == ["", "", ""]
    twice = "printed again: the same line, of the same time, began a crash before"
    assert doubts(put_back=False) == ["", twice, twice]


def test_a_log_shown_by_an_unknown_command_is_told_by_its_stamps() -> None:
    data = NOW + b"root@web1:~# ./collect\r\nLog:\r\n" + stamped(LONG, start=1.0) + stamped(CRASH)
    assert [begin.doubt for begin in begins(parse(data))] == ["printed again: its time stamps are of before"]


@pytest.mark.parametrize("command", ["./a", "reboot -f", "echo b > /proc/sysrq-trigger", ""])
def test_after_a_reset_that_nobody_told_a_crash_is_real(command: str) -> None:
    boot = stamped("Linux version 6.1.0\n" + LONG, start=0.0) + stamped(CRASH)
    data = NOW + f"root@web1:~# {command}\r\n".encode()
    assert [begin.doubt for begin in begins(parse(data + boot))] == [""]
    # And after a log that was shown.
    shown = b"root@web1:~# dmesg\r\n" + stamped(LONG, start=1.0) + b"root@web1:~# "
    assert [begin.doubt for begin in begins(parse(data + shown + boot))] == [""]


def test_after_a_reboot_a_crash_is_real() -> None:
    data = (
        stamped(CRASH, start=900.0)
        + b"SeaBIOS (version 1.16.2)\r\n"
        + stamped("Linux version 6.1.0", start=0.0)
    )
    data += stamped("usb 1-1: new device\n" * 900, start=1.0) + stamped(CRASH)
    assert [begin.doubt for begin in begins(parse(data))] == ["", ""]


# ── what belongs to a crash ─────────────────────────────────────────────────────────────────────────────────────


def test_a_panic_that_names_no_reason_belongs_to_the_crash_before_it() -> None:
    panic = "Kernel panic - not syncing: Fatal exception"
    panic = f"{panic}\nKernel Offset: disabled\n---[ end {panic} ]---"
    (end,) = ends(parse(stamped(f"{CRASH}\n{panic}")))
    assert end.title.title == "BUG: unable to handle kernel NULL pointer dereference in ext4_map_blocks"
    strange = "\n".join(f"app: line {number}" for number in range(60))
    first, second = ends(parse(stamped(f"{CRASH}\n{strange}\n{panic}")))
    assert first.title == second.title


def test_a_fault_that_a_checker_saw_coming_belongs_to_its_report() -> None:
    report = f"BUG: KASAN: null-ptr-deref in ext4_map_blocks+0x1/0x2\nWrite of size 8 at addr 0 by task a/77\n{TRACE}"
    (end,) = ends(parse(stamped(f"{'=' * 66}\n{report}\n{'=' * 66}\n{CRASH}")))
    assert end.title.title == "KASAN: null-ptr-deref Write in ext4_map_blocks"
    assert end.title.alternatives == ("bad-access in ext4_map_blocks",)


def test_a_warning_before_an_oops_is_its_own() -> None:
    warning = f"WARNING: CPU: 1 PID: 77 at a.c:1 foo+0x1/0x2\n{TRACE}\n---[ end trace 0000000000000000 ]---"
    assert [end.title.title for end in ends(parse(stamped(f"{warning}\n{CRASH}")))] == [
        "WARNING in foo",
        "BUG: unable to handle kernel NULL pointer dereference in ext4_map_blocks",
    ]


def test_kinds_can_be_off() -> None:
    warning = f"WARNING: CPU: 1 PID: 77 at a.c:1 foo+0x1/0x2\n{TRACE}\n---[ end trace 0000000000000000 ]---"
    (end,) = ends(parse(stamped(f"{warning}\n{CRASH}"), off=(Kind.WARNING,)))
    assert end.title.kind is Kind.PAGE_FAULT


def test_its_text_is_its_lines_without_those_of_others() -> None:
    log = LOGS["kasan-uaf-callers"]
    (end,) = ends(parse(log.data))
    assert end.text.startswith(
        "=" * 66 + "\nBUG: KASAN: use-after-free in rxrpc_lookup_local+0x7b2/0x850\nRead of size 8"
    )
    assert "direct_reclaim" not in end.text
    assert "[T5093]" not in end.text


def test_kdbs_prompt_ends_a_crash_at_once() -> None:
    log = LOGS["kdb-panic"]
    detector = Detector()
    (begin, end) = detector.feed(log.data)
    assert (begin, end) == tuple(parse(log.data))
    assert not detector.is_crash


@pytest.mark.parametrize("name", ["kdb-panic", "kdb-break", "kdb-oops"])
def test_what_is_typed_at_kdbs_prompt_changes_nothing(name: str) -> None:
    whole = parse(LOGS[name].data)
    data = LOGS[name].data + b"dmesg\r\n" + stamped(CRASH) + b"[0]kdb> go\r\n"
    found = parse(data)
    assert found[:2] == whole
    assert [begin.doubt for begin in begins(found)][1:] == ["printed by a command that shows a log"]
    for size in (1, 7, 100):
        assert parse(*(data[at : at + size] for at in range(0, len(data), size))) == found


# ── what the caller says ────────────────────────────────────────────────────────────────────────────────────────


def test_the_title_is_known_before_the_end() -> None:
    detector = Detector()
    assert detector.peek() is None
    (begin,) = detector.feed(stamped(CRASH.partition("Call Trace")[0]))
    title = detector.peek()
    assert title is not None
    assert title.title.endswith("in ext4_map_blocks")
    assert detector.is_crash
    (end,) = detector.settle()
    assert (end.begin, end.title) == (begin, title)


def test_a_last_line_without_its_end_is_taken_after_a_pause() -> None:
    detector = Detector()
    assert detector.feed(b"[    1.000000] Kernel panic - not syncing: dumptest") == []
    begin, end = detector.settle()
    assert end.title.corrupted == "its first line is cut off"
    assert begin.kind is Kind.PANIC


@pytest.mark.parametrize(
    "line", ["Kernel panic - not syncing: dumptest", "INFO: task a:77 blocked for more than 10 seconds."]
)
def test_a_line_without_any_behind_it_is_found_after_a_pause(line: str) -> None:
    detector = Detector()
    assert detector.feed(stamped(f"usb 1-1: new device\n{line}")) == []
    assert len(begins(detector.settle())) == 1
    assert detector.settle() == []


def test_a_reset_ends_the_crash_under_way_and_begins_anew() -> None:
    detector = Detector()
    (begin,) = detector.feed(stamped(CRASH, start=900.0))
    (end,) = detector.reset(10_000)
    assert end.begin == begin
    assert detector.offset == 10_000
    (begin,) = detector.feed(stamped(CRASH, start=3.0))
    assert (begin.offset, begin.doubt) == (10_000, "")


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_crash_that_does_not_end_is_ended() -> None:
    detector = Detector()
    events = detector.feed(stamped(CRASH))
    for _ in range(2 * MOST_CRASH // 60_000):
        events += detector.feed(b"[   50.100000]  foo+0x1/0x2\r\n" * 2000)
    assert len(ends(events)) == 1
    assert len(ends(events)[0].text) <= MOST_TEXT + 1
    assert not detector.is_crash


@given(st.lists(st.binary(max_size=300), max_size=30), st.integers(1, 200_000))
@settings(max_examples=50, deadline=None)
def test_memory_is_bounded(pieces: list[bytes], repeated: int) -> None:
    detector = Detector()
    for piece in (*pieces, b"#" * repeated, b"x" * repeated, b"[#1\n" * (repeated // 8)):
        detector.feed(piece)
        assert len(detector._buffer) <= 30_000


def test_a_line_that_is_too_long_is_not_looked_at() -> None:
    long = b"[   50.000000] " + b"a" * 2 * MOST_LINE
    detector = Detector()
    assert detector.feed(long) == []
    assert detector.feed(b"BUG: kernel NULL pointer dereference\r\n") == []
    assert len(begins(detector.feed(stamped(CRASH)))) == 1
