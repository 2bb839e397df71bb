"""A stop that is withheld until its debugger has read again what changed: the main file, the list of libraries.

in:      a stop that is to be told, what changed since the last one, the debugger's resumes
out:     what to tell next
states:  nothing withheld · asking what changed · telling

A stop reply with ``exec:`` makes gdb read the main file and the target description again, forget what it inserted and
insert its breakpoints at their new addresses; one with ``library:`` makes it read the list of libraries.  Then it
resumes by itself.  Neither is the stop: in one reply with the reason of a stop that is lost.  So the guest stands,
each change is told first, and each of the resumes that follow is answered by the next.

Source: GDB manual, "Stop Reply Packets"; gdb 13 and 18, tried.
"""

from __future__ import annotations

from collections import deque

from gdbstubs.target import Halted


class Follower:
    """What one debugger must read; the module's text says how."""

    def __init__(self) -> None:
        self.follows = False
        """Whether the debugger has asked for anything that may change."""
        self._stop: Halted | None = None
        self._changes: deque[bytes] | None = None

    @property
    def stop(self) -> Halted | None:
        """The stop that is withheld."""
        return self._stop

    @property
    def is_telling(self) -> bool:
        """Whether the next resume is answered from here."""
        return self._changes is not None

    def withhold(self, stop: Halted) -> None:
        """Keep a stop until it is known what changed."""
        self._stop = stop
        self._changes = None

    def must_read(self, changes: tuple[bytes, ...]) -> None:
        """Note what changed, each as it stands in a stop reply: ``exec:2f6b`` or ``library:``."""
        self._changes = deque(changes)

    def next_change(self) -> bytes | None:
        """Return the next thing to tell; None when it is the stop's turn."""
        return self._changes.popleft() if self._changes else None

    def release(self) -> Halted:
        """Return the stop, which is withheld no longer."""
        stop = self._stop
        assert stop is not None, "nothing is withheld"
        self.forget()
        return stop

    def forget(self) -> None:
        """Withhold nothing any more."""
        self._stop = self._changes = None
