"""The table of what a kernel prints when it crashes: what begins it, what it is called, where its function stands.

Titles are those that kernel developers know from syzkaller's dashboard, where it has one for the case.  To add a row:
put it before the rows that would take its line, and a log that shows it into ``tests/data/crashes`` (docs/crash.md).

Sources: Linux, kernel/panic.c, arch/x86/kernel/{traps,dumpstack}.c, arch/x86/mm/fault.c, arch/arm64/mm/fault.c,
arch/arm64/kernel/traps.c, lib/bug.c, mm/kasan/report.c, mm/kfence/report.c, mm/kmsan/report.c, kernel/kcsan/report.c,
lib/ubsan.c, kernel/locking/{lockdep,spinlock_debug}.c, kernel/rcu/tree_stall.h, kernel/watchdog{,_hld}.c,
kernel/hung_task.c, mm/{oom_kill,slub,page_alloc}.c, arch/x86/kernel/cpu/mce/core.c, kernel/debug/kdb/kdb_main.c.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kbridge.crash.functions import table


class Kind(StrEnum):
    """What happened."""

    PANIC = "panic"
    OOPS = "oops"
    BUG = "bug"
    WARNING = "warning"
    KASAN = "kasan"
    KMSAN = "kmsan"
    KCSAN = "kcsan"
    KFENCE = "kfence"
    UBSAN = "ubsan"
    LOCKDEP = "lockdep"
    RCU_STALL = "rcu-stall"
    SOFT_LOCKUP = "soft-lockup"
    HARD_LOCKUP = "hard-lockup"
    WORKQUEUE_LOCKUP = "workqueue-lockup"
    HUNG_TASK = "hung-task"
    OUT_OF_MEMORY = "out-of-memory"
    STACK_OVERFLOW = "stack-overflow"
    STACK_PROTECTOR = "stack-protector"
    GENERAL_PROTECTION = "general-protection"
    PAGE_FAULT = "page-fault"
    DIVIDE_ERROR = "divide-error"
    DOUBLE_FAULT = "double-fault"
    ATOMIC = "atomic"
    """Scheduling or sleeping where that is forbidden."""
    SPINLOCK = "spinlock"
    BAD_PAGE = "bad-page"
    SLAB = "slab"
    LIST = "list"
    USERCOPY = "usercopy"
    FORTIFY = "fortify"
    REFCOUNT = "refcount"
    MACHINE_CHECK = "machine-check"
    KDB = "kdb"
    """The kernel's debugger was entered, with nothing printed before that says why."""


class Weight(StrEnum):
    """What may follow it as a part of it."""

    NOTE = "note"
    """The kernel goes on: only a panic that names it as its reason is a part of it."""
    CHECK = "check"
    """It saw memory or locks misused: a fault that follows is a part of it."""
    FATAL = "fatal"
    """All that follows is."""


class Where(StrEnum):
    """Where the function of the title stands."""

    STACK = "stack"
    """The instruction that failed, then the backtrace."""
    TRACE = "trace"
    """The first backtrace; the instruction is the reporting code's own."""
    STALL = "stall"
    """The last function before the code that dispatches work, in the code that was interrupted: a loop is seen
    somewhere within it, each time elsewhere."""
    HANG = "hang"
    """The first function that does not just wait."""
    LINE = "line"
    """The line itself has it, or another line before the backtrace; no backtrace is looked at."""
    NONE = "none"
    """The title has none; what the backtrace has is told beside it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    kind: Kind
    weight: Weight
    begins: re.Pattern[str]
    """Matches the line at its beginning, behind the stamp; its groups are fields of the titles.  ``function``: one
    that the line names."""
    title: str
    alternatives: tuple[str, ...] = ()
    where: Where = Where.STACK
    skips: re.Pattern[str] | None = None
    """More functions that are not the title's, a table as in functions.py."""
    more: re.Pattern[str] | None = None
    """What a line that follows must have, whose groups are fields too."""
    doubt: str = ""
    """Why a crash that begins with this line is not known by it: what came before it is missing."""
    is_die: bool = False
    """It is the line with ``[#1]``: what an oops says after its first line."""
    is_consequence: bool = False
    """A panic that follows on what was told before; with ``doubt``, it says nothing else."""


