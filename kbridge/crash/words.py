"""What kinds of crashes are in words, which of them a guest does not survive, and which are warnings only; pure."""

from __future__ import annotations

from typing import Final

from kbridge.crash.kinds import Kind

SILENCE: Final = "silence"
PANIC: Final = "Kernel panic - not syncing"
IN_KDB: Final = "Entering kdb"
WARNINGS: Final = frozenset(
    {
        Kind.WARNING,
        Kind.KCSAN,
        Kind.KFENCE,
        Kind.KMSAN,
        Kind.UBSAN,
        Kind.LOCKDEP,
        Kind.ATOMIC,
        Kind.REFCOUNT,
    }
)
"""The kernel goes on, and nothing is known to be damaged."""
_WORDS: Final = {
    Kind.PANIC: "the kernel panicked",
    Kind.OOPS: "the kernel met a fault that it could not handle",
    Kind.BUG: "the kernel found itself in a state that must not be (BUG)",
    Kind.WARNING: "the kernel warned of a state that must not be",
    Kind.KASAN: "code used memory that is not its own (KASAN)",
    Kind.KMSAN: "code used memory that was never written (KMSAN)",
    Kind.KCSAN: "two tasks used the same memory at once (KCSAN)",
    Kind.KFENCE: "code used memory that is not its own (KFENCE)",
    Kind.UBSAN: "code did what the language leaves undefined (UBSAN)",
    Kind.LOCKDEP: "locks are taken in a way that may end in a deadlock",
    Kind.RCU_STALL: "a processor or task has held up RCU for too long",
    Kind.SOFT_LOCKUP: "a processor has not let other tasks run for too long",
    Kind.HARD_LOCKUP: "a processor has not taken interrupts for too long",
    Kind.WORKQUEUE_LOCKUP: "a workqueue has not got on for too long",
    Kind.HUNG_TASK: "a task has waited for too long",
    Kind.OUT_OF_MEMORY: "memory ran out",
    Kind.STACK_OVERFLOW: "a kernel stack was too small",
    Kind.STACK_PROTECTOR: "a kernel stack was overwritten",
    Kind.GENERAL_PROTECTION: "code used an address that cannot be, or broke another rule of the processor",
    Kind.PAGE_FAULT: "code used an address where nothing is mapped, or not for that",
    Kind.DIVIDE_ERROR: "code divided by zero",
    Kind.DOUBLE_FAULT: "a fault came while another was being handled",
    Kind.ATOMIC: "code slept where it must not",
    Kind.SPINLOCK: "a spinlock was used wrongly, or held for too long",
    Kind.BAD_PAGE: "a page's state was damaged",
    Kind.SLAB: "the memory of an object was overwritten",
    Kind.LIST: "a list was damaged",
    Kind.USERCOPY: "more was copied from or to user space than there is room for",
    Kind.FORTIFY: "more was copied than there is room for",
    Kind.REFCOUNT: "a counter of references went wrong",
    Kind.MACHINE_CHECK: "the processor reported a fault of the hardware",
    Kind.KDB: "the kernel's debugger was entered",
}


def of_title(kind: Kind, text: str) -> str:
    """Say what happened; ``text`` is what the kernel said of it."""
    words = _WORDS.get(kind, f"the kernel reported {kind.value}")
    if IN_KDB in text and kind is not Kind.KDB:
        return f"{words}, and waits in its debugger"
    if PANIC in text and kind is not Kind.PANIC:
        return f"{words}, and panicked"
    return words


def in_debugger(kind: Kind, text: str) -> bool:
    """Return whether the kernel waits in its own debugger."""
    return kind is Kind.KDB or IN_KDB in text


def fatal(kind: Kind, text: str) -> bool:
    """Return whether a guest does not go on by itself, by what its kernel said."""
    return kind in (Kind.PANIC, Kind.KDB) or PANIC in text or IN_KDB in text
