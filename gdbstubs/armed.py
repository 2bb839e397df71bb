"""What is to stand in the stub: each session's breakpoints as they were at its last resume, counted.

A debugger removes and inserts all its breakpoints around each stop.  So a session's set is what stood when it last
resumed (or waited), and what it inserted since; what it removed goes with its next resume, or with itself.

Only the sets of sessions that have or had control are armed.  An observer's are kept by its seat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Generic

from gdbstubs.control import S
from gdbstubs.errors import ENOSPC, TargetError
from gdbstubs.target import Breakpoint, BreakpointKind

_SLOTTED: Final = frozenset(kind for kind in BreakpointKind if kind is not BreakpointKind.SOFTWARE)


class Armed(Generic[S]):
    """The breakpoints of sessions, with their owners."""

    def __init__(self) -> None:
        self._sets: dict[S, frozenset[Breakpoint]] = {}

    def of(self, session: S) -> frozenset[Breakpoint]:
        """The set of one session; empty for one that never had control."""
        return self._sets.get(session, frozenset())

    def knows(self, session: S) -> bool:
        """Whether a session has or had control."""
        return session in self._sets

    def put(self, session: S, breakpoints: frozenset[Breakpoint]) -> None:
        """Replace the set of a session."""
        self._sets[session] = breakpoints

    def drop(self, session: S) -> None:
        """Forget a session that is gone, with its set."""
        self._sets.pop(session, None)

    def all(self) -> frozenset[Breakpoint]:
        """What is to stand in the stub."""
        return frozenset().union(*self._sets.values())

    def of_others(self, session: S | None) -> frozenset[Breakpoint]:
        """What sessions other than this one want to stand."""
        return frozenset().union(*(one for owner, one in self._sets.items() if owner is not session))

    def owners(self, breakpoint_: Breakpoint) -> tuple[S, ...]:
        """Whose breakpoint it is."""
        return tuple(session for session, one in self._sets.items() if breakpoint_ in one)

    def is_alone(self, session: S) -> bool:
        """Whether no other session has a breakpoint."""
        return not self.of_others(session)

    def no_slot(
        self, breakpoint_: Breakpoint, standing: Iterable[Breakpoint], slots: int | None
    ) -> TargetError | None:
        """Return why a hardware breakpoint cannot be inserted beside those that are ``standing``, or None.

        ``slots``: how many the processor has; None where nobody knows, and the stub decides.
        """
        if slots is None or breakpoint_.kind not in _SLOTTED:
            return None
        taken = {one for one in standing if one.kind in _SLOTTED}
        if breakpoint_ in taken or len(taken) < slots:
            return None
        return TargetError(ENOSPC, f"all {slots} hardware slots are taken: {self.slots_in_words(taken)}")

    def slots_in_words(self, taken: Iterable[Breakpoint]) -> str:
        """Say who has how many of the hardware slots: ``anna 3, ben 1``."""
        counts: dict[str, int] = {}
        for one in taken:
            for owner in self.owners(one) or (None,):
                name = "nobody here" if owner is None else owner.name
                counts[name] = counts.get(name, 0) + 1
        return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))

    def by_owner(self) -> Mapping[S, frozenset[Breakpoint]]:
        """Each session's set."""
        return dict(self._sets)
