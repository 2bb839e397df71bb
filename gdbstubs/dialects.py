"""What each kind of stub has, lacks and does differently.

A dialect holds what cannot be asked for.  What a stub announces itself (``qSupported``, ``vCont?``) is
detected, never assumed from a version.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from gdbstubs.registers import Description
from gdbstubs.x86 import KGDB_X86_64, X86_64


class InterruptBy(Enum):
    """How a running target is made to stop."""

    BYTE = "byte"
    """By the byte 0x03."""
    BREAK_IN = "break-in"
    """By something outside the protocol: BREAK and ``g`` on the line, an NMI, ``/proc/sysrq-trigger``."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to speak with one kind of stub."""

    name: str
    multiprocess: bool
    """Announce ``multiprocess+`` and write thread-ids with their process."""
    pipeline: int
    """How many requests may be on their way at once."""
    acknowledge_timeout: float | None
    """Seconds until a packet is sent again; None where the transport is reliable."""
    acknowledge_late: bool
    """Send acknowledgements with the next request only."""
    request_timeout: float
    """Seconds until a stub that does not answer counts as lost."""
    packet_size: int
    """Bytes in a packet when the stub does not say."""
    detach_resumes: bool
    """Whether ``D`` lets the target run; a target that must rest is left by closing the connection."""
    detach_waits: bool = False
    """Whether the target stands until the reply to ``D`` was acknowledged."""
    detach_continues: bool = False
    """Whether a target that holds nothing of ours any more is left by a continue rather than by ``D``."""
    greeting_forgets: bool = False
    """Whether the greeting's question has the stub forget its breakpoints, and that they were removed."""
    passes_fault: bytes = b""
    """What leaves a target that has faulted to handle its fault; empty where it does so by itself."""
    asks_features: bool = True
    """Whether ``qSupported`` and ``vCont?`` are worth asking."""
    sticky_steps: bool = True
    """Whether it may be QEMU's, which keeps single steps that a processor did not take (``steps.py``)."""
    offers_words: bool = False
    """Announce that errors may be words."""
    probes_binary: bool = True
    """Find out by an empty ``X`` whether memory can be written in binary."""
    interrupt_by: InterruptBy = InterruptBy.BYTE
    steps_current_only: bool = False
    """Whether only the thread that stopped can be stepped or continued."""
    steps_over_breakpoints: bool = False
    """Whether a step from the address of a software breakpoint moves on, rather than trap there again."""
    trap_length: int = 0
    """By how many bytes the program counter is past a software breakpoint that was hit; debuggers put it back."""
    hardware_slots: int | None = None
    """How many hardware breakpoints and watchpoints there are; None where that is not known."""
    registers: Description | None = None
    """What ``g`` holds where the stub does not describe it."""
    described: Description | None = None
    """What debuggers are served before the stub's own description is known, and where it has none."""


QEMU: Final = Dialect(
    name="qemu",
    # QEMU keeps the flag of an earlier connection, and then refuses a plain ``D`` with E22 (seen in 7.2):
    # always negotiating it puts the stub in a known state.
    multiprocess=True,
    # Requests behind each other are answered in order, in a third of the time (4.4 us instead of 14).
    pipeline=64,
    acknowledge_timeout=None,
    # A lone "+" wakes QEMU for nothing, and stops the guest if it comes after a resume.
    acknowledge_late=True,
    request_timeout=30.0,
    packet_size=4096,
    detach_resumes=True,
    probes_binary=False,
    steps_over_breakpoints=True,
    # Software emulation has no limit, hardware has four on x86: the stub's E28 tells.
    hardware_slots=None,
    registers=X86_64,
    described=X86_64,
)

KGDB: Final = Dialect(
    name="kgdb",
    multiprocess=False,
    pipeline=1,
    acknowledge_timeout=3.0,
    acknowledge_late=False,
    request_timeout=30.0,
    # BUFMAX in arch/x86/include/asm/kgdb.h; it has no way to say so.
    packet_size=1024,
    detach_resumes=True,
    detach_waits=True,
    # ``D`` makes it forget which breakpoints were removed. A processor that hit one while another had stopped already
    # is then taken for a new stop, of which nobody is told, and the kernel stands for good.
    detach_continues=True,
    greeting_forgets=True,
    # After ``c`` an oops is handled, and what faulted is tried again: it stops for good at one fault.
    passes_fault=b"C09",
    asks_features=False,
    sticky_steps=False,
    interrupt_by=InterruptBy.BREAK_IN,
    # "Can't switch threads in kgdb", says kernel/debug/gdbstub.c.
    steps_current_only=True,
    # ``int3``; kgdb reports it as any other trap.
    trap_length=1,
    # HBP_NUM in arch/x86/include/asm/hw_breakpoint.h.
    hardware_slots=4,
    registers=KGDB_X86_64,
    described=X86_64,
)
"""Linux's own stub on a serial line (kernel/debug/gdbstub.c, as of 6.1)."""

RELAY: Final = Dialect(
    name="relay",
    multiprocess=False,
    pipeline=64,
    acknowledge_timeout=None,
    acknowledge_late=False,
    request_timeout=30.0,
    packet_size=4096,
    detach_resumes=True,
    sticky_steps=False,
    offers_words=True,
    steps_over_breakpoints=True,
)
"""Another relay, or any modern stub on a reliable connection; what it announces is used."""

PLAIN: Final = Dialect(
    name="plain",
    multiprocess=False,
    pipeline=1,
    acknowledge_timeout=3.0,
    acknowledge_late=False,
    request_timeout=30.0,
    packet_size=400,
    detach_resumes=True,
)
"""A stub of which nothing is known: the smallest packets, one request at a time."""