_TO: Final = r"(?P<function>[A-Za-z_.$][\w.$]{0,255})\+0x[0-9a-f]+/0x[0-9a-f]+"
_DIE: Final = r"[^\[\]]{0,160}: [0-9a-f]{1,16} \[#\d+\]"
_PANIC: Final = r"Kernel panic - not syncing: "
_BAD_ACCESS: Final = ("bad-access in {function}",)
_STALL: Final = ("stall in {function}",)
_OVERFLOW: Final = ("stack-overflow in {function}",)
_SOURCE: Final = r"[\w./-]{1,200}:\d+"


def _row(
    kind: Kind,
    weight: Weight,
    begins: str,
    title: str,
    alternatives: tuple[str, ...] = (),
    *,
    where: Where = Where.STACK,
    skips: str = "",
    more: str = "",
    doubt: str = "",
    is_die: bool = False,
    is_consequence: bool = False,
) -> Row:
    return Row(
        kind,
        weight,
        re.compile(begins),
        title,
        alternatives,
        where,
        table(skips) if skips else None,
        re.compile(more) if more else None,
        doubt,
        is_die,
        is_consequence,
    )


_HEADLESS: Final = "the line that says what happened is missing"
_REASONLESS: Final = "what led to this panic is missing"

ROWS: Final = (
    # ── memory checkers ─────────────────────────────────────────────────────────────────────────────────────
    _row(
        Kind.KASAN,
        Weight.CHECK,
        rf"BUG: KASAN: (?:double-free or invalid-free|double-free|invalid-free) in {_TO}",
        "KASAN: invalid-free in {function}",
        ("invalid-free in {function}",),
        skips="kfree* kvfree* vunmap vfree* slab_*",
    ),
    _row(
        Kind.KASAN,
        Weight.CHECK,
        rf"BUG: KASAN: (?P<bug>[a-z][a-z-]{{2,60}}) in {_TO}",
        "KASAN: {bug} {access} in {function}",
        _BAD_ACCESS,
        more=r"(?P<access>Read|Write) (?:of size|at addr) ",
    ),
    _row(
        Kind.KASAN,
        Weight.CHECK,
        r"BUG: KASAN: (?P<bug>[a-z][a-z-]{2,60})",
        "KASAN: {bug}",
        doubt="the function is missing",
    ),
    _row(
        Kind.KMSAN,
        Weight.CHECK,
        rf"BUG: KMSAN: (?P<bug>[a-z][a-z-]{{2,60}}) in {_TO}",
        "KMSAN: {bug} in {function}",
        _BAD_ACCESS,
        skips="alloc_skb netlink_ack netlink_rcv_skb crypto_* cipher_* drbg_* rng_* *_encrypt",
    ),
    _row(
        Kind.KCSAN,
        Weight.CHECK,
        r"BUG: KCSAN: (?P<bug>data-race|assert: race) in (?P<function>[\w.]{1,255}) / (?P<other>[\w.]{1,255})$",
        "KCSAN: {bug} in {function} / {other}",
        where=Where.LINE,
    ),
    _row(
        Kind.KCSAN,
        Weight.CHECK,
        r"BUG: KCSAN: (?P<bug>data-race|assert: race) in (?:(?P<function>[\w.]{1,255})\+0x[0-9a-f]+/0x[0-9a-f]+"
        r"|(?P<alone>[\w.]{1,255})$)",
        "KCSAN: {bug} in {function}",
        where=Where.LINE,
    ),
    _row(
        Kind.KFENCE,
        Weight.CHECK,
        rf"BUG: KFENCE: invalid free in {_TO}",
        "KFENCE: invalid free in {function}",
        ("invalid-free in {function}",),
    ),
    _row(
        Kind.KFENCE,
        Weight.CHECK,
        rf"BUG: KFENCE: (?P<bug>(?:use-after-free|out-of-bounds|invalid) (?:read|write)|memory corruption) in {_TO}",
        "KFENCE: {bug} in {function}",
        _BAD_ACCESS,
    ),
    _row(
        Kind.UBSAN,
        Weight.CHECK,
        rf"UBSAN: array-index-out-of-bounds in {_SOURCE}",
        "UBSAN: array-index-out-of-bounds in {function}",
        _BAD_ACCESS,
        where=Where.TRACE,
    ),
    _row(
        Kind.UBSAN,
        Weight.CHECK,
        rf"UBSAN: Undefined behaviour in {_SOURCE}",
        "UBSAN: undefined-behaviour in {function}",
        where=Where.TRACE,
    ),
    _row(
        Kind.UBSAN,
        Weight.CHECK,
        rf"UBSAN: (?P<bug>[a-z][a-z -]{{2,60}}) in {_SOURCE}",
        "UBSAN: {bug} in {function}",
        where=Where.TRACE,
    ),
    _row(
        Kind.SLAB,
        Weight.CHECK,
        r"BUG:? (?P<cache>[\w-]{1,64}) \((?:Not tainted|Tainted: [^)]{1,80})\): (?P<bug>[A-Z][\w ().'-]{2,79}?)"
        r"(?: 0x[0-9a-f]+| @offset=.*|\.)*$",
        "BUG {cache}: {bug}",
        ("BUG: {bug}",),
        where=Where.NONE,
    ),
    # ── faults ──────────────────────────────────────────────────────────────────────────────────────────────
    _row(
        Kind.STACK_OVERFLOW,
        Weight.FATAL,
        r"BUG: (?:[\w#/-]{1,32} )?stack guard page was hit at ",
        "BUG: stack guard page was hit in {function}",
        _OVERFLOW,
        where=Where.STALL,
    ),
    _row(
        Kind.STACK_OVERFLOW,
        Weight.FATAL,
        r"Insufficient stack space to handle exception!",
        "kernel stack overflow in {function}",
        _OVERFLOW,
        where=Where.STALL,
        skips="*bad_stack*",
    ),
    _row(
        Kind.PAGE_FAULT,
        Weight.FATAL,
        r"BUG: (?:unable to handle (?:kernel paging request|page fault for address)"
        r"|Unable to handle kernel data access)",
        "BUG: unable to handle kernel paging request in {function}",
        _BAD_ACCESS,
    ),
    _row(
        Kind.PAGE_FAULT,
        Weight.FATAL,
        r"BUG: (?:unable to handle kernel|[kK]ernel) NULL pointer dereference",
        "BUG: unable to handle kernel NULL pointer dereference in {function}",
        _BAD_ACCESS,
    ),
    _row(
        Kind.PAGE_FAULT,
        Weight.FATAL,
        r"Unable to handle kernel (?P<bug>paging request|NULL pointer dereference|access to user memory|read from"
        r" unreadable memory|write to read-only memory|execute from non-executable memory)",
        "BUG: unable to handle kernel {bug} in {function}",
        _BAD_ACCESS,
    ),
    _row(
        Kind.GENERAL_PROTECTION,
        Weight.FATAL,
        rf"(?:Oops: )?general protection fault\b{_DIE}",
        "general protection fault in {function}",
        _BAD_ACCESS,
        is_die=True,
    ),
    _row(
        Kind.OOPS,
        Weight.FATAL,
        rf"(?:Oops: )?stack segment\b{_DIE}",
        "stack segment fault in {function}",
        is_die=True,
    ),
    _row(
        Kind.DIVIDE_ERROR,
        Weight.FATAL,
        rf"(?:Oops: )?divide[ _]error\b{_DIE}",
        "divide error in {function}",
        is_die=True,
    ),
    _row(
        Kind.DOUBLE_FAULT,
        Weight.FATAL,
        r"(?:traps: )?PANIC: double fault",
        "PANIC: double fault in {function}",
    ),
    _row(
        Kind.DOUBLE_FAULT,
        Weight.FATAL,
        rf"(?:Oops: )?double fault\b{_DIE}",
        "PANIC: double fault in {function}",
        is_die=True,
    ),
    _row(
        Kind.OOPS,
        Weight.FATAL,
        rf"(?:Oops: )?int3\b{_DIE}",
        "int3 in {function}",
        is_die=True,
    ),
    # ── BUG_ON ──────────────────────────────────────────────────────────────────────────────────────────────
    _row(
        Kind.USERCOPY,
        Weight.FATAL,
        r"kernel BUG at mm/usercopy\.c:\d+",
        "BUG: bad usercopy in {function}",
        where=Where.TRACE,
    ),
    _row(
        Kind.LIST,
        Weight.FATAL,
        r"kernel BUG at lib/list_debug\.c:\d+",
        "BUG: corrupted list in {function}",
        _BAD_ACCESS,
        where=Where.TRACE,
    ),
    _row(
        Kind.FORTIFY,
        Weight.FATAL,
        r"kernel BUG at lib/string(?:_helpers)?\.c:\d+",
        "kernel BUG in {function}",
    ),
    _row(
        Kind.BUG,
        Weight.FATAL,
        rf"kernel BUG at {_SOURCE}",
        "kernel BUG in {function}",
        skips="skb_*",
    ),
    _row(
        Kind.OOPS,
        Weight.FATAL,
        rf"(?:Oops: )?invalid opcode\b{_DIE}",
        "invalid opcode in {function}",
        is_die=True,
        doubt=_HEADLESS,
    ),
    _row(
        Kind.OOPS,
        Weight.FATAL,
        rf"Internal error: (?!Oops\b)(?!BUG\b){_DIE}",
        "Internal error in {function}",
        _BAD_ACCESS,
        is_die=True,
    ),
    _row(
        Kind.OOPS,
        Weight.FATAL,
        rf"(?:Internal error: )?(?:Oops|BUG|stack guard page|kernel stack overflow)\b{_DIE}",
        "Oops in {function}",
        is_die=True,
        doubt=_HEADLESS,
    ),
    # ── locks, and what may not sleep ───────────────────────────────────────────────────────────────────────
    _row(
        Kind.SPINLOCK,
        Weight.NOTE,
        r"BUG: (?P<lock>spinlock|rwlock) (?P<bug>lockup suspected|already unlocked|recursion|cpu recursion|bad magic"
        r"|wrong owner|wrong CPU|trylock failure on UP) on ",
        "BUG: {lock} {bug} in {function}",
        where=Where.TRACE,
    ),
    _row(
        Kind.ATOMIC,
        Weight.NOTE,
        r"BUG: scheduling while atomic: ",
        "BUG: scheduling while atomic in {function}",
        where=Where.TRACE,
        skips="*schedul* wait_for_* *msleep*",
    ),
    _row(
        Kind.ATOMIC,
        Weight.NOTE,
        r"BUG: sleeping function called from invalid context at ",
        "BUG: sleeping function called from invalid context in {function}",
        where=Where.TRACE,
    ),
    _row(
        Kind.ATOMIC,
        Weight.NOTE,
        r"BUG: using (?P<bug>\w{1,64})\(\) in preemptible",
        "BUG: using {bug}() in preemptible code in {function}",
        where=Where.TRACE,
        skips="*preempt* *processor_id *this_cpu* debug_*",
    ),
    _row(
        Kind.LOCKDEP,
        Weight.NOTE,
        r"(?:WARNING|INFO): (?:possible circular locking dependency|possible recursive locking|possible irq lock"
        r" inversion dependency|[\w-]{1,32}-safe -> [\w-]{1,32}-unsafe lock order) detected",
        "possible deadlock in {function}",
        where=Where.LINE,
        more=rf"(?:\]|\)|:[^,]{{0,80}}), at: (?:\[<[0-9a-f]+>\] )?{_TO}",
    ),
    _row(
        Kind.LOCKDEP,
        Weight.NOTE,
        r"(?:WARNING|INFO): inconsistent lock state",
        "inconsistent lock state in {function}",
        where=Where.LINE,
        more=rf"(?:\]|\)|:[^,]{{0,80}}), at: (?:\[<[0-9a-f]+>\] )?{_TO}",
    ),
    _row(
        Kind.LOCKDEP,
        Weight.NOTE,
        r"(?:WARNING|INFO): suspicious RCU usage",
        "WARNING: suspicious RCU usage in {function}",
        where=Where.TRACE,
        skips="*rcu* kmem_* *slab*",
    ),
    _row(
        Kind.LOCKDEP,
        Weight.NOTE,
        r"\[? ?BUG: Invalid wait context",
        "WARNING: locking bug in {function}",
        where=Where.TRACE,
        skips="lock_sock* release_sock*",
    ),
    _row(
        Kind.LOCKDEP,
        Weight.NOTE,
        r"(?P<word>WARNING|BUG): (?P<bug>bad unlock balance) detected!",
        "{word}: {bug} in {function}",
        where=Where.TRACE,
    ),
    _row(
        Kind.LOCKDEP,
        Weight.NOTE,
        r"(?P<word>WARNING|BUG): (?P<bug>held lock freed)!",
        "{word}: {bug} in {function}",
        where=Where.TRACE,
        skips="kfree* kvfree* vfree*",
    ),
    _row(
        Kind.LOCKDEP,
        Weight.NOTE,
        r"(?P<word>WARNING|BUG): (?:lock held when returning to user space|[\w/:-]{0,64}/\d+ still has locks held)!?",
        "{word}: lock held when returning to user space in {function}",
        where=Where.LINE,
        more=rf", at: (?:\[<[0-9a-f]+>\] )?{_TO}",
    ),
    _row(
        Kind.LOCKDEP,
        Weight.NOTE,
        r"INFO: trying to register non-static key",
        "INFO: trying to register non-static key in {function}",
        where=Where.TRACE,
        skips="register_lock_class assign_lock_key",
    ),
    # ── what does not get on ────────────────────────────────────────────────────────────────────────────────
    _row(
        Kind.SOFT_LOCKUP,
        Weight.NOTE,
        r"(?:watchdog: )?BUG: soft lockup - CPU#\d+ stuck for ",
        "BUG: soft lockup in {function}",
        _STALL,
        where=Where.STALL,
    ),
    _row(
        Kind.HARD_LOCKUP,
        Weight.NOTE,
        r"(?:NMI )?(?:watchdog: )?(?:CPU\d+: )?Watchdog (?:CPU: \d+ |CPU:\d+ )?(?:detected )?[hH]ard LOCKUP\b",
        "BUG: hard lockup in {function}",
        _STALL,
        where=Where.STALL,
    ),
    _row(
        Kind.RCU_STALL,
        Weight.NOTE,
        r"(?:rcu: )?INFO: rcu_\w{2,32} (?:self-)?detected (?:expedited )?stalls? on ",
        "INFO: rcu detected stall in {function}",
        _STALL,
        where=Where.STALL,
        skips="*rcu*",
    ),
    _row(
        Kind.HUNG_TASK,
        Weight.NOTE,
        r"INFO: task .{1,80}:\d+ (?:is )?blocked (?:in I/O wait )?(?:on .{1,80} )?for more than \d+ seconds",
        "INFO: task hung in {function}",
        ("hang in {function}",),
        where=Where.HANG,
    ),
    _row(
        Kind.HUNG_TASK,
        Weight.NOTE,
        r"INFO: task .{1,80}:\d+ can't die for more than \d+ seconds",
        "INFO: task can't die in {function}",
        ("hang in {function}",),
        where=Where.HANG,
    ),
    _row(
        Kind.WORKQUEUE_LOCKUP,
        Weight.NOTE,
        r"BUG: workqueue lockup - pool ",
        "BUG: workqueue lockup",
        where=Where.LINE,
    ),
    _row(
        Kind.OUT_OF_MEMORY,
        Weight.NOTE,
        r".{1,64} invoked oom-killer: gfp_mask=",
        "Out of memory: oom-killer invoked",
        where=Where.LINE,
    ),
    # ── pages ───────────────────────────────────────────────────────────────────────────────────────────────
    _row(
        Kind.BAD_PAGE,
        Weight.CHECK,
        r"BUG: Bad page (?P<bug>state|cache) in process ",
        "BUG: Bad page {bug} in {function}",
        where=Where.TRACE,
        skips="bad_page* free_* *free_page* *free_folio* *free_unref* put_page* *put_folio* release_pages *folio_put*"
        " get_page_from_freelist *rmqueue* check_new_page* post_alloc_hook prep_new_page",
    ),
    _row(Kind.BAD_PAGE, Weight.CHECK, r"BUG: Bad page map ", "BUG: Bad page map", where=Where.NONE),
    _row(
        Kind.BAD_PAGE,
        Weight.CHECK,
        r"BUG: (?P<bug>Bad rss-counter state|non-zero \w{1,32} on freeing mm)",
        "BUG: {bug}",
        where=Where.LINE,
    ),
    # ── WARN_ON ─────────────────────────────────────────────────────────────────────────────────────────────
    *(
        _row(
            kind,
            Weight.NOTE,
            rf"WARNING: (?:CPU: \d+ PID: \d+ at )?(?:\[.{{1,200}}\] )?{file}:\d+(?: (?:at )?{_TO}| at |,| )",
            title,
            skips=skips,
        )
        for kind, file, title, skips in (
            (
                Kind.REFCOUNT,
                r"lib/refcount\.c",
                "WARNING: refcount bug in {function}",
                "*refcount* kobject_*",
            ),
            (
                Kind.WARNING,
                r"lib/debugobjects\.c",
                "WARNING: ODEBUG bug in {function}",
                "debug_* *rcu* *timer_* *work_* kobject_* vunmap* vfree* free_*",
            ),
            (
                Kind.USERCOPY,
                r"mm/usercopy\.c",
                "WARNING: bad usercopy in {function}",
                "*usercopy* check*",
            ),
            (Kind.WARNING, r"lib/kobject\.c", "WARNING: kobject bug in {function}", "kobject_*"),
            (
                Kind.LOCKDEP,
                r"kernel/locking/lockdep\.c",
                "WARNING: locking bug in {function}",
                "lock_sock* release_sock*",
            ),
            (Kind.LIST, r"lib/list_debug\.c", "WARNING in {function}", ""),
            (Kind.WARNING, r"[\w./-]{1,200}", "WARNING in {function}", ""),
        )
    ),
    # ── the machine ─────────────────────────────────────────────────────────────────────────────────────────
    _row(
        Kind.MACHINE_CHECK,
        Weight.FATAL,
        r"(?:mce: )?\[Hardware Error\]: CPU \d+: Machine Check(?: Exception)?: ",
        "machine check exception",
        ("kernel panic: Fatal machine check", "kernel panic: Fatal local machine check"),
        where=Where.LINE,
    ),
    # ── panics ──────────────────────────────────────────────────────────────────────────────────────────────
    _row(
        Kind.STACK_PROTECTOR,
        Weight.FATAL,
        _PANIC + rf"stack-protector: Kernel stack is corrupted in: {_TO}",
        "kernel panic: stack is corrupted in {function}",
        where=Where.STACK,
    ),
    _row(
        Kind.STACK_PROTECTOR,
        Weight.FATAL,
        _PANIC + r"stack-protector: Kernel stack is corrupted in: ",
        "kernel panic: stack is corrupted in {function}",
        where=Where.TRACE,
    ),
    _row(
        Kind.STACK_OVERFLOW,
        Weight.FATAL,
        _PANIC + r"corrupted stack end detected inside scheduler",
        "kernel panic: corrupted stack end in {function}",
        _OVERFLOW,
        where=Where.STALL,
        skips="*schedul* retint_kernel",
    ),
    _row(
        Kind.STACK_OVERFLOW,
        Weight.FATAL,
        _PANIC + r"kernel stack overflow",
        "kernel stack overflow in {function}",
        _OVERFLOW,
        where=Where.STALL,
        skips="*bad_stack*",
        is_consequence=True,
    ),
    _row(
        Kind.PANIC,
        Weight.FATAL,
        _PANIC + r"Attempted to kill init!",
        "kernel panic: Attempted to kill init!",
        where=Where.NONE,
    ),
    _row(
        Kind.MACHINE_CHECK,
        Weight.FATAL,
        _PANIC
        + r"(?P<bug>Fatal (?:local )?machine check|Timeout: Not all CPUs entered broadcast exception handler)",
        "kernel panic: {bug}",
        where=Where.NONE,
        is_consequence=True,
    ),
    _row(
        Kind.PANIC,
        Weight.FATAL,
        _PANIC
        + r"(?P<bug>(?:.{1,64}: )?Fatal exception(?: in interrupt)?|Fatal hardware error!|hung_task: blocked tasks"
        r"|(?:\w{1,32}: )?panic_on_\w{1,32} set|\w{1,32}\.fault=panic set|softlockup: hung tasks|Hard LOCKUP|RCU Stall"
        r"|Machine halted|Aiee, killing interrupt handler!|Attempted to kill the idle task!)",
        "kernel panic: {bug}",
        where=Where.NONE,
        doubt=_REASONLESS,
        is_consequence=True,
    ),
    _row(
        Kind.OUT_OF_MEMORY,
        Weight.FATAL,
        _PANIC + r"(?P<bug>(?:Out of memory|System is deadlocked on memory).{0,80})",
        "kernel panic: {bug}",
        where=Where.NONE,
    ),
    _row(
        Kind.PANIC,
        Weight.FATAL,
        _PANIC + r"(?P<bug>.{1,200})",
        "kernel panic: {bug}",
        where=Where.NONE,
    ),
    # ── the debugger inside ─────────────────────────────────────────────────────────────────────────────────
    _row(
        Kind.KDB,
        Weight.FATAL,
        r"Entering kdb \(current=0x[0-9a-f]{1,16}, pid -?\d+\) .*Oops: ",
        "kdb entered",
        where=Where.LINE,
        doubt=_HEADLESS,
    ),
    _row(
        Kind.KDB,
        Weight.FATAL,
        r"Entering kdb \(current=0x[0-9a-f]{1,16}, pid -?\d+\) ",
        "kdb entered",
        where=Where.LINE,
    ),
)
"""The first that matches a line has it."""

