"""One guest: a virtual machine and all that belongs to it.

    line ──▶ Recorder (ring, index, time line) ◀── events of machine, relay and operators
    Machine (monitor) ──▶ events        Relay (debug stub) ──▶ events

Every part but the recorder is optional: what is absent is a capability that the guest does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from gdbstubs.dialects import KGDB, PLAIN, QEMU
from kbridge import kdb
from kbridge.breakin import BreakIn
from kbridge.breaks import Breaks
from kbridge.config import BreakInWay, GuestConfig, OnLeave, StubDialect, StubKind
from kbridge.console.pen import Pen
from kbridge.console.recorder import Recorder
from kbridge.console.timeline import OWN_KEYS
from kbridge.crash.desk import Desk
from kbridge.crash.watch import CrashWatch
from kbridge.debuginfo.debuginfod import Debuginfod
from kbridge.debuginfo.finders import Finder
from kbridge.debuginfo.objects import DebuggerObjects
from kbridge.errors import GuestError, KbridgeError
from kbridge.hypervisors.interface import Machine, MachineEvent
from kbridge.hypervisors.qemu import QemuMachine
from kbridge.relay import Reach, Relay, stub_path
from kbridge.trace.record import PacketRecord
from kbridge.transports.endpoints import Endpoint, Unix
from kbridge.transports.lines import ConsoleLine
from kbridge.transports.opening import open_line
from kbridge.transports.poller import LinePoller
from kbridge.transports.shared_line import SharedLine
from kbridge.transports.streams import SocketAccess

if TYPE_CHECKING:
    from kbridge.boot.running import BootRun

_DIALECTS: Final = {StubDialect.QEMU: QEMU, StubDialect.KGDB: KGDB, StubDialect.PLAIN: PLAIN}
POWER_ACTIONS: Final = ("on", "off", "cycle", "reset", "pause", "resume", "nmi")


class Guest:
    """One guest, from its configuration; nothing is opened before ``start``.

    ``runtime`` is the folder of its sockets, ``state`` that of its record, ``access`` who may connect.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        name: str,
        config: GuestConfig,
        poller: LinePoller,
        *,
        runtime: Path,
        state: Path,
        access: SocketAccess,
        debug_dirs: Sequence[Path] = (),
        servers: Debuginfod | None = None,
        desk: Desk | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.runtime = runtime
        self.state_dir = state
        self._debug_dirs = tuple(debug_dirs)
        self._servers = servers
        self.access = access
        self._reactor = reactor
        self._poller = poller
        self._desk = desk
        self.finder = Finder(config.vmlinux, (*config.debug_dirs, *self._debug_dirs), state)
        """Of the files with its kernel's symbols."""
        self.recorder = Recorder(state, config.ring_bytes, timeline_bytes=config.timeline_bytes)
        self.packets: PacketRecord | None = None
        self.pen = Pen()
        self.boot: BootRun | None = None
        """The one that goes on."""
        self.machine: Machine | None = None
        self.line: ConsoleLine | None = None
        self.relay: Relay | None = None
        self.ways_in: BreakIn | None = None
        """How a kernel is made to enter its kgdb; None where the stub stops the guest itself."""
        self._shared: SharedLine | None = None
        """The console's line, where kgdb shares it."""
        self._unsubscribe: Callable[[], None] | None = None
        if config.qmp is not None:
            self.machine = QemuMachine(reactor, config.qmp)
            self._unsubscribe = self.machine.subscribe(self._machine_event)
        self._breaks = Breaks(
            config.console,
            lambda: self.line if self._shared is None else self._shared.for_sysrq,
            self.machine,
        )
        self.relay = self._make_relay(state)
        self.crashes: CrashWatch | None = None
        if desk is not None and config.crash_capture and (self.machine is not None or config.console):
            self.crashes = CrashWatch(
                reactor, self, desk.sweep, desk.library, lambda crash: desk.noticed(self, crash)
            )

    def _make_relay(self, state: Path) -> Relay | None:
        stub: Endpoint | Reach
        match self.config.stub:
            case StubKind.KGDB:
                self._shared = SharedLine(self._reactor, self.recorder)
                stub = self._shared.connect
            case StubKind.AUTO if self.machine is not None:
                stub = Unix(str(stub_path(self.runtime)))
            case StubKind.AUTO | StubKind.NONE:
                return None
            case endpoint:
                stub = endpoint
        # The folder is the recorder's: who does not hold its lock writes no file there.
        folder = state if self.recorder.recording else None
        self.ways_in = self._make_ways_in(folder)
        if self.config.packets_ring_bytes:
            self.packets = PacketRecord(self._reactor, folder, self.config.packets_ring_bytes)
        return Relay(
            self._reactor,
            self.name,
            stub,
            self.machine,
            self._record,
            self._monitor_command,
            journal_path=state / "journal",
            start_stub=self.config.stub is StubKind.AUTO,
            stub_timeout_seconds=self.config.stub_timeout_seconds,
            resume_on_leave=self.config.on_leave is OnLeave.RESUME,
            dialect=_DIALECTS[self.config.dialect],
            break_in=self.ways_in,
            tap=None if self.packets is None else self.packets.tap,
            finder=self.finder,
            servers=self._servers,
            console=self.recorder.ring,
        )

    def _make_ways_in(self, folder: Path | None) -> BreakIn | None:
        if self.config.dialect is not StubDialect.KGDB:
            return None
        return BreakIn(
            self.name,
            self.config.break_in,
            breaks=self._breaks,
            machine=self.machine,
            said=self.recorder.ring,
            memory=None if folder is None else folder / "way-in",
            seek=None if self._shared is None else self._shared.seek,
            turn_pages=None if self._shared is None else self._shared.turn_pages,
        )

    # -- the service ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open line, monitor and sockets.  Raises ``KbridgeError`` when a socket cannot be made."""
        if self.crashes is not None:
            self.crashes.start()
        if self.config.console is not None:
            sink = self.recorder if self._shared is None else self._shared
            line = open_line(self._reactor, self._poller, self.config.console, sink)
            if self._shared is not None:
                self._shared.opened(line)
            self.line = line if self._shared is None else self._shared
        if self.relay is not None:
            self.relay.start(self.runtime / "gdb", self.runtime / "gdb-observe", self.access)
        if self.machine is not None:
            self.machine.start()

    async def stop(self) -> None:
        """Let the guest go and close everything; the guest itself goes on."""
        if self.crashes is not None:
            self.crashes.stop()
        if self.relay is not None:
            await self.relay.stop()
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self.machine is not None:
            await self.machine.stop()
        if self.line is not None:
            await self.line.close()
        if self.packets is not None:
            self.packets.close()
        self.recorder.close()

    # -- what it can do -------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What can be done with this guest, in the words of ``kbridge ls``."""
        able = []
        if self.line is not None:
            able.append("console")
        if self.relay is not None:
            able.append("debug")
        if self.machine is not None:
            able.append("power")
        if self.line is not None and self._breaks.ways:
            able.append("break")
        return tuple(able)

    @property
    def reactor(self) -> Any:
        """The reactor that it runs under."""
        return self._reactor

    @property
    def state(self) -> str:
        """The machine's run state in one word; ``unknown`` without a monitor that answers."""
        return "unknown" if self.machine is None else self.machine.state.run.value

    async def power(self, action: str, by: str, *, force: bool = False) -> None:
        """Carry out one of ``POWER_ACTIONS`` and put it on the time line.

        Raises ``GuestError`` without a monitor, ``MachineError`` when it refuses.
        """
        machine = self._require_machine(f"power {action}")
        self._record("operator.power", {"action": action, "by": by, "force": force})
        match action:
            case "on":
                await machine.power_on()
            case "off":
                await machine.power_off(force=force)
            case "cycle":
                await machine.cycle()
            case "reset":
                await machine.reset()
            case "pause":
                await machine.pause()
            case "resume":
                await machine.resume()
            case "nmi":
                await machine.nmi()
            case _:
                raise GuestError(
                    f"there is no power action {action!r}", todo=f"one of {', '.join(POWER_ACTIONS)}"
                )

    async def break_in(self, by: str, *, sysrq: str | None = None) -> BreakInWay:
        """Send BREAK on the line, then the SysRq letter if one is given; returns how it was sent.

        By the line where it can, else by the monitor.  Raises ``LineError`` or ``MachineError``.
        """
        if self.line is None:
            raise GuestError(f"{self.name} has no console to send BREAK on", todo="configure `console`")
        if sysrq is not None and (len(sysrq) != 1 or not sysrq.isascii() or not sysrq.isalnum()):
            raise GuestError(
                f"{sysrq!r} is no SysRq key", todo="give one letter or digit, such as h for help"
            )
        if self._shared is not None and self._shared.is_held:
            raise GuestError(
                f"BREAK was not sent to {self.name}",
                why="kgdb holds it and reads the line: it would be lost",
                todo="send it when the guest runs again",
            )
        self._record("operator.break", {"by": by, "sysrq": sysrq})
        way = await self._breaks.send_somehow()
        if sysrq is not None:
            self._breaks.press(sysrq.encode("ascii"))
        return way

    async def past_more(self) -> None:
        """Bring kdb to its prompt where it waits at a full screen; raises ``LineError``."""
        if self._shared is not None:
            ring = self.recorder.ring
            start = max(ring.oldest, ring.head - kdb.TAIL_BYTES)
            await kdb.past_more(self._reactor, self._shared, ring.read(start, kdb.TAIL_BYTES) or b"")

    @property
    def at_kdb(self) -> bool:
        """Whether its kernel waits at kdb's prompt on the console."""
        return self._shared is not None and self._shared.at_prompt and not self._shared.is_attended

    async def enter_kdb(self, by: str) -> BreakInWay | None:
        """Bring the kernel to kdb's prompt on the console; returns the way that led in, None where it stood already.

        Raises ``GuestError`` and ``LineError``.
        """
        if self.ways_in is None or self._shared is None:
            apart = self.ways_in is not None
            raise GuestError(
                f"{self.name} cannot be brought to kdb",
                why="its kgdb has a port of its own, and kdb listens to no other"
                if apart
                else "it has no kgdb",
                todo="boot it with kgdboc=ttyS0, its console, and configure `stub`" if apart else "",
            )
        self._record("operator.kdb", {"by": by})
        return await kdb.to_prompt(self._reactor, self.name, self._shared, self.ways_in)

    def _require_machine(self, what: str) -> Machine:
        if self.machine is None:
            raise GuestError(
                f"{self.name} cannot do `{what}`", why="it has no machine monitor", todo="configure `qmp`"
            )
        return self.machine

    # -- the time line --------------------------------------------------------------------------------------

    def _record(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.recorder.record(kind, **fields)
        # A debugger that steps makes thousands of stops: they are on the time line, and no news to an operator.
        log = self._log.debug if kind == "debugger.stop" and "words" not in fields else self._log.info
        log("{guest}: {kind} {fields}", guest=self.name, kind=kind, fields=dict(fields))

    def _machine_event(self, event: MachineEvent) -> None:
        if event.name == "machine.reset" and self._shared is not None:
            self._shared.machine_reset()
        if event.name == "machine.found" and self._desk is not None:
            Deferred.fromCoroutine(self._desk.settle_debt(self)).addErrback(self._not_let_go)
        if event.name == "machine.found" and self.line is not None:
            # The machine was started again: what its line says before it is opened is lost.
            self.line.hurry()
        if (
            event.name in _STEPS_OF_DEBUGGERS
            and not (event.data.get("ours") or event.data.get("cause"))
            and self.relay is not None
            and self.relay.attached
        ):
            # While a debugger holds the guest its stops and resumes come from there, as `debugger.stop`; what
            # somebody else does meanwhile the relay finds out and reports.
            return
        self._record(event.name, monitor_fields(event.data))

    def _not_let_go(self, failure: Failure) -> None:
        failure.trap(KbridgeError)
        self._log.warn("{guest}: not let go: {why}", guest=self.name, why=str(failure.value))

    # -- `monitor` commands inside gdb ----------------------------------------------------------------------

    def _monitor_command(self, session: str, command: str, done: Callable[[str], None]) -> None:
        """Answer a ``monitor`` command of a debugger; ``session`` is its name."""
        match command.split():
            case ["info", "version"]:
                # The kernel's gdb scripts ask this to learn whether they talk to QEMU: any answer will do.
                done(f"kbridge relay, behind it {'QEMU' if self.machine is not None else 'a stub'}\n")
            case ["log"]:
                done(self._console_tail(MONITOR_LOG_LINES))
            case ["log", count] if count.isdecimal():
                done(self._console_tail(int(count[:6])))
            case ["sysrq", key] if len(key) == 1:
                self._monitor_sysrq(session, key, done)
            case ["symbols"]:
                self._describe(lambda objects: objects.describe(), done)
            case ["modules"]:
                self._describe(lambda objects: objects.describe_modules(), done)
            case ["help"]:
                done(_MONITOR_HELP)
            case [first, *_]:
                done(f"kbridge has no monitor command {first!r}: monitor help\n")
            case _:
                done(_MONITOR_HELP)

    def _console_tail(self, count: int) -> str:
        """Return the console's last lines, at most what the last 64 KB hold."""
        ring = self.recorder.ring
        data = ring.read(max(ring.oldest, ring.head - _TAIL_BYTES), _TAIL_BYTES) or b""
        lines = data.decode("latin-1").replace("\r", "").split("\n")
        return "\n".join(lines[-count - 1 :]).rstrip("\n") + "\n"

    def _describe(
        self, ask: Callable[[DebuggerObjects], Coroutine[Any, Any, str]], done: Callable[[str], None]
    ) -> None:
        assert self.relay is not None
        assert self.relay.objects is not None
        Deferred.fromCoroutine(ask(self.relay.objects)).addCallback(done).addErrback(
            lambda failure: self._log.failure("{guest}: a bug", failure, guest=self.name)
        )

    def _monitor_sysrq(self, session: str, key: str, done: Callable[[str], None]) -> None:
        assert self.relay is not None
        if not any(one.name == session and one.controls for one in self.relay.sessions):
            done("only the controller may send SysRq: monitor control take\n")
            return

        def sent(_: BreakInWay) -> None:
            done(f"BREAK and {key} sent; a guest that stands acts on them when it runs\n")

        def failed(failure: Failure) -> None:
            failure.trap(KbridgeError)
            done(f"{failure.value}\n")

        Deferred.fromCoroutine(self.break_in(session, sysrq=key)).addCallbacks(sent, failed).addErrback(
            lambda failure: self._log.failure("{guest}: a bug", failure, guest=self.name)
        )


_STEPS_OF_DEBUGGERS: Final = ("machine.stop", "machine.resume", "machine.state")


def monitor_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a monitor says of an event, under names that are not the time line's own.

    QEMU's RTC_CHANGE has an ``offset``, which is none of the console's.
    """
    taken = OWN_KEYS | {"event"}
    return {f"monitor_{key}" if key in taken else key: value for key, value in data.items()}


MONITOR_LOG_LINES: Final = 20
_TAIL_BYTES: Final = 65536

_MONITOR_HELP: Final = """\
monitor log [N]                the console's last lines
monitor sysrq KEY              send BREAK and a SysRq key on the serial line
monitor symbols                which kernel the guest runs, and where its symbols are from
monitor modules                the loaded modules, with their addresses and files
monitor info version           what is behind this stub
The hypervisor's own monitor is not reachable from here: use `kbridge power` on the relay's host.
"""
