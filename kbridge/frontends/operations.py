"""What each request of the API does: a ``Call`` in, a model, a reader of the record or a session out."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from kbridge.boot.running import BootRun, Question
from kbridge.boot.wishes import Wishes
from kbridge.console.log import History
from kbridge.crash import store as crash_store
from kbridge.crash.facts import How, Noticed
from kbridge.expect import script
from kbridge.expect.runner import ExpectRun
from kbridge.frontends import models
from kbridge.frontends.console_session import ConsoleSession
from kbridge.frontends.crash_events import CrashEvents
from kbridge.frontends.log_session import LogSession
from kbridge.frontends.log_text import LogReader
from kbridge.frontends.problems import Kind, ProblemError
from kbridge.frontends.trace_stream import TracePieces, TraceSession
from kbridge.hypervisors.qemu import QemuMachine
from kbridge.memory.sources import MonitorMemory
from kbridge.relay import debug_links
from kbridge.trace.reader import TraceReader
from kbridge.version import VERSION
from symbols import kaslr
from symbols.errors import SlideUnknown

if TYPE_CHECKING:
    from pydantic import BaseModel

    from kbridge.daemon import Daemon
    from kbridge.frontends.sessions import SocketSession
    from kbridge.guest import Guest
    from kbridge.trace.record import PacketRecord

_Model = TypeVar("_Model")


@dataclass(frozen=True, slots=True)
class Call:
    """One request that has passed the table: its parameters are valid, its guest may still be unknown."""

    daemon: Daemon
    by: str
    guest_name: str | None
    query: BaseModel | None
    body: BaseModel | None
    crash_name: str | None = None

    @property
    def guest(self) -> Guest:
        """The guest that the path names; raises ``ProblemError``."""
        assert self.guest_name is not None
        guest = self.daemon.guests.get(self.guest_name)
        if guest is None:
            raise ProblemError(
                Kind.UNKNOWN_GUEST,
                f"there is no guest {self.guest_name!r}",
                hint="`kbridge ls` shows the guests",
            )
        return guest

    def asked(self, model: type[_Model]) -> _Model:
        """Return the query, which the table says is a ``model``."""
        assert isinstance(self.query, model)
        return self.query

    def given(self, model: type[_Model]) -> _Model:
        """Return the body, which the table says is a ``model``."""
        assert isinstance(self.body, model)
        return self.body


async def version(call: Call) -> models.Version:
    """Tell which kbridge this is."""
    relay = call.daemon.config.relay
    return models.Version(
        version=VERSION,
        pid=os.getpid(),
        started=datetime.fromtimestamp(call.daemon.started_at, UTC),
        runtime_dir=str(relay.runtime_dir),
        state_dir=str(relay.state_dir),
    )


async def guests(call: Call) -> models.Guests:
    """List all guests."""
    found = sorted(call.daemon.guests.values(), key=lambda guest: guest.name)
    return models.Guests(guests=[status(call.daemon, guest) for guest in found])


async def guest(call: Call) -> models.GuestStatus:
    """Show one guest."""
    return status(call.daemon, call.guest)


async def power(call: Call) -> models.Done:
    """Act on the machine."""
    asked, guest = call.given(models.Power), call.guest
    offset = guest.recorder.ring.head
    await guest.power(asked.action, call.by, force=asked.force)
    return models.Done(offset=offset)


async def break_in(call: Call) -> models.Broken:
    """Send BREAK, and a SysRq key after it, or break in for kdb, with the pen in hand: nobody's keys come between."""
    asked, guest = call.given(models.Break), call.guest
    if asked.kdb and asked.sysrq is not None:
        raise ProblemError(Kind.BAD_REQUEST, "kdb needs no SysRq key", hint="leave out sysrq or kdb")
    offset = guest.recorder.ring.head
    grip = guest.pen.take(f"{call.by} (break)", force=asked.force)
    try:
        way = await (guest.enter_kdb(call.by) if asked.kdb else guest.break_in(call.by, sysrq=asked.sysrq))
    finally:
        grip.release()
    return models.Broken(offset=offset, way=None if way is None else way.value)


async def kernel(call: Call) -> models.Kernel:
    """Read what the guest's memory shows of its kernel, through the monitor, while it runs."""
    guest = call.guest
    machine = guest.machine
    if not isinstance(machine, QemuMachine):
        raise ProblemError(
            Kind.NOT_CAPABLE,
            f"the memory of {guest.name} cannot be read: it has no machine monitor",
            hint="configure `qmp`",
        )
    try:
        handler = await MonitorMemory(machine).run(kaslr.divide_error_handler())
    except SlideUnknown as error:
        raise ProblemError(Kind.REFUSED, str(error), hint="try again when the kernel has booted") from error
    return models.Kernel(divide_error=hex(handler))


