"""Recordings of real debuggers on a real stub, seen from the exchange: what came in, what went out.

One event a line, in the order in which the exchange saw them; text after a `#` at the start of a line is a
remark.  Bytes are written as Latin-1 with backslash escapes.

    in session_opened 1 root        a debugger connected
    in session_data 1 $?#3f         bytes of a debugger
    in session_closed 1
    in stub_connected running       or: paused
    in stub_data $OK#9a             bytes of the stub
    in stub_left
    in machine_runs yes             or: no
    in machine_status yes           or: no; the monitor's answer, and its detail
    in expire 1.25                  a deadline passed, seconds since the beginning
    out session 1 +$T05#b9          bytes for a debugger
    out stub +$?#3f                 bytes for the stub
    out connect | query | close run | close rest | close session 1

`record.py` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Step:
    """One thing that happened, and all that came of it."""

    line: int
    event: str
    outcome: tuple[str, ...]


def to_text(data: bytes) -> str:
    return data.decode("latin-1").encode("unicode_escape").decode("ascii")


def to_bytes(text: str) -> bytes:
    return text.encode("ascii").decode("unicode_escape").encode("latin-1")


def read(path: Path) -> list[Step]:
    steps: list[Step] = []
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
        kind, _, rest = line.partition(" ")
        if kind == "in":
            steps.append(Step(number, rest, ()))
        elif kind == "out":
            last = steps.pop()
            steps.append(Step(last.line, last.event, (*last.outcome, rest)))
        elif line and not line.startswith("#"):
            raise ValueError(f"{path}:{number}: {line!r} is neither in, out nor a remark")
    return steps


def paths() -> list[Path]:
    return sorted(FOLDER.glob("*.txt"))