_BY_TRAP: Final = re.compile(r"(?:Oops: )?invalid opcode\b|Internal error: (?:Oops - )?BUG\b|Oops - BUG\b")
DIES: Final = {
    Kind.PAGE_FAULT: re.compile(r"(?:Internal error: )?Oops: (?:Kernel access|[0-9a-f]{4,16} )"),
    Kind.STACK_OVERFLOW: re.compile(r"(?:Oops: )?(?:stack guard page|double fault|kernel stack overflow)\b"),
    Kind.DOUBLE_FAULT: re.compile(r"(?:Oops: )?double fault\b"),
    Kind.BUG: _BY_TRAP,
    Kind.LIST: _BY_TRAP,
    Kind.USERCOPY: _BY_TRAP,
    Kind.FORTIFY: _BY_TRAP,
}
"""How the line with ``[#1]`` begins that follows on the first line of an oops; others have none."""

BEFORE: Final = re.compile(
    r"-{8,}\[ cut here \]-{8,}|={20,}$|\*{20,}$|list_(?:add|del) (?:corruption|double add)|usercopy: |fortify"
    r"|(?:detected buffer overflow in|memcpy: detected|strlen: detected) |kernel tried to execute |"
    r"Insufficient stack space to handle exception|#DF stack|refcount_t: |\w+: detected (?:field-spanning|buffer)"
)
"""What the kernel may print directly before a row's line, as a part of it."""

