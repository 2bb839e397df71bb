"""QEMU's single-step flag, which stays set on a processor that did not get to use it.

When one processor is told to step and another one stops the guest first, QEMU (7.2, gdbstub.c) clears the flag of
the one that stopped only.  The other traps at its next instruction, whenever that comes: in a later ``continue``,
or after the debugger has left, and then for ever, because a detached stub clears no flags.

``Qqemu.sstep=0`` makes ``vCont;s`` clear the flag instead of setting it, so a processor that is owed a step can be
continued for good.  Nothing else in the protocol reaches the flag.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gdbstubs.errors import TargetError
from gdbstubs.gather import Answer
from gdbstubs.replies import Reply as RawReply
from gdbstubs.target import ALL_THREADS, Action, Halted, Motion, Stop, ThreadId

USUAL_FLAGS: Final = 7
"""Step, with interrupts and timers held back meanwhile: what QEMU begins with."""


class StepFlags:
    """Which processors may still be set to step, and how they are made not to be."""

    def __init__(self, ask: Callable[[bytes, Answer], None]) -> None:
        self._ask = ask
        self._usual: int | None = None
        self._off = False
        self._owed: set[ThreadId] = set()
        self._tried: set[ThreadId] = set()
        """Which of them the last resume added."""

    @property
    def any_owed(self) -> bool:
        """Whether a processor may trap although nobody wants it to."""
        return self._usual is not None and bool(self._owed)

    def learn(self) -> None:
        """Ask for the flags on a new connection; a stub that does not know them is not QEMU's, and needs no care."""
        self._ask(b"qqemu.sstep", self._learned)

    def _learned(self, reply: RawReply) -> None:
        if not isinstance(reply, bytes) or not reply.startswith(b"0x"):
            return
        try:
            self._usual = int(reply, 16)
        except ValueError:
            return
        if self._usual == 0:
            # A predecessor was killed between switching them off and on.
            self._usual = USUAL_FLAGS
            self._off = True
            self.restore()

    def restore(self) -> None:
        """Make ``vCont;s`` step again, when the target has stopped after ``settle``."""
        if self._off and self._usual is not None:
            self._off = False
            self._ask(b"Qqemu.sstep=%x" % self._usual, _ignored)

    def settle(self, actions: tuple[Action, ...]) -> tuple[Action, ...]:
        """Return the actions to send for a resume, after what must be said before it."""
        stepped = {action.thread for action in actions if action.motion is Motion.STEP}
        backwards = any(action.motion not in (Motion.STEP, Motion.CONTINUE) for action in actions)
        self._tried = stepped - self._owed
        if stepped or backwards or not self.any_owed:
            self._owed |= stepped
            return actions
        self._ask(b"Qqemu.sstep=0", _ignored)
        self._off = True
        cleared = tuple(Action(Motion.STEP, thread) for thread in sorted(self._owed))
        self._owed.clear()
        if cleared[0].thread == ALL_THREADS:
            return cleared[:1]
        return (*cleared, *actions)

    def stopped(self, stop: Stop | TargetError) -> None:
        """Take note of a stop: QEMU clears the flag of the processor that it reports, and sets none when it refuses."""
        if isinstance(stop, TargetError):
            self._owed -= self._tried
        elif isinstance(stop, Halted) and stop.thread is not None:
            self._owed.discard(stop.thread)


def _ignored(reply: RawReply) -> None:
    """Take no note: a stub that knows ``qqemu.sstep`` knows how to set it."""
