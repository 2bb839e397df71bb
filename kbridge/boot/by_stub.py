"""Another command line for a kernel that nobody can stop before it starts: by the debug stub, at the kernel's entry.

A session of the relay's own takes control, the machine is reset, hardware breakpoints stand where kernels begin; at
the first that is one (``entry_x86.py``) the command line in memory is replaced and read back.  Where EFI firmware
starts, the place where it lets go of the machine is looked for meanwhile (``entry_efi.py``), and is one more.

in          a guest; what makes the new command line out of the old one; how long it may take
out         ``Change``; words on the way; ``KbridgeError``
states      attaching · resetting · running to an entry · changing · leaving
invariant   it begins only where nobody else controls and no breakpoint of another session stands; however it ends,
            and if the relay is killed, nothing of it stands in the stub (the relay's journal); the guest runs as soon
            as the machine was started; no more breakpoints than a processor has
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeVar

from twisted.internet.defer import Deferred

from gdbstubs.target import Breakpoint, BreakpointKind, Halted, Stop
from kbridge.boot.entry_efi import Firmware, edit_at_exit, firmware, forget, has_exited, returns_to
from kbridge.boot.entry_x86 import ENTRIES, LOADED, CannotChange, Change, Read, Write, edit, linear
from kbridge.errors import GuestError, MachineError
from kbridge.hypervisors.interface import RunState
from kbridge.rsp_client import ATTACH_SECONDS, RspClient, over

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from kbridge.guest import Guest

    Registers = Mapping[str, int | None]

T = TypeVar("T")

MOST_FALSE_STOPS: Final = 64
"""How often something else than a kernel may run where kernels begin; GRUB does so once."""
LOOK_SECONDS: Final = 0.1
"""How often firmware is looked at that starts; a kernel comes a second and more after what is looked for."""
NAME: Final = "boot"
"""What the session is called."""

_BIOS_DATE: Final = (0xF_FFF5, re.compile(rb"\d\d/\d\d/\d\d"))
"""What tells a PC's BIOS from other firmware."""
_STANDS: Final = (RunState.DEBUG, RunState.PAUSED)
_ELSE: Final = "stop it in its boot loader, or change the command line on its disk"


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
    return await _Run(guest, by, seconds, said).carry_out(new)


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
        self._end = self._now() + seconds
        self._said = said
        self._name = NAME
        self._words = ""
        """What the relay has told this session last."""
        self._is_started = False
        """Whether the machine was put at its first instruction."""
        self._is_paused = False
        """Whether somebody else has stopped it since."""
        self._standing: set[int] = set()
        """Where breakpoints stand."""
        self._memory: tuple[tuple[int, int], ...] = ()
        """Where firmware is looked at; nowhere if it is a BIOS."""
        self._firmware: Firmware | None = None
        """EFI firmware, once it was found."""
        self._returns: int | None = None
        """Where it returns to from there."""
        self._pause: Deferred[None] | None = None

    async def carry_out(self, new: Callable[[str], str]) -> Change:
        why = why_not(self._guest)
        if why:
            raise self._error("cannot be changed by its debug stub", why, "`kbridge ls` shows who is there")
        relay = self._guest.relay
        assert relay is not None
        self._name, connection = relay.open_session(NAME)
        client = await over(
            self._guest.reactor,
            self._guest.name,
            connection,
            on_words=self._told,
            seconds=min(ATTACH_SECONDS, self._seconds),
        )
        try:
            self._check_control()
            await self._start(client)
            change = await self._to_the_kernel(client, new)
        finally:
            await self._leave(client)
        self._guest.recorder.record(
            "boot.command_line", by=self._by, old=change.old, new=change.new, place=hex(change.place)
        )
        self._said(f"the kernel starts with: {change.new}")
        return change

    async def _leave(self, client: RspClient) -> None:
        """Take all of ours out of the stub, and let a guest run that was started."""
        try:
            await client.interrupt()
        except GuestError:
            # Gone, or never there: closing is all that is left to do.
            pass
        await client.close()
        machine = self._guest.machine
        assert machine is not None
        # The relay leaves a guest as it found it, or as it is configured to (`on_leave`).
        if self._is_started and not self._is_paused and (await machine.query()).run in _STANDS:
            await machine.resume()

    async def _start(self, client: RspClient) -> None:
        """Put the machine at its first instruction, with breakpoints where kernels begin."""
        machine = self._guest.machine
        assert machine is not None
        registers = await client.registers()
        if not {"rip", "rsi", "rsp", "cr0", "efer"} <= registers.keys():
            raise self._error(
                "cannot be changed by its debug stub",
                "its processor is no x86-64, or the stub does not show its control registers",
                _ELSE,
            )
        if (await machine.query()).detail != "prelaunch":
            await self._guest.power("reset", self._by)
            self._said("the machine was reset")
        self._is_started = True
        place, date = _BIOS_DATE
        if date.fullmatch(await _read(client, Read(place, 8))):
            await self._stand(client, ENTRIES)
        else:
            self._memory = await machine.ram()
            await self._carried_out(client, forget(self._memory))
            await self._stand(client, LOADED)

    async def _to_the_kernel(self, client: RspClient, new: Callable[[str], str]) -> Change:
        for _ in range(MOST_FALSE_STOPS):
            interrupted = await self._run(client)
            registers = await client.registers()
            address = linear(registers)
            if address is not None and address == self._returns:
                change = await self._firmware_returned(client, registers, new)
            elif address is not None and self._firmware is not None and address == self._firmware.exit:
                change = None
                await self._firmware_lets_go(client, registers)
            elif address is not None and address in self._standing:
                change = await self._edited(client, edit(registers, new))
                if change is None:
                    await self._get_past(client, address)
            elif interrupted:
                change = None
                await self._firmware_was_found(client)
            else:
                self._is_paused = True
                where = "" if address is None else f" at {address:#x}"
                raise self._error(
                    "was not changed", self._words or f"it was stopped{where} by something else", "try again"
                )
            if change is not None:
                return change
        raise self._error(
            "was not changed", f"{MOST_FALSE_STOPS} times something else ran where kernels begin", _ELSE
        )

    # -- what may begin -------------------------------------------------------------------------------------

    async def _get_past(self, client: RspClient, address: int) -> None:
        """Step over the first instruction of what is no kernel, in whatever mode it runs."""
        self._said(f"something else than a kernel runs at {address:#x}")
        standing = tuple(self._standing)
        await self._stand(client, self._standing - {address})
        await client.step()
        await self._stand(client, standing)

    async def _firmware_was_found(self, client: RspClient) -> None:
        assert self._firmware is not None
        if not await _read(client, Read(self._firmware.exit, 1)):
            raise self._error(
                "was not changed", "its kernel had begun before its EFI firmware was found", "try again"
            )
        self._said(f"EFI firmware starts, which will let go of the machine at {self._firmware.exit:#x}")
        await self._stand(client, (*LOADED, self._firmware.exit))

    async def _firmware_lets_go(self, client: RspClient, registers: Registers) -> None:
        returns = await self._carried_out(client, returns_to(registers))
        if returns is None:
            raise self._error("was not changed", "its EFI firmware is no 64-bit one", _ELSE)
        self._returns = returns
        await self._stand(client, (*LOADED, returns))

    async def _firmware_returned(
        self, client: RspClient, registers: Registers, new: Callable[[str], str]
    ) -> Change | None:
        assert self._firmware is not None
        self._returns = None
        if not has_exited(registers):
            # Its map of memory had changed meanwhile: it will be asked again.
            await self._stand(client, (*LOADED, self._firmware.exit))
            return None
        found = await self._edited(client, edit_at_exit(self._firmware, registers, new))
        if isinstance(found, Change):
            return found
        self._firmware = None
        self._memory = ()
        if found is None:
            self._said("the EFI firmware has let go of the machine, it is not known to whom")
            await self._stand(client, LOADED)
        else:
            self._said(f"a boot loader has the machine, and will start a kernel at {found.address:#x}")
            await self._stand(client, {*LOADED, found.address})
        return None

    # -- running --------------------------------------------------------------------------------------------

    async def _run(self, client: RspClient) -> bool:
        """Let the guest run to its next stop; tell whether it was stopped because its firmware was found."""
        self._words = ""
        client.resume()
        heard: list[Stop | GuestError] = []
        Deferred.fromCoroutine(self._wait(client, heard))
        interrupted = False
        seconds = LOOK_SECONDS
        while not heard:
            await self._short_while(seconds)
            began = self._now()
            if not heard and await self._is_to_be_stopped(heard):
                interrupted = True
                await client.interrupt()
            # Who has much memory to look at gets as much time to himself.
            seconds = max(LOOK_SECONDS, self._now() - began)
        stop = heard[0]
        if isinstance(stop, GuestError):
            if self._now() < self._end:
                raise stop
            raise self._error(
                "was not changed", f"no kernel was seen to start within {self._seconds:g} s", _ELSE
            )
        self._check_control()
        if not isinstance(stop, Halted):
            raise self._error("was not changed", stop.words or "it has ended", "start it again")
        return interrupted

    async def _wait(self, client: RspClient, heard: list[Stop | GuestError]) -> None:
        try:
            heard.append(await client.wait(max(0.0, self._end - self._now())))
        except GuestError as error:
            heard.append(error)
        self._wake()

    async def _is_to_be_stopped(self, heard: list[Stop | GuestError]) -> bool:
        """Look at the firmware, as long as the guest runs."""
        if not self._controls:
            return True
        if self._firmware is not None or not self._memory:
            return False
        machine = self._guest.machine
        assert machine is not None
        looking = firmware(self._memory)
        try:
            asked = next(looking)
            while not heard:
                asked = looking.send(await machine.read_memory(asked.address, asked.length))
        except StopIteration as done:
            # If it stands meanwhile, it is looked at anew when it runs.
            self._firmware = None if heard else done.value
        except MachineError:
            # A monitor that is gone takes the guest with it, which ends the waiting.
            return False
        return self._firmware is not None

    async def _short_while(self, seconds: float) -> None:
        self._pause = Deferred()
        timer = self._guest.reactor.callLater(seconds, self._wake)
        try:
            await self._pause
        finally:
            self._pause = None
            if timer.active():
                timer.cancel()

    def _wake(self) -> None:
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.callback(None)

    # -- memory and breakpoints -----------------------------------------------------------------------------

    async def _edited(self, client: RspClient, work: Generator[Read | Write, bytes, T]) -> T:
        try:
            return await self._carried_out(client, work)
        except CannotChange as error:
            raise self._error(
                "cannot be changed by its debug stub", str(error), "it starts with its loader's own"
            ) from None

    async def _carried_out(self, client: RspClient, work: Generator[Read | Write, bytes, T]) -> T:
        try:
            asked = next(work)
            while True:
                if isinstance(asked, Read):
                    asked = work.send(await _read(client, asked))
                else:
                    await client.write_memory(asked.address, asked.data)
                    asked = work.send(b"")
        except StopIteration as done:
            result: T = done.value
            return result

    async def _stand(self, client: RspClient, addresses: Iterable[int]) -> None:
        """Have breakpoints at these addresses, and nowhere else."""
        wanted = set(addresses)
        for address in self._standing - wanted:
            await client.remove(_breakpoint(address))
        for address in wanted - self._standing:
            await client.insert(_breakpoint(address))
        self._standing = wanted

    # -- words ----------------------------------------------------------------------------------------------

    def _told(self, words: str) -> None:
        self._words = words.strip()

    @property
    def _controls(self) -> bool:
        assert self._guest.relay is not None
        return any(one.name == self._name and one.controls for one in self._guest.relay.sessions)

    def _check_control(self) -> None:
        if not self._controls:
            raise self._error(
                "was not changed", "somebody else took control of it", "try again when it is free"
            )

    def _now(self) -> float:
        return float(self._guest.reactor.seconds())

    def _error(self, what: str, why: str, todo: str) -> GuestError:
        return GuestError(f"the command line of {self._guest.name} {what}", why=why, todo=todo)


def _breakpoint(address: int) -> Breakpoint:
    return Breakpoint(BreakpointKind.HARDWARE, address, 1)


async def _read(client: RspClient, asked: Read) -> bytes:
    try:
        return await client.read_memory(asked.address, asked.length)
    except GuestError:
        # Nothing is there.  A stub that is gone says so to what comes next, too.
        return b""