async def crashes(call: Call) -> models.Crashes:
    """List the crashes that are kept."""
    asked = call.asked(models.CrashesQuery)
    listed = call.daemon.crashes.store.listed(asked.guest)
    return models.Crashes(crashes=[models.Crash.model_validate(one) for one in listed])


async def crash(call: Call) -> models.CrashReport:
    """Show one crash."""
    assert call.crash_name is not None
    return await _crash(call, call.crash_name)


async def _crash(call: Call, name: str) -> models.CrashReport:
    desk = call.daemon.crashes
    path = desk.store.find(name)
    found = None if path is None else await desk.in_thread(partial(crash_store.read_report, path))
    if path is None or found is None:
        raise ProblemError(
            Kind.UNKNOWN_CRASH, f"no crash {name!r} is kept", hint="`kbridge crash ls` shows those that are"
        )
    markdown, document = found
    return models.CrashReport(id=path.name, path=str(path), markdown=markdown, report=document)


async def capture(call: Call) -> models.CrashReport:
    """Take the evidence of a guest now."""
    guest = call.guest
    title = call.given(models.CaptureWish).title or f"captured by hand ({call.by})"
    head = guest.recorder.ring.head
    words = f"{call.by} asked for its evidence"
    noticed = Noticed(How.HAND, "by-hand", title, words, time.time_ns(), fatal=False, begin=head, end=head)
    return await _crash(call, await call.daemon.crashes.by_hand(guest, noticed))


def crash_events(call: Call) -> CrashEvents:
    """Follow what happens to crashes."""
    asked = call.asked(models.CrashEventsQuery)
    return CrashEvents(call.daemon.crashes, asked.guest, follow=asked.follow)


async def reload(call: Call) -> models.Reloaded:
    """Read the configuration again and apply what differs."""
    changes = await call.daemon.reload()
    return models.Reloaded(
        appeared=list(changes.appeared), gone=list(changes.gone), changed=list(changes.changed)
    )


def log(call: Call) -> LogReader:
    """Send a guest's record."""
    asked, guest = call.asked(models.LogQuery), call.guest
    if asked.follow and asked.format == "cast":
        raise ProblemError(
            Kind.BAD_REQUEST, "a recording cannot be followed", hint="leave out follow or cast"
        )
    return LogReader(
        History.of(guest.recorder),
        asked.format,
        since_ns=_ns(asked.since),
        lines=asked.lines,
        follow=asked.follow,
        title=guest.name,
        alive=lambda: call.daemon.guests.get(guest.name) is guest,
        watch=guest.recorder.watch,
    )


def follow_log(call: Call) -> SocketSession:
    """Follow a guest's record."""
    asked, guest = call.asked(models.FollowQuery), call.guest
    from_now = asked.since is None and asked.lines is None
    return LogSession(
        guest,
        since_ns=_ns(asked.since),
        lines=0 if from_now else asked.lines,
        alive=lambda: call.daemon.guests.get(guest.name) is guest,
    )


def console(call: Call) -> SocketSession:
    """Join a guest's console."""
    asked, guest = call.asked(models.ConsoleQuery), call.guest
    if guest.line is None:
        raise ProblemError(
            Kind.NOT_CAPABLE, f"{guest.name} has no console", hint="configure `console` for it"
        )
    return ConsoleSession(
        guest,
        call.by,
        read_only=asked.read_only,
        history_bytes=asked.history,
        alive=lambda: call.daemon.guests.get(guest.name) is guest,
    )


def expect(call: Call) -> ExpectRun:
    """Run a script on a guest's console."""
    asked, guest = call.given(models.Expect), call.guest
    run = ExpectRun(
        guest,
        script.read(asked.script, asked.set, asked.secrets),
        by=call.by,
        name=asked.name,
        alive=lambda: call.daemon.guests.get(guest.name) is guest,
    )
    run.start(force=asked.force)
    return run


def boot(call: Call) -> BootRun:
    """Start a guest anew and have its boot end where it is wished."""
    asked, guest = call.given(models.Boot), call.guest
    run = BootRun(
        guest,
        Wishes(
            single_user=asked.single_user,
            emergency=asked.emergency,
            init=asked.init,
            append=asked.append,
            break_at=asked.break_at,
            entry=asked.entry,
            stop_at=asked.stop_at,
            console=asked.console,
        ),
        by=call.by,
        alive=lambda: call.daemon.guests.get(guest.name) is guest,
        secrets=asked.secrets,
        user=asked.loader_user,
        may_ask=asked.ask,
        reset=asked.reset,
        patience=asked.patience,
        way=asked.way,
    )
    run.start(force=asked.force)
    return run


