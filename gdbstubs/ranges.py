"""Range stepping for stubs that do not know it: single steps until the program counter leaves the range.

Source: GDB manual, "vCont packet", action ``r``.

in:      the stops of the steps, the program counter after each
out:     one stop for whoever asked for the range
states:  stepping · locating (the program counter is being read)
invariant: nothing is asked between a step and its stop; every range ends with exactly one answer
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from gdbstubs.errors import TargetError
from gdbstubs.target import (
    ALL_THREADS,
    ANY_THREAD,
    SIGINT,
    SIGTRAP,
    Action,
    Halted,
    Motion,
    Reply,
    Stop,
    ThreadId,
)


class Stepper(Protocol):
    """What a range needs of the stub's client."""

    @property
    def was_interrupted(self) -> bool:
        """Whether somebody has asked for a stop since the range began."""

    def step(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        """Let the target take one step."""

    def locate(self, thread: ThreadId, done: Reply[int]) -> None:
        """Tell a thread's program counter, before anything else is resumed."""

    def has_breakpoint(self, address: int) -> bool:
        """Whether a breakpoint stands at an address."""

    def stepped(self) -> None:
        """Take note of a stop that nobody is told of."""


@dataclass(frozen=True, slots=True)
class _Range:
    thread: ThreadId
    start: int
    end: int


class RangeStep:
    """One range: ``actions`` hold a step with ``within``; the others are given to the stub with each step."""

    def __init__(self, stepper: Stepper, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        self._stepper = stepper
        ranged = next(action for action in actions if is_ranged(action))
        assert ranged.within is not None
        self._range = _Range(ranged.thread, *ranged.within)
        self._actions = tuple(replace(action, within=None) for action in actions)
        self._done = done

    def start(self) -> None:
        """Take the next step."""
        self._stepper.step(self._actions, self._stopped)

    def _stopped(self, stop: Stop | TargetError) -> None:
        if not isinstance(stop, Halted) or not self._is_plain(stop):
            self._done(stop)
        elif self._stepper.was_interrupted:
            self._interrupted(stop)
        else:
            thread = stop.thread if stop.thread is not None else self._range.thread
            self._stepper.locate(
                ANY_THREAD if thread == ALL_THREADS else thread, partial(self._located, stop)
            )

    def _is_plain(self, stop: Halted) -> bool:
        """Whether this stop is nothing but the end of our thread's step."""
        ours = stop.thread is None or self._range.thread in (stop.thread, ALL_THREADS)
        return stop.signal == SIGTRAP and stop.reason is None and not stop.words and ours

    def _interrupted(self, stop: Halted) -> None:
        # The step ended before the interrupt came: the interrupt is what its user waits for.
        self._done(replace(stop, signal=SIGINT))

    def _located(self, stop: Halted, address: int | TargetError) -> None:
        if isinstance(address, TargetError):
            self._done(stop)
        elif self._stepper.was_interrupted:
            self._interrupted(stop)
        elif not self._range.start <= address < self._range.end or self._stepper.has_breakpoint(address):
            self._done(stop)
        else:
            self._stepper.stepped()
            self.start()


def is_ranged(action: Action) -> bool:
    """Whether an action is a step of a range."""
    return action.motion is Motion.STEP and action.within is not None
