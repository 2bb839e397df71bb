"""Console logs of crashes with what is expected of them: `tests/data/crashes/NNN-NAME.log`.

A file has a header, an empty line, and the console's bytes.  The header: `FROM:` who wrote it (a guest, or nobody: a
text composed in the kernel's format), and for each crash in order `TITLE:`, `ALT:` (any number), `KIND:`, `FUNCTION:`,
`CORRUPTED:` (a part of the reason; without it there is none), `BEGIN:` and `END:`, in bytes behind the empty line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kbridge.crash.detector import CrashBegins, CrashEnds, Detector, Event
from kbridge.crash.kinds import Kind

FOLDER = Path(__file__).parent / "data" / "crashes"


@dataclass
class Expected:
    title: str
    alternatives: list[str] = field(default_factory=list)
    kind: str = ""
    function: str = ""
    corrupted: str = ""
    begin: int = 0
    end: int = 0


class Log:
    """No dataclass: Hypothesis would print all of its data."""

    def __init__(self, path: Path) -> None:
        header, _, self.data = path.read_bytes().partition(b"\n\n")
        self.name = path.stem
        self.source = ""
        self.crashes: list[Expected] = []
        for line in header.decode().splitlines():
            key, _, value = line.partition(": ")
            match key:
                case "FROM":
                    self.source = value
                case "TITLE":
                    self.crashes.append(Expected(value))
                case "ALT":
                    self.crashes[-1].alternatives.append(value)
                case "BEGIN" | "END":
                    setattr(self.crashes[-1], key.lower(), int(value))
                case "KIND" | "FUNCTION" | "CORRUPTED":
                    setattr(self.crashes[-1], key.lower(), value)
                case _:
                    raise ValueError(f"{path}: {line}")

    def __repr__(self) -> str:
        return f"<{self.name}>"


def logs() -> list[Log]:
    return [Log(path) for path in sorted(FOLDER.glob("*.log"))]


def parse(*pieces: bytes, off: tuple[Kind, ...] = ()) -> list[Event]:
    detector = Detector(off)
    events = [event for piece in pieces for event in detector.feed(piece)]
    return events + detector.settle()


def ends(events: list[Event]) -> list[CrashEnds]:
    return [event for event in events if isinstance(event, CrashEnds)]


def begins(events: list[Event]) -> list[CrashBegins]:
    return [event for event in events if isinstance(event, CrashBegins)]
