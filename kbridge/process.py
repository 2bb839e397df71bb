"""What a process with a thousand lines asks of its host and of its interpreter."""

from __future__ import annotations

import gc
import resource


def raise_descriptor_limit() -> None:
    """Allow as many descriptors as the host's hard limit does: a guest takes up to six."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def spare_garbage_collection() -> None:
    """Leave what exists now out of all later collections.

    Guests, lines and rings live as long as the process; going through all of them again and again, while the bytes
    of a thousand lines come in, is work for nothing.
    """
    gc.collect()
    gc.freeze()
