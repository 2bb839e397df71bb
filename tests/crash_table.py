"""What each of lkdtm's crashes is called on the `kgdb` guest: `echo NAME > /sys/kernel/debug/provoke-crash/DIRECT`.

Seen with Linux 6.1.192 under software emulation.  The same on every boot, wherever KASLR put the kernel.  Lines are
counted from the one at which their function begins, so that what is changed elsewhere in a file moves none.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Crash:
    """The kernel says so on its console."""

    title: str
    function: str
    line: int | range | None
    """What provokes it, counted from the function's first line: a loop has several; what is no code has none."""
    may_be: tuple[Crash, ...] = ()
    """What may come first instead: two detectors run a race."""
    then: str = ""
    """How the title begins of what the damage leads to, a moment later."""
    dies: bool = False
    """The kernel panics."""
    note: str = ""


@dataclass(frozen=True)
class Nothing:
    """The kernel says nothing of a crash: there is none, or nobody sees it."""

    why: str


def _by_itself(kind: str, **lines: int | range) -> dict[str, Crash]:
    return {name: Crash(f"{kind} in lkdtm_{name}", f"lkdtm_{name}", line) for name, line in lines.items()}


def _in(function: str, kind: str, **lines: int | None) -> dict[str, Crash]:
    return {name: Crash(f"{kind} in {function}", function, line) for name, line in lines.items()}


def _stall(name: str, line: range) -> tuple[Crash, ...]:
    return (Crash(f"INFO: rcu detected stall in lkdtm_{name}", f"lkdtm_{name}", line),)


_PAGING = "BUG: unable to handle kernel paging request"
_NULL = "BUG: unable to handle kernel NULL pointer dereference"
_LOCKUP = "BUG: soft lockup"
_ATOMIC = "BUG: scheduling while atomic"
_COPY = "BUG: bad usercopy"
_STACK = "kernel panic: stack is corrupted"
_CALLS = 28
"""Where direct_entry calls what is provoked."""

