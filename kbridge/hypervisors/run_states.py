"""What QEMU's run states and events mean: one table each, and a follower of the machine's state.

In:         ``query-status`` replies, events, the loss of the monitor.
Out:        the state now; each event under our name, with whether we caused it.
Invariant:  ``state`` agrees with the last reply or event that told of one; an event is ours only if a command
            of ours that causes such an event was waiting for its reply when it came, and nothing else
            explains it.

Source: QEMU's ``qapi/run-state.json`` (7.2).  A word that is not in the table is judged by ``running``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kbridge.hypervisors.interface import MachineEvent, MachineState, RunState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from kbridge.hypervisors.qmp import Event

RUN_STATES: Mapping[str, RunState] = {
    "colo": RunState.BUSY,
    "debug": RunState.DEBUG,
    "finish-migrate": RunState.BUSY,
    "guest-panicked": RunState.PANICKED,
    "inmigrate": RunState.BUSY,
    "internal-error": RunState.FAILED,
    "io-error": RunState.IO_ERROR,
    "paused": RunState.PAUSED,
    "postmigrate": RunState.BUSY,
    "prelaunch": RunState.PAUSED,
    "restore-vm": RunState.BUSY,
    "running": RunState.RUNNING,
    "save-vm": RunState.BUSY,
    "shutdown": RunState.OFF,
    "suspended": RunState.SUSPENDED,
    "watchdog": RunState.PAUSED,
}

EVENT_NAMES: Mapping[str, str] = {
    "STOP": "machine.stop",
    "RESUME": "machine.resume",
    "RESET": "machine.reset",
    "SHUTDOWN": "machine.shutdown",
    "POWERDOWN": "machine.powerdown",
    "GUEST_PANICKED": "machine.panic",
    "GUEST_CRASHLOADED": "machine.crashloaded",
    "WATCHDOG": "machine.watchdog",
    "BLOCK_IO_ERROR": "machine.io-error",
    "SUSPEND": "machine.suspend",
    "WAKEUP": "machine.wakeup",
}

# The command of ours that, while it waits for its reply, makes such an event ours.  QEMU sends these events
# while it carries out the command, hence before the reply.  RESET is not here: the main loop does it later.
_CAUSED_BY: Mapping[str, frozenset[str]] = {
    "STOP": frozenset({"stop", "quit"}),
    "RESUME": frozenset({"cont"}),
    "SHUTDOWN": frozenset({"quit"}),
    "POWERDOWN": frozenset({"system_powerdown"}),
    "WAKEUP": frozenset({"system_wakeup"}),
}

# What the machine is about to stop for: QEMU sends the reason first, then STOP.
_STOP_STATES: Mapping[str, MachineState] = {
    "panic": MachineState(RunState.PANICKED, "guest-panicked"),
    "io-error": MachineState(RunState.IO_ERROR, "io-error"),
    "watchdog": MachineState(RunState.PAUSED, "watchdog"),
    "shutdown": MachineState(RunState.OFF, "shutdown"),
    "suspend": MachineState(RunState.SUSPENDED, "suspended"),
}


def read_status(reply: object) -> MachineState:
    """Read a ``query-status`` reply: ``{"status": "prelaunch", "running": false}``."""
    if not isinstance(reply, dict) or not isinstance(reply.get("status"), str):
        return MachineState(RunState.UNKNOWN)
    word = reply["status"]
    fallback = RunState.RUNNING if reply.get("running") is True else RunState.BUSY
    return MachineState(RUN_STATES.get(word, fallback), word)


class RunFollower:
    """Follows one machine's state through what its monitor says."""

    def __init__(self) -> None:
        self._state = MachineState(RunState.UNKNOWN)
        self._cause = ""
        self._resets_due = 0
        self._stopped_by_us = False

    @property
    def state(self) -> MachineState:
        """The last state known."""
        return self._state

    @property
    def stopped_by_us(self) -> bool:
        """Whether the machine rests, and the STOP that made it rest was ours."""
        return self._stopped_by_us

    def expect_reset(self) -> None:
        """Note that a ``system_reset`` of ours is on its way: the next RESET that QMP asked for is ours."""
        self._resets_due += 1

    def reset_failed(self) -> None:
        """Note that a reset that was expected will not come."""
        self._resets_due = max(0, self._resets_due - 1)

    def told(self, reply: object) -> bool:
        """Take a ``query-status`` reply; returns whether it was news."""
        state = read_status(reply)
        changed = state != self._state
        self._state = state
        if state.run.executes:
            self._stopped_by_us = False
        return changed

    def lost(self) -> None:
        """Forget the state: the monitor is gone, and whoever comes back may be another machine."""
        self._state = MachineState(RunState.UNKNOWN)
        self._cause = ""
        self._resets_due = 0
        self._stopped_by_us = False

    def happened(self, event: Event, in_flight: Collection[str]) -> MachineEvent:
        """Take an event; ``in_flight`` are the names of our commands that have no reply yet."""
        data: dict[str, Any] = {**event.data, "event": event.name}
        if event.time:
            data["time"] = event.time
        ours = not _CAUSED_BY.get(event.name, frozenset()).isdisjoint(in_flight)
        match event.name:
            case "STOP":
                data["cause"] = self._cause
                data["ours"] = ours = ours and not self._cause
                self._stop(ours=ours)
            case "RESUME" | "WAKEUP":
                data["ours"] = ours
                self._cause = ""
                self._stopped_by_us = False
                self._state = MachineState(RunState.RUNNING, "running")
            case "RESET":
                due = event.data.get("reason") == "host-qmp-system-reset" and self._resets_due > 0
                data["ours"] = due
                self._resets_due -= due
            case "SHUTDOWN" | "POWERDOWN":
                data["ours"] = ours
            case _:
                pass
        self._cause = self._coming(event) or self._cause
        if event.name == "SUSPEND":
            # The guest went to sleep; whether QEMU stops the processors too depends on its version.
            self._state = _STOP_STATES["suspend"]
        return MachineEvent(EVENT_NAMES.get(event.name, "machine.event"), data)

    def _stop(self, *, ours: bool) -> None:
        paused = MachineState(RunState.PAUSED, "paused" if ours else "")
        self._state = _STOP_STATES.get(self._cause, paused)
        self._stopped_by_us = ours
        self._cause = ""

    @staticmethod
    def _coming(event: Event) -> str:
        """Name the cause of the STOP that must follow this event; empty when none does."""
        match event.name, event.data.get("action"):
            case "SHUTDOWN", _:
                return "shutdown"
            case "SUSPEND", _:
                return "suspend"
            case "GUEST_PANICKED", "pause":
                return "panic"
            case "BLOCK_IO_ERROR", "stop":
                return "io-error"
            case "WATCHDOG", "pause":
                return "watchdog"
            case _:
                return ""
