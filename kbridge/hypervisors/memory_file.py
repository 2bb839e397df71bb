"""Much memory of a guest that runs, read at once: QEMU writes it into a file in memory that both hold open.

In:         addresses and lengths.
Out:        ``add-fd``, once for each connection to the monitor, ``remove-fd``; ``memsave``; what QEMU wrote.
Invariant:  one read is under way at a time; the file is empty between two; it has no name on the host, and no disk
            sees it.  Where QEMU cannot be handed a file, or may not open it again, nothing is read, and that is known.

``memsave`` opens a file by its name, so it is told that of a file which is open already, ``/proc/self/fd/N``: QEMU
needs no right to any folder, and it and the relay need not see the same ones.  Its address is a signed number, of the
same 64 bits.  It ends at the first kilobyte that is not wholly mapped, and has written what came before.  A mebibyte
takes 2.4 ms, where the human monitor's text takes 1.7 ms for each 4 KiB (QEMU 7.2, software emulation).  What is to be
removed from a set of files QEMU closes when the machine runs (``monitor/fds.c``).

Source: QEMU's ``qapi/machine.json`` (memsave) and ``qapi/misc.json`` (add-fd), 7.2.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from kbridge.errors import CommandRefusedError, MachineError
from kbridge.hypervisors.examine import END_OF_MEMORY

if TYPE_CHECKING:
    from kbridge.hypervisors.qmp_client import QmpClient

SET: Final = 0x6B627269
"""The number of QEMU's set of files that has only this one; of one that a killed relay left, too."""
CLOSE_SECONDS: Final = 1.0
"""How long who leaves waits for QEMU."""
_NOT_MAPPED: Final = "Invalid addr"


class MemoryFile:
    """The file that one machine's memory is read through; the module's text says how."""

    _log = Logger()

    def __init__(self, client: QmpClient) -> None:
        self._client = client
        self._turn = DeferredLock()
        self._file: int | None = None
        self._path: str | None = None
        """Its name for QEMU; None while QEMU does not have it."""
        self._is_refused = False

    def forget(self) -> None:
        """The monitor's connection is over, and with it what QEMU was given."""
        self._path, self._is_refused = None, False

    async def close(self) -> None:
        """Let go of the file, and have QEMU do so; a later read has another."""
        if self._path is not None:
            with suppress(MachineError):
                # Gone, or hanging: it has closed it, or whoever hands over the next one removes this.
                await self._client.execute("remove-fd", {"fdset-id": SET}, seconds=CLOSE_SECONDS)
        self.forget()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    async def read(self, address: int, length: int) -> bytes:
        """Return what was read of ``length`` bytes from the first on.

        Fewer where the rest is not mapped, and up to a kilobyte before that; none where this way is closed.  Raises
        ``MachineError`` where the monitor does not answer.  QEMU serves nobody else meanwhile.
        """
        async with self._turn:
            if self._is_refused:
                return b""
            try:
                return await self._read(address, length)
            except (CommandRefusedError, OSError) as error:
                self._is_refused = True
                self._log.info("memory is read through the human monitor, slowly: {why}", why=str(error))
                return b""

    async def _read(self, address: int, length: int) -> bytes:
        if self._path is None:
            self._path = await self._hand_over()
        signed = address - END_OF_MEMORY if address >= END_OF_MEMORY // 2 else address
        assert self._file is not None
        file = self._file
        try:
            try:
                await self._client.execute("memsave", {"val": signed, "size": length, "filename": self._path})
            except CommandRefusedError as error:
                if _NOT_MAPPED not in error.why:
                    raise
            return os.pread(file, length, 0)
        finally:
            if self._file == file:
                os.ftruncate(file, 0)

    async def _hand_over(self) -> str:
        """Give QEMU the file and return its name there."""
        if self._file is None:
            self._file = os.memfd_create("kbridge-guest-memory", os.MFD_CLOEXEC)
        with suppress(CommandRefusedError):
            # There is none, but for what a relay left that was killed while another monitor kept the set alive.
            await self._client.execute("remove-fd", {"fdset-id": SET})
        given = await self._client.execute("add-fd", {"fdset-id": SET}, descriptor=self._file)
        number = given.get("fd") if isinstance(given, dict) else None
        if not isinstance(number, int):
            raise CommandRefusedError("QEMU does not say which file it was given")
        return f"/proc/self/fd/{number}"
