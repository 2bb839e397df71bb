"""A QEMU machine behind its QMP monitor: ``Machine`` for QEMU.

In:         operators' wishes; the monitor's replies and events; the loss and return of the monitor.
Out:        QMP commands; ``MachineEvent`` to the listeners, after ``state`` was updated.
Invariant:  ``state`` is UNKNOWN whenever the monitor cannot be reached; ``machine.lost`` and
            ``machine.found`` alternate, found first; events reach every listener in the monitor's order.

A STOP does not say why, and asking for each would cost a round trip at every breakpoint and step that a
debugger makes.  So STOP is delivered at once, and the monitor is asked only if the machine still rests
``SETTLE_SECONDS`` later; what it then says that is news becomes ``machine.state``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

from twisted.internet import defer
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.logger import Logger

from kbridge.errors import MachineError
from kbridge.hypervisors import examine, gdbserver, memory_map
from kbridge.hypervisors.chardevs import find_chardev, read_console
from kbridge.hypervisors.dumping import Dump
from kbridge.hypervisors.interface import MOST_READ_BYTES, MachineEvent, MachineState, RunState
from kbridge.hypervisors.memory_file import MemoryFile
from kbridge.hypervisors.qmp_client import QmpClient
from kbridge.hypervisors.run_states import RunFollower
from kbridge.transports.endpoints import Tcp, Unix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint

    from kbridge.hypervisors.qmp import Event, Greeting

COMMAND_SECONDS = 10.0
"""Deadline of a command; ``stop`` waits for the guest's disk writes."""
GREETING_SECONDS = 3.0
CONNECT_SECONDS = 5.0
SETTLE_SECONDS = 0.03
MUCH_BYTES = 1024
"""From here on a file in memory is faster than the human monitor's text."""


