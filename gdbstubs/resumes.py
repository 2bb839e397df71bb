"""How a resume is written for a stub: what it announced decides.

Source: GDB manual, "Packets" (``c``, ``s``, ``bc``, ``bs``, ``vCont``) and "General Query Packets" (``qSupported``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gdbstubs.dialects import Dialect
from gdbstubs.errors import EINVAL, ENOSYS, RemoteProtocolError, TargetError
from gdbstubs.ranges import is_ranged
from gdbstubs.target import ALL_THREADS, ANY_THREAD, Action, Motion, ThreadId


@dataclass(frozen=True, slots=True)
class Features:
    """What a stub announces: ``names`` in its reply to ``qSupported``, ``actions`` in that to ``vCont?``."""

    packet_size: int
    names: frozenset[bytes] = frozenset()
    actions: frozenset[bytes] = frozenset()

    def __contains__(self, name: bytes) -> bool:
        return name in self.names

    @property
    def has_vcont(self) -> bool:
        """Whether each thread can be told what to do."""
        return b"c" in self.actions and b"s" in self.actions

    @property
    def has_ranges(self) -> bool:
        """Whether a step may be one of a range."""
        return self.has_vcont and b"r" in self.actions

    def with_names(self, reply: bytes, most: int) -> Features:
        """Take the reply to ``qSupported``; raises ``RemoteProtocolError`` where it makes no sense."""
        names = frozenset(reply.split(b";"))
        size = self.packet_size
        for feature in names:
            name, _, value = feature.partition(b"=")
            if name == b"PacketSize":
                try:
                    size = min(max(int(value, 16), 64), most)
                except ValueError:
                    raise RemoteProtocolError(f"the stub announces PacketSize {value[:20]!r}") from None
        return replace(self, names=names, packet_size=size)

    def with_actions(self, reply: bytes) -> Features:
        """Take the reply to ``vCont?``, such as ``vCont;c;C;s;S``; any other means that there is no ``vCont``."""
        if not reply.startswith(b"vCont;"):
            return self
        return replace(self, actions=frozenset(reply.split(b";")[1:]))


def inability(
    actions: tuple[Action, ...], features: Features, dialect: Dialect, stopped: ThreadId | None
) -> TargetError | None:
    """Return why the stub cannot do what is asked, in words; None if it can.  ``stopped`` stopped last."""
    for action in actions:
        match action.motion:
            case Motion.REVERSE_STEP if b"ReverseStep+" not in features:
                return TargetError(ENOSYS, "the guest's stub cannot step backwards: it replays no recording")
            case Motion.REVERSE_CONTINUE if b"ReverseContinue+" not in features:
                return TargetError(ENOSYS, "the guest's stub cannot run backwards: it replays no recording")
            case Motion.REVERSE_STEP | Motion.REVERSE_CONTINUE if len(actions) > 1:
                return TargetError(EINVAL, "a motion backwards is for all threads")
            case Motion.STEP if dialect.steps_current_only and stopped is not None:
                if action.thread not in (ALL_THREADS, ANY_THREAD, stopped):
                    words = f"{dialect.name} steps the thread that stopped only, {stopped:x}"
                    return TargetError(EINVAL, words)
            case _:
                pass
    return None


def thread_to_select(actions: tuple[Action, ...], stopped: ThreadId | None) -> ThreadId:
    """Return the thread that a stub without ``vCont`` must be told to resume; ``ANY_THREAD`` as a rule."""
    wanted = ANY_THREAD
    for action in actions:
        if action.motion is Motion.STEP and action.thread not in (ALL_THREADS, stopped):
            wanted = action.thread
    return wanted


def resume_text(
    actions: tuple[Action, ...], features: Features, thread_text: Callable[[ThreadId], bytes]
) -> bytes:
    """Return the packet's payload: ``vCont;s:1;c``, ``vCont;r10,20:1``, or one letter for an older stub."""
    match actions[0].motion:
        case Motion.REVERSE_STEP:
            return b"bs"
        case Motion.REVERSE_CONTINUE:
            return b"bc"
        case _:
            pass
    if not features.has_vcont:
        return b"s" if any(action.motion is Motion.STEP for action in actions) else b"c"
    return b"vCont" + b"".join(_action_text(action, thread_text) for action in actions)


def _action_text(action: Action, thread_text: Callable[[ThreadId], bytes]) -> bytes:
    text = b";" + action.motion.value.encode("ascii")
    if action.within is not None and is_ranged(action):
        start, end = action.within
        text = b";r%x,%x" % (start, end)
    return text if action.thread == ALL_THREADS else text + b":" + thread_text(action.thread)
