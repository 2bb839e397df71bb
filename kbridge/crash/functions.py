"""Which function of a backtrace a crash is called after: tables of those that only report, lend or wait.

Names are compared whole, without what compilers add (``.isra.0``, ``.cold``, ``.constprop.0``, ``.part.0``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_REPORTS: Final = (
    # kernel/panic.c, lib/bug.c, lib/dump_stack.c and what architectures put under them
    r"panic|vpanic|nmi_panic|__warn|__warn_printk|warn_(?:slowpath|bogus)_\w+|report_bug|handle_bug|fixup_bug|die|__die"
    r"|die_\w+|oops_\w+|dump_stack\w*|show_(?:stack|regs|trace)\w*|__show_\w+|dump_backtrace\w*|walk_stackframe|"
    r"arch_stack_walk|stack_trace_\w+|unwind_\w+|add_taint|check_panic_on_warn|print_(?:tainted|modules)|get_taint",
    # traps and faults: arch/x86/kernel/traps.c, arch/x86/mm/fault.c, arch/arm64/{kernel,mm}
    r"(?:asm_)?exc_\w+|idtentry_\w+|do_(?:error_trap|trap\w*|invalid_op|general_protection|page_fault|user_addr_fault"
    r"|kern_addr_fault|divide_error|undefinstr|mem_abort|translation_fault|bad_area|page_fault|alignment_fault"
    r"|sp_pc_abort|serror|debug_exception|el[01]_undef|kernel_fault|tag_check_fault)|_*bad_area\w*|no_context|"
    r"page_fault\w*|kernelmode_fixup_or_oops|fixup_exception|invalid_op|error_entry|__do_kernel_fault|"
    r"el1h?_\w+|bug_handler|brk_handler|call_break_hook|bad_mode|double_fault|general_protection|handle_stack_overflow",
    # checkers: mm/kasan, mm/kmsan, mm/kfence, kernel/kcsan, lib/ubsan.c, and what compilers call of them
    r"\w*kasan_\w+|__(?:hw)?asan_\w+|\w*kmsan_\w+|__msan_\w+|\w*kcsan_\w+|__tsan_\w+|kfence_\w+|__ubsan_\w+|ubsan_\w+"
    r"|handle_overflow|__sanitizer_\w+|print_(?:report|address_description|\w+_report|usage_bug|irq_\w+|\w+_bug"
    r"|circular_\w+|deadlock_bug|unlock_\w+)|end_report|start_report|check_memory_region\w*|complete_report_info"
    r"|read_word_at_a_time|val_to_string",
    # hardening: stack protector, usercopy, fortify, list and refcount checks
    r"__stack_chk_fail|fortify_panic|__fortify_\w+|usercopy_\w+|__check_(?:object_size|heap_object)|check_(?:heap"
    r"|stack|page|bogus|kernel_text)_\w+|_*list_(?:add|del|move|replace|splice|cut)\w*|_*hlist_(?:add|del)\w*|"
    r"_*klist_\w+|_*rb_\w+|_*refcount_\w+|_*kref_\w+|ref_tracker_\w+|_*kobject_\w+|debug_(?:object|check|print)\w*|"
    r"seqprop_assert|assertfail|__might_\w+|might_\w+|__schedule_bug|__cant_\w+|preempt_count_\w+",
)

_LENDS: Final = (
    # memory: its users are at fault, not the allocators and copiers
    r"_*k?v?[mzc]alloc\w*|_*krealloc\w*|_*k?v?free(?:_sensitive|_const|_bulk|_rcu\w*)?|kmem_\w+|_*slab_\w+|___slab_\w+|"
    r"allocate_slab|new_slab\w*|_*alloc_(?:pages?|frozen_pages)\w*|_*free_(?:pages?|unref)\w*|vm(?:alloc|ap)\w*|vfree\w*"
    r"|vunmap\w*|alloc_debug_\w+|free_debug_\w+|free_to_partial_\w+|check_(?:object|bytes\w*|slab)|object_err|slab_err|print_trailer"
    r"|_*(?:mem|str)(?:cpy|cmp|set|chr|move|dup|ncmp|ncpy|lcpy|scpy|len|nlen|str|nstr|ndup|cat|scpy_pad)\w*|"
    r"_*copy_(?:to|from)_\w+|_copy_\w+|copy_page_\w+|copyin|copyout|raw_copy_\w+|rep_movs\w*|copy_user_\w+|clear_\w*page\w*"
    r"|_*(?:put|get)_user\w*|iov_iter_\w+|sized_str\w+",
    # locks and atomics
    r"_*raw_(?:spin|read|write)_\w+|_*(?:spin|read|write)_(?:un)?(?:try)?lock\w*|do_raw_\w+|queued_\w+|native_queued_\w+|"
    r"_*pv_queued_\w+|__lock_\w+|lock_(?:acquire|release|class|is_held|acquired|contended)\w*|lockdep_\w+|mark_lock\w*|"
    r"mark_\w*held_locks|reacquire_held_locks|check_\w*(?:deadlock|noncircular|prev|irq_usage|usage)\w*|validate_chain|"
    r"_*(?:rt_)?mutex_\w+|_*(?:down|up)(?:_\w+)?|rwsem_\w+|osq_\w+|register_lock_class|assign_lock_key|spin_(?:bug|dump)|rwlock_bug|"
    r"(?:arch_|raw_|generic_)?atomic(?:64)?_\w+|(?:arch_|__)?(?:set|clear|change|test)_(?:and_\w+_)?bit\w*|_*wake_up\w*|"
    r"(?:trace|lockdep)_(?:hard|soft)irq\w*|_*local_bh_\w+|bh_(?:en|dis)able|rcu_lockdep_\w+",
    # out of memory
    r"out_of_memory|oom_kill_process|dump_header|pagefault_out_of_memory|mem_cgroup_\w+oom\w*|__oom_\w+|"
    # printing
    r"_*v?s[nc]*printf|k?v?asprintf|_*printk\w*|_printk\w*|vprintk\w*|printk_\w+|pointer|string|va_format|"
    r"_*dev_(?:info|notice|warn|err|alert|crit|emerg|printk)|hex_dump_\w+|print_hex_dump\w*|console_\w+|serial8250_console_\w+"
    r"|wait_for_(?:xmitr|lsr)|io_serial_\w+|nmi_(?:cpu_backtrace|trigger_\w+|handle)\w*|arch_trigger_\w+|trigger_\w+_backtrace",
    # work, timers, files and devices at large
    r"(?:_*flush|_*drain|destroy)_work\w*|cancel_(?:delayed_)?work\w*|_*cancel_work_timer|_*queue_(?:delayed_)?work\w*|"
    r"insert_work|try_to_grab_pending|(?:timer_)?del(?:ete)?_timer\w*|_*mod_timer|lock_timer_base|_*timer_delete\w*|"
    r"complete|wait_for_completion\w*|finish_wait|kthread_stop|put_device|device_(?:add|del|unregister|release|destroy)|"
    r"_*iput\w*|ihold|_*dput|fast_dput|k?free_skb\w*|crc\w*\d\w*|read[bwlq]|write[bwlq]|_*phys_addr\w*|"
    r"(?:__x86_)?indirect_thunk_\w+|__x86_(?:indirect|return)_thunk\w*|srso_\w+|ftrace_\w+|perf_trace_\w+|_*mark_buffer_dirty",
)

_SKIPPED: Final = re.compile("|".join((*_REPORTS, *_LENDS)))

_DISPATCHES: Final = re.compile(
    # to system calls and their file's or socket's own part
    r"(?:do_|el0_svc_|invoke_)?syscall_\w+|invoke_syscall|el0_svc\w*|do_(?:fast|int80)_syscall\w*|entry_\w+|x64_sys_call|"
    r"vfs_(?:read|write|iter_\w+|ioctl|open|fsync\w*)|new_sync_\w+|do_iter_\w+|call_(?:read|write)_iter|ksys_ioctl|"
    r"(?:__x64_|__arm64_)?(?:compat_)?sys_ioctl|do_dentry_open|full_proxy_\w+|proc_reg_\w+|kernfs_fop_\w+|"
    r"sock_(?:sendmsg|recvmsg|ioctl|do_ioctl|mmap|close)\w*|_*sock_release|netlink_(?:rcv_skb|unicast|sendmsg|dump)|"
    r"rtnetlink_rcv_msg|nfnetlink_rcv_msg|call_mmap|mmap_region|do_mmap|"
    # lkdtm's own, drivers/misc/lkdtm/core.c
    r"direct_entry|lkdtm_do_action|lkdtm_debugfs_\w+|lkdtm_kprobe_handler|"
    # to work, timers, soft interrupts, threads, exits
    r"process_(?:one_work|scheduled_works)|worker_thread|call_timer_fn|expire_timers|_*run_timers?\w*|run_timer_softirq|"
    r"_*hrtimer_run_\w+|_*do_softirq\w*|handle_softirqs|run_ksoftirqd|smpboot_thread_fn|tasklet_action\w*|kthread|"
    r"ret_from_fork\w*|start_secondary|cpu_startup_entry|do_idle|_*netif_receive_skb\w*|_*handle_irq_event\w*|"
    r"_*do_fault|handle_mm_fault|_*fput|task_work_run|exit_to_\w+mode\w*|do_exit|do_group_exit|do_one_initcall"
)
_CALLS_OTHERS: Final = re.compile(r"smp_call_function\w*|on_each_cpu\w*")
"""Which processor does not answer is chance: all of these are one."""

_WAITS: Final = re.compile(
    r"(?:__|io_|preempt_|\w+_)?schedul\w*|context_switch|__switch_to\w*|\w*wait\w*|\w*completion\w*|_*down\w*|\w*rwsem\w*|"
    r"\w*mutex_\w+|\w*_(?:slow)?lock\w*|msleep\w*|\w*sleep_(?:on|timeout)\w*|synchronize_\w+|cancel_delayed_work\w*|"
    r"_*flush_work\w*|rcu_barrier\w*|kthread\w*|\w*_timeout"
)
_KNOWN_WAITS: Final = (
    (re.compile(r"rtnl_lock\w*"), "rtnl_lock"),
    (re.compile(r"synchronize_(?:s?rcu|net|sched)\w*"), "synchronize_rcu"),
)
"""One cause with victims everywhere: all hangs in them are one."""

_SYSCALL: Final = re.compile(
    r"(?:__x64_|__ia32_|__arm64_|__riscv_|__s390x?_|__se_sys_|__se_|__do_sys_|____?_?sys_|ksys_|compat_SyS_|SyS_|SYSC_)"
)


def plain(name: str) -> str:
    """Return a function's name without what a compiler added, and without the dot of a descriptor."""
    return name.lstrip(".").split(".", 1)[0]


def short(name: str) -> str:
    """Return a plain name without what architectures put before system calls."""
    found = _SYSCALL.match(name)
    return name if found is None else name[found.end() :] or name


def is_skipped(name: str, more: re.Pattern[str] | None = None) -> bool:
    """Whether a crash is not called after it; ``more``: what the kind of crash skips beside the table."""
    return _SKIPPED.fullmatch(name) is not None or (more is not None and more.fullmatch(name) is not None)


def stalled(names: Sequence[str]) -> str | None:
    """Return what is called by the code that dispatches work, innermost first; None while that has not come."""
    before: str | None = None
    for name in names:
        if _CALLS_OTHERS.fullmatch(name):
            return "smp_call_function"
        if _DISPATCHES.fullmatch(name):
            return before
        if not is_skipped(name) or before is None:
            before = name
    return None


def hung(names: Sequence[str]) -> str | None:
    """Return what a task waits in, innermost first, of a whole backtrace."""
    for name in names:
        for pattern, one in _KNOWN_WAITS:
            if pattern.fullmatch(name):
                return one
    return next((name for name in names if not _WAITS.fullmatch(name)), None)