class QemuMachine:
    """A machine run by QEMU, reached through a QMP socket.

    Nothing happens before ``start``.  One object serves one configured monitor for the relay's whole life:
    the QEMU process behind it may end and be started again.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,  # zope has no way to say "time and unix and tcp"
        endpoint: Unix | Tcp,
        *,
        command_seconds: float = COMMAND_SECONDS,
        greeting_seconds: float = GREETING_SECONDS,
    ) -> None:
        self._reactor: IReactorTime = reactor
        self._where = str(endpoint)
        self._command_seconds = command_seconds
        self._follower = RunFollower()
        self._listeners: list[_Subscription] = []
        self._settling: IDelayedCall | None = None
        self._stub_turn = DeferredLock()
        self._is_dumping = False
        self._restarts: list[Deferred[str]] = []
        self._early: list[Event] | None = []
        self._client = QmpClient(
            self._reactor,
            _client_endpoint(reactor, endpoint),
            self._where,
            prepare=self._prepare,
            on_found=self._found,
            on_event=self._happened,
            on_lost=self._lost,
            command_seconds=command_seconds,
            greeting_seconds=greeting_seconds,
        )
        self._memory_file = MemoryFile(self._client)

    @property
    def state(self) -> MachineState:
        """The last state known; ``UNKNOWN`` while the monitor cannot be reached."""
        return self._follower.state

    @property
    def connected(self) -> bool:
        """Whether the monitor is connected and has told the machine's state."""
        return self._client.ready

    @property
    def problem(self) -> str:
        """Why the monitor cannot be reached, for the operator; empty while it can."""
        return self._client.problem

    @property
    def stopped_by_us(self) -> bool:
        """Whether the machine rests because of a command of this object."""
        return self._follower.stopped_by_us

    def subscribe(self, listener: Callable[[MachineEvent], None]) -> Callable[[], None]:
        """Call ``listener`` for each event, after ``state`` was updated; returns what ends it.

        What a listener raises is logged as a bug and keeps the event from nobody else.
        """
        # Wrapped, so that one function subscribed twice is two subscriptions.
        entry = _Subscription(listener)
        self._listeners.append(entry)

        def end() -> None:
            if entry in self._listeners:
                self._listeners.remove(entry)

        return end

    def start(self) -> None:
        """Connect, and connect again whenever the connection is lost."""
        self._client.start()

    async def stop(self) -> None:
        """Let go of the monitor; the machine itself is not touched."""
        await self._memory_file.close()
        await self._client.stop()

    async def query(self) -> MachineState:
        """Ask the monitor for the state now; a change is told to the listeners as ``machine.state``."""
        self._told(await self._client.execute("query-status"))
        return self.state

    async def pause(self) -> None:
        """Stop all processors; nothing happens to a machine that rests already."""
        await self._client.execute("stop")
        await self.query()

    async def resume(self) -> None:
        """Let all processors run, whoever stopped them.

        ``MachineError`` when the machine is off, asleep, or stopped again at once by an error of its own.
        """
        match (await self.query()).run:
            case RunState.OFF | RunState.FAILED:
                raise self._cannot("be resumed", "power it on: that resets it")
            case RunState.SUSPENDED:
                raise self._cannot("be resumed", "power it on: that wakes it up")
            case _:
                await self._client.execute("cont")
                await self.query()

    async def reset(self) -> None:
        """Press the reset button, and wait until it was; a machine that rests goes on resting.

        ``MachineError`` when QEMU was started with ``-no-reboot``: the machine shut down instead.
        """
        coming: Deferred[str] = Deferred()
        self._restarts.append(coming)
        self._follower.expect_reset()
        try:
            await self._client.execute("system_reset")
            came = await coming.addTimeout(self._command_seconds, self._reactor)
        except defer.TimeoutError:
            self._follower.reset_failed()
            raise MachineError(
                f"the machine was not reset within {self._command_seconds:g} s",
                why="QEMU took the command and did nothing",
                todo="look at the QEMU process",
            ) from None
        except MachineError:
            self._follower.reset_failed()
            raise
        finally:
            if coming in self._restarts:
                self._restarts.remove(coming)
        if came != "RESET":
            self._follower.reset_failed()
            raise MachineError(
                "the machine shut down instead of being reset",
                why="QEMU was started with -no-reboot" if came == "SHUTDOWN" else "the monitor went away",
                todo="start the machine again, without -no-reboot",
            )
        await self.query()

    async def power_off(self, *, force: bool = False) -> None:
        """Press the power button (ACPI: the guest may take its time, or ignore it); ``force`` ends QEMU.

        With ``force`` it returns once the monitor is gone, and the QEMU process with it.
        """
        if force:
            await self._quit()
            return
        if not (await self.query()).run.executes:
            raise self._cannot(
                "react to its power button", "resume it first, or end the QEMU process with force"
            )
        await self._client.execute("system_powerdown")

    async def power_on(self) -> None:
        """Start a machine that is off but present, or waits; wake one that sleeps; one that runs runs on."""
        state = await self.query()
        match state.run:
            case RunState.RUNNING:
                return
            case RunState.OFF | RunState.FAILED:
                await self.cycle()
            case RunState.PAUSED:
                await self.resume()
            case RunState.SUSPENDED:
                await self._client.execute("system_wakeup")
                await self.query()
            case RunState.PANICKED | RunState.IO_ERROR:
                raise self._cannot("be powered on, for it is on", "see why, then resume, reset or cycle it")
            case RunState.DEBUG:
                raise self._cannot(
                    "be powered on, for a debugger holds it", "continue or detach in the debugger"
                )
            case RunState.BUSY | RunState.UNKNOWN:
                raise self._cannot("be powered on now", "wait until QEMU is done with it")
            case _:
                assert_never(state.run)

    async def cycle(self) -> None:
        """Reset all devices and run; memory keeps its contents, as it does over a short loss of power.

        QEMU cannot take power away and stay: this is its reset, then ``cont`` if the machine rested.
        """
        await self.reset()
        if not self.state.run.executes:
            await self._client.execute("cont")
            await self.query()

    async def nmi(self) -> None:
        """Inject a non-maskable interrupt, on all processors where the machine has several."""
        await self._client.execute("inject-nmi")

    async def send_break(self, console: str) -> None:
        """Send BREAK on the serial line behind ``console``, an endpoint as configured (``unix:/x``)."""
        endpoint = read_console(console)
        label = find_chardev(await self._client.execute("query-chardev"), endpoint)
        await self._client.execute("chardev-send-break", {"id": label})

    async def read_memory(self, address: int, length: int) -> bytes:
        """Read virtual memory as the first processor sees it now; the guest runs on.

        At most ``MOST_READ_BYTES``, else ``ValueError``.  Fewer bytes where the rest is not mapped, none where nothing
        is.  A read across pages is of two moments.
        """
        if not (0 <= length <= MOST_READ_BYTES and 0 <= address < examine.END_OF_MEMORY):
            raise ValueError(f"{length} bytes at {address:#x} cannot be read at once")
        length = min(length, examine.END_OF_MEMORY - address)
        data = b""
        if length >= MUCH_BYTES:
            data = await self._memory_file.read(address, length)
            if len(data) == length:
                return data
        for start, size in examine.pieces(address + len(data), length - len(data)):
            piece = examine.parse(await self.human_monitor(examine.command(start, size)), size)
            data += piece
            if len(piece) < size:
                break
        return data

    async def dump_memory(self, descriptor: int, progress: Callable[[int, int], None]) -> None:
        """Write all physical memory as an ELF core file to an open file, a pipe for one; returns when it is written.

        A guest that runs is stopped meanwhile.  ``progress`` is told how many bytes of how many are written.  Closing
        the other end of a pipe ends it early, with ``MachineError``.
        """
        if self._is_dumping:
            raise MachineError("the memory is not written", why="an image of it is being taken already")
        self._is_dumping = True
        try:
            await Dump(self._reactor, self._client, self.subscribe, progress).write_to(descriptor)
        finally:
            self._is_dumping = False

    async def ram(self) -> tuple[tuple[int, int], ...]:
        """Return which physical addresses are memory, each range up to the address after its last."""
        return memory_map.ram(await self.human_monitor(memory_map.COMMAND))

    async def start_stub(self, path: str) -> None:
        """Start the gdbstub on a unix socket that QEMU creates at ``path``, replacing any other.

        After a ``MachineError`` there is no stub.  Starting does not pause the guest; a connection does.
        """
        command = gdbserver.start_command(path)
        await self._stub_turn.acquire()
        try:
            gdbserver.check_stopped(await self.human_monitor(gdbserver.STOP_COMMAND))
            gdbserver.check_started(await self.human_monitor(command), path)
            try:
                gdbserver.check_socket(path)
            except MachineError:
                gdbserver.check_stopped(await self.human_monitor(gdbserver.STOP_COMMAND))
                raise
        finally:
            self._stub_turn.release()

    async def stop_stub(self) -> None:
        """Close the gdbstub, whoever is connected to it; nothing is resumed."""
        await self._stub_turn.acquire()
        try:
            gdbserver.check_stopped(await self.human_monitor(gdbserver.STOP_COMMAND))
        finally:
            self._stub_turn.release()

    async def human_monitor(self, command: str) -> str:
        """Give a line to the human monitor; its answer, which also holds its errors, with LF line ends.

        For kbridge's own use: the human monitor can do anything that QEMU's user can do on the host.
        """
        answer = await self._client.execute("human-monitor-command", {"command-line": command})
        return str(answer).replace("\r\n", "\n")

    async def _quit(self) -> None:
        was_there = self._client.ready
        try:
            await self._client.execute("quit")
        except MachineError:
            if self._client.ready or not was_there:
                raise
            # The process was faster than its reply: what was wanted has happened.
        gone: Deferred[None] = Deferred()
        end = self.subscribe(
            lambda event: gone.callback(None) if event.name == "machine.lost" and not gone.called else None
        )
        try:
            if self._client.ready:
                await gone.addTimeout(self._command_seconds, self._reactor)
        except defer.TimeoutError:
            raise MachineError(
                f"QEMU did not end within {self._command_seconds:g} s",
                why="it took the command and did nothing",
                todo="end its process",
            ) from None
        finally:
            end()

    def _cannot(self, what: str, todo: str) -> MachineError:
        word = self.state.detail or self.state.run.value
        return MachineError(f"the machine cannot {what}", why=f"QEMU says it is in state {word}", todo=todo)

    async def _prepare(self) -> None:
        # Events that come before the state is known wait: the deadline of the query bounds how many.
        self._early = []
        self._told(await self._client.execute("query-status"), silently=True)

    def _found(self, greeting: Greeting) -> None:
        early, self._early = self._early, None
        self._emit(MachineEvent("machine.found", {**self._state_data(), "version": greeting.version}))
        for event in early or ():
            self._happened(event)

    def _lost(self, why: str) -> None:
        self._cancel_settling()
        self._follower.lost()
        self._memory_file.forget()
        self._early = []
        for coming in tuple(self._restarts):
            self._restarts.remove(coming)
            coming.callback("")
        self._emit(MachineEvent("machine.lost", {"why": why}))

    def _happened(self, event: Event) -> None:
        if self._early is not None:
            self._early.append(event)
            return
        ours = self._follower.happened(event, self._client.in_flight)
        self._emit(ours)
        if event.name in {"RESET", "SHUTDOWN"}:
            for coming in tuple(self._restarts):
                self._restarts.remove(coming)
                coming.callback(event.name)
        self._cancel_settling()
        if not self.state.run.executes:
            self._settling = self._reactor.callLater(SETTLE_SECONDS, self._settle)

    def _settle(self) -> None:
        self._settling = None
        Deferred.fromCoroutine(self._ask_again()).addErrback(
            lambda failure: self._log.failure("Asking for the state failed", failure)
        )

    async def _ask_again(self) -> None:
        try:
            await self.query()
        except MachineError as error:
            # The state stays what the event told; the loss of the monitor, if it is one, is told on its own.
            self._log.info("{where} rests, it is not known why: {error}", where=self._where, error=str(error))

    def _cancel_settling(self) -> None:
        settling, self._settling = self._settling, None
        if settling is not None and settling.active():
            settling.cancel()

    def _told(self, reply: object, *, silently: bool = False) -> None:
        if self._follower.told(reply) and not silently:
            self._emit(MachineEvent("machine.state", self._state_data()))

    def _state_data(self) -> Mapping[str, Any]:
        return {"run": self.state.run.value, "detail": self.state.detail}

    def _emit(self, event: MachineEvent) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:  # noqa: BLE001  # a listener's bug is its own: the others must still hear
                self._log.failure("A listener failed at {event}", event=event.name)


class _Subscription:
    """One listener's place in the list."""

    __slots__ = ("_listener",)

    def __init__(self, listener: Callable[[MachineEvent], None]) -> None:
        self._listener = listener

    def __call__(self, event: MachineEvent) -> None:
        self._listener(event)


def _client_endpoint(reactor: Any, where: Unix | Tcp) -> IStreamClientEndpoint:
    match where:
        case Unix(path):
            return UNIXClientEndpoint(reactor, path, timeout=CONNECT_SECONDS)
        case Tcp(host, port):
            return HostnameEndpoint(reactor, host, port, timeout=CONNECT_SECONDS)
        case _:
            assert_never(where)
