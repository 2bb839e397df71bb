"""One session's registers, as its debugger was told that they are: the stub's own, or a 32-bit view of them.

in:      the session's requests for registers and for their description
out:     requests to the target, answers in the view
states:  not described · narrow (in real or protected mode) · wide (for good)
invariant: registers are in the view that was described last; only a debugger that reads the description again when
         it is told to (``exec:``) is ever given a narrow one, and only before a wide one: breakpoints at a kernel's
         functions would not outlive a view without that kernel
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from gdbstubs.errors import EINVAL, TargetError
from gdbstubs.modes import Mode, NarrowView, mode_of
from gdbstubs.target import Reply, Target, ThreadId

MAIN_DOCUMENT: Final = "target.xml"


class Viewing:
    """What one session sees of the registers; the module's text says how."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._is_wide = False
        self.view: NarrowView | None = None
        """None where registers are the stub's own."""

    def describe(self, thread: ThreadId, annex: str, done: Reply[bytes | None], *, reads_again: bool) -> None:
        """Give a file of the description for what ``thread`` is in now.

        ``reads_again``: whether this debugger can be told later to read it again.
        """
        wide = partial(self._target.read_description, annex, done)
        if annex != MAIN_DOCUMENT or self._is_wide or not reads_again:
            self._is_wide = self._is_wide or annex == MAIN_DOCUMENT
            wide()
            return

        def looked(mode: Mode) -> None:
            description = self._target.description
            if mode is Mode.LONG or description is None:
                self.view, self._is_wide = None, True
                wide()
            else:
                self.view = NarrowView(description, mode)
                done(self.view.description.document)

        self.look(thread, looked)

    def look(self, thread: ThreadId, done: Callable[[Mode], None]) -> None:
        """Tell which mode a thread is in; long mode where that cannot be known."""

        def read(result: bytes | TargetError) -> None:
            if isinstance(result, TargetError):
                done(Mode.LONG)
            else:
                done(mode_of(self._target.description, result))

        self._target.read_registers(thread, read)

    # -- registers ------------------------------------------------------------------------------------------

    def read(self, thread: ThreadId, done: Reply[bytes]) -> None:
        """Read all registers, as text."""
        view = self.view
        if view is None:
            self._target.read_registers(thread, done)
        else:
            self._target.read_registers(thread, lambda text: done(_if_known(text, view.narrow)))

    def read_one(self, thread: ThreadId, number: int, done: Reply[bytes]) -> None:
        """Read one register by its number in the view, as text."""
        view = self.view
        if view is None:
            self._target.read_register(thread, number, done)
            return

        def pick(text: bytes) -> bytes | TargetError:
            return view.register(number, text) or _no_register(number)

        self._target.read_registers(thread, lambda text: done(_if_known(text, pick)))

    def write(self, thread: ThreadId, data: bytes, done: Reply[None]) -> None:
        """Write all registers of the view; the stub's others stay what they are."""
        view = self.view
        if view is None:
            self._target.write_registers(thread, data, done)
            return

        def read(text: bytes | TargetError) -> None:
            if isinstance(text, TargetError):
                done(text)
            else:
                self._target.write_registers(thread, view.widen(text, data), done)

        self._target.read_registers(thread, read)

    def write_one(self, thread: ThreadId, number: int, value: bytes, done: Reply[None]) -> None:
        """Write one register by its number in the view."""
        view = self.view
        if view is None:
            self._target.write_register(thread, number, value, done)
            return

        def read(text: bytes | TargetError) -> None:
            if isinstance(text, TargetError):
                done(text)
                return
            place = view.wide_register(number, value, text)
            if place is None:
                done(_no_register(number))
            else:
                self._target.write_register(thread, *place, done)

        self._target.read_registers(thread, read)


def _no_register(number: int) -> TargetError:
    return TargetError(EINVAL, f"there is no register {number}")


def _if_known(text: bytes | TargetError, use: Callable[[bytes], bytes | TargetError]) -> bytes | TargetError:
    return text if isinstance(text, TargetError) or not text else use(text)