LKDTM: dict[str, Crash | Nothing] = {
    # lkdtm_PANIC calls panic() with a text of its own; titles of panics have no function.
    "PANIC": Crash("kernel panic: dumptest", "lkdtm_PANIC", 2, dies=True),
    **_by_itself("kernel BUG", BUG=2, VMALLOC_LINEAR_OVERFLOW=8),
    **_by_itself("WARNING", WARNING=2, WARNING_MESSAGE=2),
    **_by_itself(_NULL, EXCEPTION=2, ACCESS_NULL=6),
    "LOOP": Crash(f"{_LOCKUP} in lkdtm_LOOP", "lkdtm_LOOP", range(2, 4), _stall("LOOP", range(2, 4))),
    "EXHAUST_STACK": Crash(
        "BUG: stack guard page was hit in lkdtm_EXHAUST_STACK",
        "lkdtm_EXHAUST_STACK",
        4,
        dies=True,
        note="pvpanic may pause the guest before any of its text is out: then the machine's event is all there is",
    ),
    # Noticed when the function returns.
    "CORRUPT_STACK": Crash(f"{_STACK} in lkdtm_CORRUPT_STACK", "lkdtm_CORRUPT_STACK", 7, dies=True),
    "CORRUPT_STACK_STRONG": Crash(
        f"{_STACK} in lkdtm_CORRUPT_STACK_STRONG", "lkdtm_CORRUPT_STACK_STRONG", 9, dies=True
    ),
    "REPORT_STACK": Nothing("it only prints"),
    "REPORT_STACK_CANARY": Nothing("it only prints"),
    "UNALIGNED_LOAD_STORE_WRITE": Nothing("x86 does it"),
    "SOFTLOCKUP": Crash(
        f"{_LOCKUP} in lkdtm_SOFTLOCKUP",
        "lkdtm_SOFTLOCKUP",
        range(3, 5),
        _stall("SOFTLOCKUP", range(3, 5)),
    ),
    "HARDLOCKUP": Crash(
        "INFO: rcu detected stall in lkdtm_HARDLOCKUP",
        "lkdtm_HARDLOCKUP",
        range(3, 5),
        note="no performance counter under software emulation; where no processor is left there is no output at all",
    ),
    "SPINLOCKUP": Crash(
        "BUG: sleeping function called from invalid context in __fput",
        "__fput",
        10,
        # Where the tick wants another task to run before the file is closed.
        (Crash(f"{_ATOMIC} in exit_to_user_mode_prepare", "exit_to_user_mode_prepare", 10),),
        then=_ATOMIC,
        note="the first time takes the lock and leaves it so; the second time waits for it, a soft lockup",
    ),
    "HUNG_TASK": Crash(
        "INFO: task hung in direct_entry",
        "direct_entry",
        _CALLS,
        note="lkdtm_HUNG_TASK jumps to schedule() and is on no stack",
    ),
    "OVERFLOW_SIGNED": Nothing("UBSAN checks bounds only"),
    "OVERFLOW_UNSIGNED": Nothing("UBSAN checks bounds only"),
    **_by_itself("UBSAN: array-index-out-of-bounds", ARRAY_BOUNDS=27),
    **_by_itself("BUG: corrupted list", CORRUPT_LIST_ADD=30, CORRUPT_LIST_DEL=17),
    **_by_itself("BUG: stack guard page was hit", STACK_GUARD_PAGE_LEADING=8),
    # The page behind a stack belongs to none: the kernel does not call it a guard page.
    **_by_itself(_PAGING, STACK_GUARD_PAGE_TRAILING=8, WRITE_RO=6, WRITE_RO_AFTER_INIT=15, WRITE_KERN=10),
    "UNSET_SMEP": Nothing("the emulated processor has no SMEP"),
    "DOUBLE_FAULT": Nothing("of 32-bit x86 only"),
    "CORRUPT_PAC": Nothing("of arm64 only"),
    "SLAB_LINEAR_OVERFLOW": Crash(
        "BUG kmalloc-1k: Right Redzone overwritten",
        "direct_entry",
        _CALLS,
        note="lkdtm's function jumps to kfree()",
    ),
    "WRITE_AFTER_FREE": Crash("BUG kmalloc-1k: Poison overwritten", "lkdtm_WRITE_AFTER_FREE", 20),
    "READ_AFTER_FREE": Nothing("the poison is read"),
    "WRITE_BUDDY_AFTER_FREE": Nothing("free pages are not poisoned"),
    "READ_BUDDY_AFTER_FREE": Nothing("free pages are not poisoned"),
    "SLAB_INIT_ON_ALLOC": Nothing("it only prints"),
    "BUDDY_INIT_ON_ALLOC": Nothing("it only prints"),
    "SLAB_FREE_DOUBLE": Crash(
        "BUG lkdtm-heap-double_free: Slab has NUM allocated objects but NUM are to be freed",
        "direct_entry",
        _CALLS,
    ),
    **_in("cache_from_obj", "WARNING", SLAB_FREE_CROSS=9, SLAB_FREE_PAGE=8),
    "WRITE_OPD": Nothing("x86 has no function descriptors"),
    **_in("data_area", _PAGING, EXEC_DATA=None),
    # A jump to where no function is: called after who jumped.
    **_in("execute_location", _PAGING, EXEC_STACK=15, EXEC_KMALLOC=15, EXEC_VMALLOC=15),
    **_in("lkdtm_rodata_do_nothing", _PAGING, EXEC_RODATA=3),
    "EXEC_USERSPACE": Nothing("the emulated processor has no SMEP"),
    **_in("execute_location", _NULL, EXEC_NULL=15),
    "ACCESS_USERSPACE": Nothing("the emulated processor has no SMAP"),
    **_by_itself(
        "WARNING: refcount bug",
        REFCOUNT_INC_OVERFLOW=10,
        REFCOUNT_ADD_OVERFLOW=12,
        REFCOUNT_INC_NOT_ZERO_OVERFLOW=5,
        REFCOUNT_ADD_NOT_ZERO_OVERFLOW=5,
        REFCOUNT_DEC_ZERO=8,
        REFCOUNT_DEC_NEGATIVE=5,
        REFCOUNT_DEC_AND_TEST_NEGATIVE=5,
        REFCOUNT_SUB_AND_TEST_NEGATIVE=5,
        REFCOUNT_INC_ZERO=16,
        REFCOUNT_ADD_ZERO=16,
        REFCOUNT_INC_SATURATED=5,
        REFCOUNT_DEC_SATURATED=5,
        REFCOUNT_ADD_SATURATED=5,
        REFCOUNT_INC_NOT_ZERO_SATURATED=5,
        REFCOUNT_ADD_NOT_ZERO_SATURATED=5,
        REFCOUNT_DEC_AND_TEST_SATURATED=5,
        REFCOUNT_SUB_AND_TEST_SATURATED=5,
    ),
    # Two billion turns: under software emulation they take long enough for the detector.
    **_by_itself(_LOCKUP, ATOMIC_TIMING=range(5, 7), REFCOUNT_TIMING=range(5, 7)),
    **_in("do_usercopy_slab_size", _COPY, USERCOPY_SLAB_SIZE_TO=37, USERCOPY_SLAB_SIZE_FROM=49),
    **_in(
        "do_usercopy_slab_whitelist", _COPY, USERCOPY_SLAB_WHITELIST_TO=46, USERCOPY_SLAB_WHITELIST_FROM=58
    ),
    **_in(
        "do_usercopy_stack",
        _COPY,
        USERCOPY_STACK_FRAME_TO=43,
        USERCOPY_STACK_FRAME_FROM=64,
        USERCOPY_STACK_BEYOND=43,
    ),
    "USERCOPY_VMALLOC": Nothing("the copy fails, without an oops"),
    **_in("do_usercopy_page_span", _COPY, USERCOPY_FOLIO=27),
    **_by_itself(_COPY, USERCOPY_KERNEL=22),
    "STACKLEAK_ERASING": Nothing("needs gcc's plug-in"),
    "CFI_FORWARD_PROTO": Nothing("needs clang's CFI"),
    "CFI_BACKWARD": Nothing("of arm64 only"),
    **_by_itself(
        "kernel BUG", FORTIFY_STR_OBJECT=15, FORTIFY_STR_MEMBER=23, FORTIFY_MEM_OBJECT=25, FORTIFY_STRSCPY=19
    ),
    # A member's bounds are no object's: the kernel only warns.
    **_by_itself("WARNING", FORTIFY_MEM_MEMBER=23),
}
"""In the order of lkdtm's own list."""

NO_OUTPUT = Crash(
    "no output", "lkdtm_HARDLOCKUP", range(3, 5), dies=True, note="HARDLOCKUP on each processor"
)
"""Nobody is left who could say anything."""

SPINLOCKUP_AGAIN = Crash(f"{_LOCKUP} in queued_spin_lock_slowpath", "queued_spin_lock_slowpath", None)
"""Once it has the lock; its last call is a jump, so that nothing of lkdtm_SPINLOCKUP is on the stack."""

SYSRQ_C = Crash("kernel panic: sysrq triggered crash", "sysrq_handle_crash", None, dies=True)
"""On the `cloud` guest."""
