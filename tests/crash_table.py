"""What each of lkdtm's crashes is called on the `kgdb` guest: `echo NAME > /sys/kernel/debug/provoke-crash/DIRECT`.

Seen with Linux 6.1.192 under software emulation.  The same on every boot, wherever KASLR put the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Crash:
    """The kernel says so on its console."""

    title: str
    function: str
    may_be: tuple[str, ...] = ()
    """What may come first instead: two detectors run a race."""
    note: str = ""


@dataclass(frozen=True)
class Nothing:
    """The kernel says nothing of a crash: there is none, or nobody sees it."""

    why: str


def _by_itself(kind: str, *names: str) -> dict[str, Crash]:
    return {name: Crash(f"{kind} in lkdtm_{name}", f"lkdtm_{name}") for name in names}


def _in(function: str, kind: str, *names: str) -> dict[str, Crash]:
    return {name: Crash(f"{kind} in {function}", function) for name in names}


_PAGING = "BUG: unable to handle kernel paging request"
_NULL = "BUG: unable to handle kernel NULL pointer dereference"
_LOCKUP = "BUG: soft lockup"

LKDTM: dict[str, Crash | Nothing] = {
    # lkdtm_PANIC calls panic() with a text of its own; titles of panics have no function.
    "PANIC": Crash("kernel panic: dumptest", "lkdtm_PANIC"),
    **_by_itself("kernel BUG", "BUG", "VMALLOC_LINEAR_OVERFLOW"),
    **_by_itself("WARNING", "WARNING", "WARNING_MESSAGE"),
    **_by_itself(_NULL, "EXCEPTION", "ACCESS_NULL"),
    "LOOP": Crash(f"{_LOCKUP} in lkdtm_LOOP", "lkdtm_LOOP", ("INFO: rcu detected stall in lkdtm_LOOP",)),
    "EXHAUST_STACK": Crash(
        "BUG: stack guard page was hit in lkdtm_EXHAUST_STACK",
        "lkdtm_EXHAUST_STACK",
        note="pvpanic may pause the guest before any of its text is out: then the machine's event is all there is",
    ),
    **_by_itself("kernel panic: stack is corrupted", "CORRUPT_STACK", "CORRUPT_STACK_STRONG"),
    "REPORT_STACK": Nothing("it only prints"),
    "REPORT_STACK_CANARY": Nothing("it only prints"),
    "UNALIGNED_LOAD_STORE_WRITE": Nothing("x86 does it"),
    "SOFTLOCKUP": Crash(
        f"{_LOCKUP} in lkdtm_SOFTLOCKUP",
        "lkdtm_SOFTLOCKUP",
        ("INFO: rcu detected stall in lkdtm_SOFTLOCKUP",),
    ),
    "HARDLOCKUP": Crash(
        "INFO: rcu detected stall in lkdtm_HARDLOCKUP",
        "lkdtm_HARDLOCKUP",
        note="no performance counter under software emulation; with one processor there is no output at all",
    ),
    "SPINLOCKUP": Crash(
        "BUG: sleeping function called from invalid context in __fput",
        "__fput",
        note="the first time takes the lock and leaves it so; the second time waits for it, a soft lockup",
    ),
    "HUNG_TASK": Crash(
        "INFO: task hung in direct_entry",
        "direct_entry",
        note="lkdtm_HUNG_TASK jumps to schedule() and is on no stack",
    ),
    "OVERFLOW_SIGNED": Nothing("UBSAN checks bounds only"),
    "OVERFLOW_UNSIGNED": Nothing("UBSAN checks bounds only"),
    **_by_itself("UBSAN: array-index-out-of-bounds", "ARRAY_BOUNDS"),
    **_by_itself("BUG: corrupted list", "CORRUPT_LIST_ADD", "CORRUPT_LIST_DEL"),
    **_by_itself("BUG: stack guard page was hit", "STACK_GUARD_PAGE_LEADING"),
    # The page behind a stack belongs to none: the kernel does not call it a guard page.
    **_by_itself(_PAGING, "STACK_GUARD_PAGE_TRAILING", "WRITE_RO", "WRITE_RO_AFTER_INIT", "WRITE_KERN"),
    "UNSET_SMEP": Nothing("the emulated processor has no SMEP"),
    "DOUBLE_FAULT": Nothing("of 32-bit x86 only"),
    "CORRUPT_PAC": Nothing("of arm64 only"),
    "SLAB_LINEAR_OVERFLOW": Crash(
        "BUG kmalloc-1k: Right Redzone overwritten", "direct_entry", note="lkdtm's function jumps to kfree()"
    ),
    "WRITE_AFTER_FREE": Crash("BUG kmalloc-1k: Poison overwritten", "lkdtm_WRITE_AFTER_FREE"),
    "READ_AFTER_FREE": Nothing("the poison is read"),
    "WRITE_BUDDY_AFTER_FREE": Nothing("free pages are not poisoned"),
    "READ_BUDDY_AFTER_FREE": Nothing("free pages are not poisoned"),
    "SLAB_INIT_ON_ALLOC": Nothing("it only prints"),
    "BUDDY_INIT_ON_ALLOC": Nothing("it only prints"),
    "SLAB_FREE_DOUBLE": Crash(
        "BUG lkdtm-heap-double_free: Slab has NUM allocated objects but NUM are to be freed", "direct_entry"
    ),
    **_in("cache_from_obj", "WARNING", "SLAB_FREE_CROSS", "SLAB_FREE_PAGE"),
    "WRITE_OPD": Nothing("x86 has no function descriptors"),
    **_in("data_area", _PAGING, "EXEC_DATA"),
    # A jump to where no function is: called after who jumped.
    **_in("execute_location", _PAGING, "EXEC_STACK", "EXEC_KMALLOC", "EXEC_VMALLOC"),
    **_in("lkdtm_rodata_do_nothing", _PAGING, "EXEC_RODATA"),
    "EXEC_USERSPACE": Nothing("the emulated processor has no SMEP"),
    **_in("execute_location", _NULL, "EXEC_NULL"),
    "ACCESS_USERSPACE": Nothing("the emulated processor has no SMAP"),
    **_by_itself(
        "WARNING: refcount bug",
        *(
            f"REFCOUNT_{what}"
            for what in (
                "INC_OVERFLOW",
                "ADD_OVERFLOW",
                "INC_NOT_ZERO_OVERFLOW",
                "ADD_NOT_ZERO_OVERFLOW",
                "DEC_ZERO",
                "DEC_NEGATIVE",
                "DEC_AND_TEST_NEGATIVE",
                "SUB_AND_TEST_NEGATIVE",
                "INC_ZERO",
                "ADD_ZERO",
                "INC_SATURATED",
                "DEC_SATURATED",
                "ADD_SATURATED",
                "INC_NOT_ZERO_SATURATED",
                "ADD_NOT_ZERO_SATURATED",
                "DEC_AND_TEST_SATURATED",
                "SUB_AND_TEST_SATURATED",
            )
        ),
    ),
    # Two billion turns: under software emulation they take long enough for the detector.
    **_by_itself(_LOCKUP, "ATOMIC_TIMING", "REFCOUNT_TIMING"),
    **_in("do_usercopy_slab_size", "BUG: bad usercopy", "USERCOPY_SLAB_SIZE_TO", "USERCOPY_SLAB_SIZE_FROM"),
    **_in(
        "do_usercopy_slab_whitelist",
        "BUG: bad usercopy",
        "USERCOPY_SLAB_WHITELIST_TO",
        "USERCOPY_SLAB_WHITELIST_FROM",
    ),
    **_in(
        "do_usercopy_stack",
        "BUG: bad usercopy",
        "USERCOPY_STACK_FRAME_TO",
        "USERCOPY_STACK_FRAME_FROM",
        "USERCOPY_STACK_BEYOND",
    ),
    "USERCOPY_VMALLOC": Nothing("the copy fails, without an oops"),
    **_in("do_usercopy_page_span", "BUG: bad usercopy", "USERCOPY_FOLIO"),
    **_by_itself("BUG: bad usercopy", "USERCOPY_KERNEL"),
    "STACKLEAK_ERASING": Nothing("needs gcc's plug-in"),
    "CFI_FORWARD_PROTO": Nothing("needs clang's CFI"),
    "CFI_BACKWARD": Nothing("of arm64 only"),
    **_by_itself(
        "kernel BUG", "FORTIFY_STR_OBJECT", "FORTIFY_STR_MEMBER", "FORTIFY_MEM_OBJECT", "FORTIFY_STRSCPY"
    ),
    # A member's bounds are no object's: the kernel only warns.
    **_by_itself("WARNING", "FORTIFY_MEM_MEMBER"),
}
"""In the order of lkdtm's own list."""

SYSRQ_C = Crash("kernel panic: sysrq triggered crash", "sysrq_handle_crash")
"""On the `cloud` guest."""
