"""Which function of a backtrace a crash is called after: tables of those that only report, lend, dispatch or wait.

Tables are words; ``*`` stands for any rest.  Names are compared whole, without the underscores before them and without
what compilers add behind them (``.isra.0``, ``.cold``, ``.constprop.0``, ``.part.0``).
"""

from __future__ import annotations

import re
from typing import Final


def table(words: str) -> re.Pattern[str]:
    """Return a pattern that matches the names of a table, whole and without underscores before them."""
    names = (re.escape(word).replace(r"\*", r"\w*") for word in words.split())
    return re.compile("|".join(names))


_SKIPPED: Final = table(
    # Panics, oopses and warnings: kernel/panic.c, lib/bug.c, lib/dump_stack.c.
    "panic vpanic nmi_panic warn warn_printk warn_slowpath* warn_bogus* report_bug handle_bug fixup_bug die die_*"
    " oops_* dump_stack* show_stack* show_regs* show_trace* dump_backtrace* walk_stackframe arch_stack_walk*"
    " stack_trace_* unwind_* add_taint get_taint print_tainted print_modules check_panic_on_warn"
    # Traps and faults: arch/x86/{kernel/traps,mm/fault}.c, arch/arm64/{kernel/traps,kernel/entry-common,mm/fault}.c.
    " exc_* asm_exc_* idtentry_* do_error_trap do_trap* do_invalid_op do_general_protection do_page_fault"
    " do_user_addr_fault do_kern_addr_fault do_divide_error do_undefinstr do_mem_abort do_translation_fault"
    " do_bad_area do_alignment_fault do_sp_pc_abort do_serror do_debug_exception do_el0_undef do_el1_undef"
    " do_kernel_fault do_tag_check_fault bad_area* no_context page_fault* kernelmode_fixup_or_oops fixup_exception"
    " invalid_op error_entry el1_* el1h_* bug_handler brk_handler call_break_hook bad_mode double_fault"
    " general_protection handle_stack_overflow"
    # Checkers, and what compilers call of them: mm/{kasan,kmsan,kfence}, kernel/kcsan, lib/ubsan.c.
    " *kasan_* asan_* hwasan_* sanitizer_* *kmsan_* msan_* *kcsan_* tsan_* kfence_* ubsan_* handle_overflow"
    " val_to_string print_report print_address_description print_*_report print_*_bug print_irq_* print_circular_*"
    " print_unlock_* start_report end_report complete_report_info check_memory_region* read_word_at_a_time"
    " instrument_*"
    # Hardening: stack protector, usercopy, fortify, lists, trees, counters.
    " stack_chk_fail fortify_* usercopy_* check_object_size check_heap_object check_stack_object check_page_span"
    " check_bogus_address check_kernel_text_object list_add* list_del* list_move* list_replace* list_splice*"
    " list_cut* hlist_add* hlist_del* klist_* rb_* refcount_* kref_* ref_tracker_* kobject_* debug_object*"
    " debug_check* debug_print* seqprop_assert assertfail might_sleep* might_resched* might_fault* schedule_bug"
    " cant_* preempt_count_*"
    # Memory: who uses it is at fault, not who manages and copies it.
    " kmalloc* kzalloc* kcalloc* kvmalloc* kvzalloc* vmalloc* vzalloc* krealloc* kvrealloc* kfree kvfree vfree*"
    " vunmap* kfree_sensitive kfree_const kfree_bulk kfree_rcu* kvfree_rcu* kmem_* slab_* allocate_slab new_slab*"
    " alloc_page* alloc_frozen_pages* free_page* free_unref_page* alloc_debug_* free_debug_* free_to_partial_*"
    " check_object check_bytes* check_slab object_err slab_err print_trailer memcpy* memcmp* memset* memchr*"
    " memmove* memdup* strcpy* strcmp* strncmp* strncpy* strlcpy* strscpy* strlen* strnlen* strchr* strrchr*"
    " strstr* strnstr* strdup* strndup* strcat* sized_strscpy* copy_to_user* copy_from_user* *copy_to_iter*"
    " *copy_from_iter* copy_page_* copy_user_* raw_copy_* rep_movs* copyin copyout clear_page* clear_huge_page*"
    " put_user* get_user* iov_iter_*"
    # Locks, atomics, bits: kernel/locking.
    " raw_spin_* raw_read_* raw_write_* spin_* read_lock* read_unlock* read_trylock* write_lock* write_unlock*"
    " write_trylock* do_raw_* queued_* native_queued_* pv_queued_* lock_acquire* lock_release* lock_class*"
    " lock_is_held* lock_acquired lock_contended lockdep_* mark_lock* mark_held_locks* reacquire_held_locks"
    " check_noncircular check_*deadlock* check_prev* check_irq_usage check_usage* check_wait_context"
    " validate_chain mutex_* rt_mutex_* down down_* up up_* rwsem_* osq_* register_lock_class look_up_lock_class"
    " assign_lock_key rwlock_bug atomic_* atomic64_* arch_atomic* raw_atomic* generic_atomic* set_bit* clear_bit*"
    " change_bit* test_bit* test_and_*_bit* wake_up* trace_hardirqs* trace_softirqs* local_bh_* bh_enable"
    " bh_disable rcu_lockdep_*"
    # Out of memory: mm/oom_kill.c.
    " out_of_memory oom_* dump_header pagefault_out_of_memory mem_cgroup_*oom*"
    # Printing, consoles, and the backtraces of other processors.
    " sprintf vsprintf snprintf vsnprintf scnprintf vscnprintf kasprintf kvasprintf printk* vprintk* pointer"
    " string va_format dev_info dev_notice dev_warn dev_err dev_alert dev_crit dev_emerg dev_printk* hex_dump_*"
    " print_hex_dump* console_* serial8250_console_* wait_for_xmitr wait_for_lsr io_serial_* nmi_cpu_backtrace*"
    " nmi_trigger_* nmi_handle* arch_trigger_* trigger_*_backtrace"
    # Work, timers, files, devices and buffers at large.
    " flush_work* drain_work* destroy_work* cancel_work* cancel_delayed_work* queue_work* queue_delayed_work*"
    " insert_work try_to_grab_pending del_timer* timer_delete* mod_timer lock_timer_base complete"
    " wait_for_completion* finish_wait kthread_stop put_device device_add device_del device_unregister"
    " device_release device_destroy iput* ihold dput fast_dput kfree_skb* crc*8* crc*16* crc*32* crc*64* readb"
    " readw readl readq writeb writew writel writeq phys_addr* x86_indirect_thunk_* indirect_thunk_*"
    " x86_return_thunk* srso_* ftrace_* perf_trace_* mark_buffer_dirty"
)
"""Reports and lends."""

