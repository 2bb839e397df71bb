"""What each kind of stub has, lacks and does differently.

A dialect holds what cannot be asked for.  What a stub announces itself (``qSupported``, ``vCont?``) is
detected, never assumed from a version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


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
)

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
