"""What is done about a crash: whether it is kept in full, and what becomes of its guest.

in          crashes as they are noticed, the configuration, who is at work on the guest
out         decisions
invariant   a guest that somebody controls is never resumed, reset or switched off, but for a pause that its debugger
            does not know of; one that goes on by itself is let go on if it was this relay that paused it
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kbridge.crash.facts import Noticed

LOOP_NS: Final = 3600 * 1_000_000_000
"""Equal crashes within so long are a loop."""
MOST_TITLES: Final = 256


class OnCrash(Enum):
    """What becomes of a guest that died, when its evidence has been taken."""

    LEAVE = "leave"
    """It stays as it died, for a debugger."""
    RESUME = "resume"
    RESET = "reset"
    OFF = "off"


class After(Enum):
    """What is to be done with a guest when its evidence has been taken."""

    NOTHING = "nothing"
    RESUME = "resume"
    RESET = "reset"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Standing:
    """How a guest stands when its evidence has been taken."""

    paused_by_us: bool
    """For this capture."""
    controlled: bool
    has_machine: bool
    stub_inside: bool = False
    """Its debug stub is its kernel's own, which answers only while the machine runs."""
    held: bool = False
    """It has no machine monitor, and stood in its kernel's own debugger, by whose stub it was looked into."""


def after(noticed: Noticed, on_crash: OnCrash, standing: Standing) -> tuple[After, str]:
    """Return what is to be done, and what that is in words."""
    if noticed.hands_off:
        return After.NOTHING, f"not touched: {noticed.hands_off}"
    if standing.held and not standing.controlled:
        return After.NOTHING, _held(noticed, on_crash)
    if not standing.has_machine:
        return After.NOTHING, "as it was: it has no machine monitor"
    if standing.controlled:
        # Its debugger has control of the kernel, and would not get an answer.
        what = After.RESUME if standing.stub_inside and standing.paused_by_us else After.NOTHING
        return what, "left to the debugger that controls it"
    if not noticed.fatal:
        if standing.paused_by_us:
            return After.RESUME, "went on"
        return After.NOTHING, "as it was"
    match on_crash:
        case OnCrash.RESUME:
            return After.RESUME, "resumed"
        case OnCrash.RESET:
            return After.RESET, "reset"
        case OnCrash.OFF:
            return After.OFF, "switched off"
        case _ if noticed.in_debugger and standing.paused_by_us:
            # A machine that stands has no use of a kernel's debugger.
            return After.RESUME, "left in its kernel's debugger"
        case _:
            return After.NOTHING, "left as it died"


def _held(noticed: Noticed, on_crash: OnCrash) -> str:
    """Return what becomes of a guest of which there is nothing but its kernel's own debugger."""
    if not noticed.fatal:
        return "went on"
    match on_crash:
        case OnCrash.RESUME:
            return "resumed, by its kernel's debugger"
        case OnCrash.RESET | OnCrash.OFF:
            return "left in its kernel's debugger: it has no machine monitor"
        case _:
            return "left in its kernel's debugger"


class Loops:
    """Recognises a guest that dies of the same again and again: the first ones are kept in full, others counted."""

    def __init__(self, full: int) -> None:
        self._full = full
        self._seen: OrderedDict[str, deque[int]] = OrderedDict()

    def is_full(self, title: str, wall_ns: int) -> bool:
        """Take note of a crash; return whether it is to be kept in full."""
        times = self._seen.setdefault(title, deque(maxlen=self._full))
        self._seen.move_to_end(title)
        while len(self._seen) > MOST_TITLES:
            self._seen.popitem(last=False)
        while times and wall_ns - times[0] > LOOP_NS:
            times.popleft()
        if len(times) == self._full:
            return False
        times.append(wall_ns)
        return True