_DISPATCHES: Final = table(
    # To system calls, and to the parts of file systems, devices and sockets.
    "do_syscall_* el0_svc* invoke_syscall do_fast_syscall* do_int80_syscall* entry_* x64_sys_call vfs_read"
    " vfs_write vfs_iter_* vfs_ioctl vfs_open vfs_fsync* new_sync_* do_iter_* call_read_iter call_write_iter"
    " ksys_ioctl x64_sys_ioctl arm64_sys_ioctl se_sys_ioctl *compat_sys_ioctl do_dentry_open full_proxy_*"
    " proc_reg_* kernfs_fop_* sock_sendmsg* sock_recvmsg* sock_ioctl* sock_do_ioctl sock_mmap sock_close"
    " sock_release netlink_rcv_skb netlink_unicast netlink_sendmsg netlink_dump rtnetlink_rcv_msg"
    " nfnetlink_rcv_msg call_mmap mmap_region do_mmap"
    # lkdtm's own, drivers/misc/lkdtm/core.c.
    " direct_entry lkdtm_do_action lkdtm_debugfs_* lkdtm_kprobe_handler"
    # To work, timers, soft interrupts, threads, and on the way out.
    " process_one_work process_scheduled_works worker_thread call_timer_fn expire_timers run_timers run_timer*"
    " run_timer_softirq hrtimer_run_* do_softirq* handle_softirqs run_ksoftirqd smpboot_thread_fn tasklet_action*"
    " kthread ret_from_fork* start_secondary cpu_startup_entry do_idle *netif_receive_skb* handle_irq_event*"
    " do_fault handle_mm_fault fput task_work_run exit_to_user* exit_to_kernel* do_exit do_group_exit"
    " do_one_initcall"
)
_CALLS_OTHERS: Final = table("smp_call_function* on_each_cpu*")

_WAITS: Final = table(
    "*schedul* context_switch switch_to* *wait* *completion* down* *rwsem* *mutex_* *_lock* *_slowlock* msleep*"
    " *sleep_on* *sleep_timeout* synchronize_* cancel_delayed_work* flush_work* rcu_barrier* kthread* *_timeout"
)
_KNOWN_WAITS: Final = (
    (table("rtnl_lock*"), "rtnl_lock"),
    (table("synchronize_rcu* synchronize_srcu* synchronize_net* synchronize_sched*"), "synchronize_rcu"),
)
"""One cause with victims everywhere: all hangs in them are one."""

_SYSCALL: Final = (
    "__x64_",
    "__ia32_",
    "__arm64_",
    "__riscv_",
    "__s390x_",
    "__s390_",
    "__se_sys_",
    "__se_",
    "__do_sys_",
    "____sys_",
    "___sys_",
    "__sys_",
    "ksys_",
    "compat_SyS_",
    "SyS_",
    "SYSC_",
)
"""What architectures put before system calls; the first that fits is taken off."""


def plain(name: str) -> str:
    """Return a function's name without what a compiler added, and without the dot of a descriptor."""
    return name.lstrip(".").split(".", 1)[0]


def short(name: str) -> str:
    """Return a plain name without what architectures put before system calls."""
    before = next((prefix for prefix in _SYSCALL if name.startswith(prefix) and name != prefix), "")
    return name[len(before) :]


def has(names: re.Pattern[str], name: str) -> bool:
    """Whether a table has a name."""
    return names.fullmatch(name.lstrip("_")) is not None


def is_skipped(name: str, more: re.Pattern[str] | None = None) -> bool:
    """Whether a crash is not called after it; ``more``: what the kind of crash skips beside the table."""
    return has(_SKIPPED, name) or (more is not None and has(more, name))


def calls_others(name: str) -> bool:
    """Whether it waits for other processors; which of its callers it is called by is chance."""
    return has(_CALLS_OTHERS, name)


def dispatches(name: str) -> bool:
    """Whether it only calls what somebody asked for."""
    return has(_DISPATCHES, name)


def waits(name: str) -> bool:
    """Whether it only waits."""
    return has(_WAITS, name)


def known_wait(name: str) -> str:
    """Return the one name for all that wait for the same thing; empty where it is none of these."""
    return next((one for known, one in _KNOWN_WAITS if has(known, name)), "")