WITHIN: Final = re.compile(
    # Blanks: frames, dumps, what belongs to the line before.
    r"\s|[a-z]\w+\+0x|>"
    # Registers, code, and who ran.
    r"|CPU: |RIP: |Code: |[A-Z][A-Z0-9]{1,3}: |EFLAGS|CR\d|DR\d|pc : |lr : |sp : |x\d+ ?:|pstate:|task:|Workqueue: "
    r"|Hardware name:|Modules linked in|Last |Tainted"
    # Headings, marks and bars.
    r"|Call [Tt]race:|Backtrace:|</?[A-Z]|---|===|\["
    # Faults.
    r"|#PF:|PGD |P4D |Oops|Mem abort info|ESR |FAR: |Data abort info|Internal error|stack:|[A-Z][a-z]+ stack:|mce: "
    # Panics, and what follows them.
    r"|Kernel panic|PANIC: |Kernel Offset|Rebooting in|Shutting down|note: |Disabling lock|kernel BUG|BUG|WARNING"
    # Other processors.
    r"|rcu: |watchdog: |NMI |Sending NMI|INFO: |pool \d|workqueue |Showing "
    # Checkers and allocators.
    r"|Object |Padding |Redzone |Bytes b4|Slab 0x|Allocated |Freed |FIX |page:|flags:|raw:|page dumped|Memory state"
    r"|Reported by|The buggy|Read of|Write of|read |write |value |irq event|(?:hard|soft)irqs"
    # Out of memory.
    r"|Mem-Info|Node |lowmem_|Swap|oom-kill|Tasks state|\d+ |active_"
    # The debugger inside.
    r"|Entering kdb|due to "
)
"""How lines of a crash's text begin, behind the stamp; what does not may be another processor's word."""

ENDS: Final = re.compile(r"---\[ end Kernel panic ")
"""The last line of all."""
MARKS: Final = re.compile(r"---\[ end trace [0-9a-f]{16} \]---|\s*</TASK>|Disabling lock debugging")
"""Lines with which a report may be at its end."""
BARRED: Final = frozenset({Kind.KASAN, Kind.KMSAN, Kind.KCSAN, Kind.KFENCE})
"""Reports that have more stacks behind the first, and end with a bar."""
BAR: Final = re.compile(r"={40,}$")
BEFORE_BAR: Final = re.compile(r"CPU: |Hardware name: |[ >]?[0-9a-f]{16}: |\s+\^$")
"""The last lines of those; elsewhere a bar begins another's report."""
WARNS_END: Final = re.compile(r"---\[ end trace [0-9a-f]{16} \]---")
"""The end of one of ``Weight.NOTE``."""
BOOTS: Final = re.compile(
    r"Linux version \d|Booting Linux on physical CPU |SeaBIOS \(version|BdsDxe: |U-Boot \d|GRUB loading|EFI stub: "
)
"""A machine that starts anew."""
PROMPT: Final = re.compile(r"(?:\[\d+\])?kdb>|more>")
"""kdb's, at a line's beginning; the guest stands."""