async def boot_secret(call: Call) -> models.Done:
    """Give a boot the password that it asks for."""
    asked, guest = call.given(models.BootSecret), call.guest
    if guest.boot is None:
        raise ProblemError(
            Kind.REFUSED, f"no boot of {guest.name} goes on", hint="what it asks is asked by a boot alone"
        )
    offset = guest.recorder.ring.head
    guest.boot.answer(Question(asked.run, asked.asks), asked.secret)
    return models.Done(offset=offset)


def packets(call: Call) -> TracePieces:
    """Send the record of a guest's packets."""
    asked, guest = call.asked(models.TraceQuery), call.guest
    from_now = asked.follow and asked.since is None and asked.last is None
    record = _packets(guest)
    return TracePieces(
        record,
        TraceReader(
            record.ring,
            session=asked.session,
            since_ns=_ns(asked.since),
            last=0 if from_now else asked.last,
            raw=asked.raw,
            follow=asked.follow,
        ),
        asked.format,
        alive=lambda: call.daemon.guests.get(guest.name) is guest,
    )


def follow_packets(call: Call) -> SocketSession:
    """Follow a guest's packets."""
    asked, guest = call.asked(models.FollowTraceQuery), call.guest
    from_now = asked.since is None and asked.last is None
    record = _packets(guest)
    reader = TraceReader(
        record.ring,
        session=asked.session,
        since_ns=_ns(asked.since),
        last=0 if from_now else asked.last,
        raw=asked.raw,
        follow=True,
    )
    return TraceSession(guest.name, record, reader, alive=lambda: call.daemon.guests.get(guest.name) is guest)


def _question(guest: Guest) -> models.BootQuestion | None:
    asked = None if guest.boot is None else guest.boot.question
    if asked is None:
        return None
    return models.BootQuestion(run=asked.run, asks=cast("models.Secret", asked.secret))


def _packets(guest: Guest) -> PacketRecord:
    if guest.packets is None:
        off = guest.relay is not None
        raise ProblemError(
            Kind.NOT_CAPABLE,
            f"no packets of {guest.name} are recorded"
            + (": packets_ring_bytes is 0" if off else ": it has no debug stub"),
            hint="configure `packets_ring_bytes`" if off else "configure `qmp` or `stub` for it",
        )
    return guest.packets


def status(daemon: Daemon, guest: Guest) -> models.GuestStatus:
    """Return all that is known of a guest."""
    config, relay, machine = guest.config, guest.relay, guest.machine
    runtime = guest.runtime
    return models.GuestStatus(
        name=guest.name,
        state=guest.state,
        capabilities=cast("list[models.Capability]", list(guest.capabilities)),
        console=_line(guest),
        debug=None
        if relay is None
        else models.Debug(
            attached=relay.attached,
            stop=relay.stop_number,
            sessions=[
                models.Session(
                    name=one.name,
                    role="controller" if one.controls else "observer",
                    attached=one.attached,
                    waits=one.waits,
                    stop=one.stop,
                    asks=one.asks,
                )
                for one in relay.sessions
            ],
            breakpoints=[
                models.Breakpoint(
                    kind=one.kind, address=hex(one.address), size=one.size, owners=list(one.owners)
                )
                for one in relay.breakpoints
            ],
            break_in=None
            if guest.ways_in is None
            else models.BreakIn(
                ways=[way.value for way in guest.ways_in.ways],
                worked=None if guest.ways_in.worked is None else guest.ways_in.worked.value,
            ),
        ),
        monitor=None
        if machine is None
        else models.Monitor(
            connected=machine.connected, detail=machine.state.detail, problem=machine.problem
        ),
        record=models.Record(
            status=guest.recorder.status,
            recording=guest.recorder.recording,
            oldest=guest.recorder.ring.oldest,
            head=guest.recorder.ring.head,
        ),
        sockets=models.Sockets(
            gdb=None if relay is None else str(runtime / "gdb"),
            gdb_observe=None if relay is None else str(runtime / "gdb-observe"),
            console=None if guest.line is None else str(runtime / "console"),
        ),
        boot=_question(guest),
        vmlinux=None if config.vmlinux is None else str(config.vmlinux),
        debug_dirs=[
            str(path) for path in (*config.debug_dirs, *daemon.debug_dirs, debug_links(guest.state_dir))
        ],
    )


def _line(guest: Guest) -> models.Line | None:
    line = guest.line
    if line is None:
        return None
    return models.Line(
        endpoint=str(guest.config.console),
        state=line.state.value,
        reason=line.reason,
        can_break=bool(line.breaks),
        pen=guest.pen.holder,
    )


def _ns(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1_000_000) * 1000
