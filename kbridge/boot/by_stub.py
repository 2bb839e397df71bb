"""Another command line for a kernel that nobody can stop before it starts: by the debug stub, at the kernel's entry.

A session of the relay's own takes control, the machine is reset, hardware breakpoints stand where kernels begin; at
the first that is one (``entry_x86.py``) the command line in memory is replaced and read back.

in          a guest; what makes the new command line out of the old one; how long it may take
out         ``Change``; words on the way; ``KbridgeError``
states      attaching · resetting · running to an entry · changing · leaving
invariant   it begins only where nobody else controls and no breakpoint of another session stands; however it ends,
            and if the relay is killed, nothing of it stands in the stub (the relay's journal); the guest runs as soon
            as the machine was started
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gdbstubs.target import Breakpoint, BreakpointKind, Halted
from kbridge.boot.entry_x86 import ENTRIES, CannotChange, Change, Read, edit, linear
from kbridge.errors import GuestError
from kbridge.hypervisors.interface import RunState
from kbridge.rsp_client import ATTACH_SECONDS, RspClient, over

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kbridge.guest import Guest

MOST_FALSE_STOPS: Final = 64
"""How often something else than a kernel may run where kernels begin; GRUB does so once."""
NAME: Final = "boot"
"""What the session is called."""

_BREAKPOINTS: Final = {address: Breakpoint(BreakpointKind.HARDWARE, address, 1) for address in ENTRIES}


async def change_command_line(
    guest: Guest,
    new: Callable[[str], str],
    *,
    by: str,
    seconds: float,
    said: Callable[[str], None],
) -> Change:
    """Reset ``guest`` and start its kernel with the command line that ``new`` makes of its loader's.

    A guest that waits before its first instruction is not reset.  The kernel must begin within ``seconds``; it runs on
    by itself then.  ``said`` is told what happens.  What ``new`` raises is raised, too.  After an error the guest runs
    with its loader's own command line, or as it was if it was not even reset.
    """
    run = _Run(guest, by, seconds, said)
    return await run.carry_out(new)


def why_not(guest: Guest) -> str:
    """Return why the command line of a guest cannot be changed so; empty where it can be tried."""
    relay = guest.relay
    if relay is None:
        return "it has no debug stub"
    if guest.machine is None:
        return "it has no machine monitor by which it could be started"
    if relay.is_kernels_own:
        return "its debug stub is its kernel's own, which is not there before the kernel"
    holder = next((one.name for one in relay.sessions if one.controls), None)
    if holder is not None:
        return f"{holder} controls it"
    owners = sorted({owner for one in relay.breakpoints for owner in one.owners or ("somebody",)})
    if owners:
        return f"breakpoints of {', '.join(owners)} stand in it"
    return ""


class _Run:
    """One change; ``carry_out`` is called once."""

    def __init__(self, guest: Guest, by: str, seconds: float, said: Callable[[str], None]) -> None:
        self._guest = guest
        self._by = by
        self._seconds = seconds
        self._end = float(guest.reactor.seconds()) + seconds
        self._said = said
        self._name = NAME
        self._is_started = False
        """Whether the machine was put at its first instruction."""

    async def carry_out(self, new: Callable[[str], str]) -> Change:
        why = why_not(self._guest)
        if why:
            raise self._error("cannot be changed by its debug stub", why, "`kbridge ls` shows who is there")
        assert self._guest.relay is not None
        self._name, connection = self._guest.relay.open_session(NAME)
        client = await over(self._guest.reactor, self._guest.name, connection, seconds=ATTACH_SECONDS)
        try:
            self._check_control()
            await self._start(client)
            change = await self._at_entry(client, new)
        finally:
            await client.close()
            await self._let_go()
        self._guest.recorder.record(
            "boot.command_line", by=self._by, old=change.old, new=change.new, place=hex(change.place)
        )
        self._said(f"the kernel at {change.entry:#x} starts with: {change.new}")
        return change

    async def _start(self, client: RspClient) -> None:
        """Put the machine at its first instruction, with breakpoints where kernels begin."""
        machine = self._guest.machine
        assert machine is not None
        if (await machine.query()).detail != "prelaunch":
            await self._guest.power("reset", self._by)
            self._said("the machine was reset")
        self._is_started = True
        registers = await client.registers()
        if not {"rip", "rsi", "cr0", "efer"} <= registers.keys():
            raise self._error(
                "cannot be changed by its debug stub",
                "its processor is no x86-64, or the stub does not show its control registers",
                "change it in its boot loader",
            )
        for breakpoint_ in _BREAKPOINTS.values():
            await client.insert(breakpoint_)

    async def _at_entry(self, client: RspClient, new: Callable[[str], str]) -> Change:
        for _ in range(MOST_FALSE_STOPS):
            registers = await self._next_stop(client)
            address = linear(registers)
            breakpoint_ = None if address is None else _BREAKPOINTS.get(address)
            if breakpoint_ is None:
                words = client.stop.words if isinstance(client.stop, Halted) else ""
                where = "" if address is None else f" at {address:#x}"
                raise self._error(
                    "was not changed", words or f"it was stopped{where} by something else", "try again"
                )
            try:
                change = await self._edit(client, registers, new)
            except CannotChange as error:
                raise self._error(
                    "cannot be changed by its debug stub", str(error), "it starts with its loader's own"
                ) from None
            if change is not None:
                return change
            self._said(f"something else than a kernel runs at {address:#x}")
            await client.remove(breakpoint_)
            await client.step()
            await client.insert(breakpoint_)
        raise self._error(
            "was not changed", f"{MOST_FALSE_STOPS} times something else ran where kernels begin", _ELSE
        )

    async def _next_stop(self, client: RspClient) -> Mapping[str, int | None]:
        client.resume()
        try:
            stop = await client.wait(max(0.0, self._end - self._now()))
        except GuestError:
            if self._now() < self._end:
                raise
            raise self._error(
                "was not changed", f"no kernel was seen to start within {self._seconds:g} s", _ELSE
            ) from None
        self._check_control()
        if not isinstance(stop, Halted):
            raise self._error("was not changed", stop.words or "it has ended", "start it again")
        return await client.registers()

    async def _edit(
        self, client: RspClient, registers: Mapping[str, int | None], new: Callable[[str], str]
    ) -> Change | None:
        work = edit(registers, new)
        try:
            asked = next(work)
            while True:
                if isinstance(asked, Read):
                    asked = work.send(await _read(client, asked))
                else:
                    await client.write_memory(asked.address, asked.data)
                    asked = work.send(b"")
        except StopIteration as done:
            change: Change | None = done.value
            return change

    def _check_control(self) -> None:
        """See that control was not taken by somebody else."""
        assert self._guest.relay is not None
        if not any(one.name == self._name and one.controls for one in self._guest.relay.sessions):
            raise self._error(
                "was not changed", "somebody else took control of it", "try again when it is free"
            )

    async def _let_go(self) -> None:
        """Have a guest run that the relay leaves as it found it, or as it is configured to: ``on_leave``."""
        machine = self._guest.machine
        assert machine is not None
        if self._is_started and (await machine.query()).run in _STANDS:
            await machine.resume()

    def _now(self) -> float:
        return float(self._guest.reactor.seconds())

    def _error(self, what: str, why: str, todo: str) -> GuestError:
        return GuestError(f"the command line of {self._guest.name} {what}", why=why, todo=todo)


_STANDS: Final = (RunState.DEBUG, RunState.PAUSED)
_ELSE: Final = "stop it in its boot loader, or change the command line on its disk"


async def _read(client: RspClient, asked: Read) -> bytes:
    try:
        return await client.read_memory(asked.address, asked.length)
    except GuestError:
        # Nothing is there.  A stub that is gone says so to what comes next, too.
        return b""
