"""Getting a thread off a breakpoint of its own session, as every debugger does before it resumes.

A stub reports a breakpoint again when it resumes at its address, before an instruction was carried out.  So what
stands there is removed, the thread takes one step alone, and what was removed is inserted again.

in:      a client whose target stands at breakpoints that its user has inserted, and the actions to carry out
out:     the stop, once: of the step if that is all, or if it ended otherwise; else of what is left of the actions
invariant: what was removed is inserted again before anybody is told, unless the target is gone or runs on
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gdbstubs.client import State, StubClient
from gdbstubs.errors import TargetError
from gdbstubs.target import (
    ALL_THREADS,
    ANY_THREAD,
    SIGINT,
    SIGTRAP,
    Action,
    Breakpoint,
    BreakpointKind,
    Halted,
    Motion,
    Reply,
    Stop,
)

INSTRUCTIONS: Final = (BreakpointKind.SOFTWARE, BreakpointKind.HARDWARE)
"""The kinds that stop before an instruction."""


class Passing:
    """One step off breakpoints; the module's text says how.

    ``go`` carries out what is left of the actions.  ``is_wanted`` may be set meanwhile: a stop is wanted.
    """

    def __init__(
        self,
        client: StubClient,
        actions: tuple[Action, ...],
        go: Callable[[], None],
        stopped: Reply[Stop],
    ) -> None:
        self.is_wanted = False
        self._client = client
        self._actions = actions
        self._go = go
        self._stopped = stopped
        self._thread = ANY_THREAD
        self._removed: list[Breakpoint] = []

    def start(self) -> None:
        """Find out whether the thread that stopped stands at a breakpoint, and begin."""
        self._client.why_stopped(self._found_stop)

    def _found_stop(self, stop: Stop | TargetError) -> None:
        if isinstance(stop, Halted) and stop.thread is not None:
            self._thread = stop.thread
            self._client.program_counter(stop.thread, self._found_place)
        else:
            self._go()

    def _found_place(self, counter: int | TargetError) -> None:
        self._removed = [
            one for one in self._client.inserted if one.kind in INSTRUCTIONS and one.address == counter
        ]
        if not self._removed:
            self._go()
            return
        for breakpoint_ in self._removed:
            self._client.remove(breakpoint_, _ignored)
        self._client.resume((Action(Motion.STEP, self._thread),), self._stepped)

    def _stepped(self, stop: Stop | TargetError) -> None:
        missing = [one for one in self._removed if one not in self._client.inserted]
        if self._client.state is not State.STOPPED or not missing:
            self._settled(stop)
            return
        results: list[TargetError | None] = []

        def inserted(result: TargetError | None) -> None:
            results.append(result)
            if len(results) == len(missing):
                self._settled(next((one for one in results if one is not None), stop))

        for breakpoint_ in missing:
            self._client.insert(breakpoint_, inserted)

    def _settled(self, stop: Stop | TargetError) -> None:
        if not isinstance(stop, Halted) or stop.signal != SIGTRAP or stop.reason is not None:
            self._stopped(stop)
            return
        if self.is_wanted:
            self._stopped(Halted(SIGINT, stop.thread, None, stop.words))
            return
        first = self._actions[0]
        if first.motion is not Motion.STEP or first.thread not in (self._thread, ANY_THREAD, ALL_THREADS):
            self._go()
        elif first.within is None:
            self._stopped(stop)
        else:
            start, end = first.within
            self._client.program_counter(self._thread, lambda counter: self._moved(stop, start, end, counter))

    def _moved(self, stop: Halted, start: int, end: int, counter: int | TargetError) -> None:
        if isinstance(counter, int) and start <= counter < end:
            self._go()
        else:
            self._stopped(stop)


def _ignored(result: object) -> None:
    """Take no note: what could not be removed still stands, and is not inserted again."""
