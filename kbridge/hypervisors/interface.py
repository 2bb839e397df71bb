"""What kbridge asks of a machine monitor, whichever hypervisor is behind it.

``Machine`` is the port; ``qemu.py`` implements it over QMP.  Times are monotonic seconds of the reactor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MOST_READ_BYTES: Final = 1 << 20
"""Of memory, read at once while the guest runs: its machine serves nobody else meanwhile."""


class RunState(Enum):
    """What the machine is doing, in the few words that the rest of kbridge acts on."""

    UNKNOWN = "unknown"
    """The monitor has not answered yet, or cannot be reached."""
    RUNNING = "running"
    PAUSED = "paused"
    """Stopped by an operator, a debugger or before the first instruction."""
    DEBUG = "debug"
    """Stopped at a breakpoint or after a single step (QEMU's ``debug``)."""
    PANICKED = "panicked"
    """The guest reported a panic (pvpanic) and its policy was to pause."""
    IO_ERROR = "io-error"
    OFF = "off"
    """Shut down, the process still there (QEMU's ``shutdown``)."""
    SUSPENDED = "suspended"
    """The guest put itself to sleep (ACPI S3); a wake-up, not a resume, ends that."""
    BUSY = "busy"
    """Migrating, saving or restoring: neither running nor to be touched."""
    FAILED = "failed"
    """An internal error of the hypervisor."""

    @property
    def executes(self) -> bool:
        """Whether the guest's processors run."""
        return self is RunState.RUNNING


@dataclass(frozen=True, slots=True)
class MachineState:
    """The run state with the hypervisor's own word for it."""

    run: RunState
    detail: str = ""
    """The hypervisor's own word, such as ``guest-panicked``."""


@dataclass(frozen=True, slots=True)
class MachineEvent:
    """Something that the machine monitor reported by itself, or that became of the monitor.

    ``name`` is one of ours:

    - ``machine.stop``, ``machine.resume``: the processors stopped or run; ``data["ours"]`` tells whether a
      command of this ``Machine`` did it (``False``: another client, the stub, or the machine itself); a
      stop's ``data["cause"]`` is ``panic``, ``io-error``, ``watchdog``, ``shutdown``, ``suspend``, or empty
    - ``machine.reset``, ``machine.shutdown``, ``machine.powerdown`` (the button was pressed), with ``ours``
      too
    - ``machine.panic``, ``machine.crashloaded``, ``machine.watchdog``, ``machine.io-error``
    - ``machine.suspend``, ``machine.wakeup``
    - ``machine.state``: asked after a stop, the monitor named another state than the event let expect
      (``data["run"]``, ``data["detail"]``); a debugger's stop is told apart from an operator's this way
    - ``machine.lost`` (``data["why"]``), ``machine.found`` (``run``, ``detail``, ``version``): the monitor
      itself
    - ``machine.event``: all others

    ``data`` is what the monitor told, with the monitor's own name of the event in ``event`` and its
    wall-clock seconds since 1970 in ``time`` (left out where unknown).
    """

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Machine(Protocol):
    """One virtual machine, seen through its monitor.

    Every coroutine raises ``MachineError`` when the monitor cannot be reached, refuses, or does not answer
    within its deadline; the machine is then as it was, or unknown where the text says so.
    """

    @property
    def state(self) -> MachineState:
        """The last state known; ``UNKNOWN`` while the monitor cannot be reached."""

    @property
    def connected(self) -> bool:
        """Whether the monitor answers."""

    @property
    def problem(self) -> str:
        """Why the monitor cannot be reached, in words for the operator; empty while it can."""

    @property
    def stopped_by_us(self) -> bool:
        """Whether the machine rests because of a command of this object; else nobody here may resume it."""

    def subscribe(self, listener: Callable[[MachineEvent], None]) -> Callable[[], None]:
        """Call ``listener`` for each event, after ``state`` was updated; returns what ends it."""

    def start(self) -> None:
        """Connect, and connect again whenever the connection is lost."""

    async def stop(self) -> None:
        """Let go of the monitor; the machine itself is not touched."""

    async def query(self) -> MachineState:
        """Ask the monitor for the state now."""

    async def pause(self) -> None:
        """Stop all processors."""

    async def resume(self) -> None:
        """Let all processors run."""

    async def reset(self) -> None:
        """Press the reset button."""

    async def power_off(self, *, force: bool = False) -> None:
        """Ask the guest to shut down (ACPI), or with ``force`` end the machine at once."""

    async def power_on(self) -> None:
        """Start a machine that is off but present, or waits before its first instruction."""

    async def cycle(self) -> None:
        """Reset as if power was taken away and given back; the machine runs afterwards."""

    async def nmi(self) -> None:
        """Inject a non-maskable interrupt."""

    async def send_break(self, console: str) -> None:
        """Send BREAK on the serial line behind ``console``, an endpoint as configured (``unix:/x``)."""

    async def read_memory(self, address: int, length: int) -> bytes:
        """Read at most ``MOST_READ_BYTES`` of virtual memory, as the first processor sees it; the guest runs on.

        Fewer bytes come where the rest is not mapped, none where nothing is.
        """

    async def dump_memory(self, descriptor: int, progress: Callable[[int, int], None]) -> None:
        """Write all physical memory as an ELF core file to an open file; returns when it is written.

        A guest that runs is stopped meanwhile.  ``progress`` is told how many bytes of how many are written.  Closing
        the other end of a pipe ends it early, with ``MachineError``.
        """

    async def ram(self) -> tuple[tuple[int, int], ...]:
        """Return which physical addresses are memory, each range up to the address after its last."""

    async def start_stub(self, path: str) -> None:
        """Start the gdbstub on a unix socket that the hypervisor creates at ``path``, replacing any other.

        Starting does not pause the guest; the first connection does.
        """

    async def stop_stub(self) -> None:
        """Close the gdbstub; nothing is resumed."""
