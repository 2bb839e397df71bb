"""How far a long step is: one line rewritten on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_QUIET_SECONDS = 30.0
_REDRAW_SECONDS = 0.2
_WIDTH = 100


class Step:
    """A named step of a build, written to stderr with the time it took; used as a context manager."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._terminal = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        if not self._terminal:
            print(f"{self._name} ...", file=sys.stderr, flush=True)
        self.update("")
        return self

    def update(self, detail: str) -> None:
        """Say what is being done now; cheap enough to be called for each line of a build."""
        now = time.monotonic()
        if now - self._shown < (_REDRAW_SECONDS if self._terminal else _QUIET_SECONDS):
            return
        self._shown = now
        line = f"{self._name}: {self._elapsed()} {detail}"[:_WIDTH]
        if self._terminal:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _elapsed(self) -> str:
        seconds = int(time.monotonic() - self._start)
        return f"{seconds // 60}:{seconds % 60:02}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        start = "\r\033[K" if self._terminal else ""
        end = "done" if kind is None else "failed"
        took = time.monotonic() - self._start
        print(f"{start}{self._name}: {end} in {took:.1f} s", file=sys.stderr, flush=True)
