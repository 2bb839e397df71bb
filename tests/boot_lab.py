"""Console logs with what is expected of them: captured from real machines, `NAME.raw` beside `NAME.json`.

`states`: state, program, where the evidence begins, after how many bytes it was sure; `triage`: the verdict and the
names of the findings that stand, `got_over` of those that do not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from kbridge.boot.states import Change, Recogniser
from kbridge.boot.triage import Report, Triage

FOLDER = Path(__file__).parent / "data" / "console"


class Log:
    """No dataclass: Hypothesis would print all of its data."""

    def __init__(self, name: str, data: bytes, golden: dict[str, Any]) -> None:
        self.name = name
        self.data = data
        self.states: list[tuple[str, str, int, int]] = [tuple(each) for each in golden["states"]]
        self.triage: dict[str, Any] = golden["triage"]

    def __repr__(self) -> str:
        return f"<{self.name}>"


def logs() -> list[Log]:
    return [
        Log(path.stem, path.read_bytes(), json.loads(path.with_suffix(".json").read_text()))
        for path in sorted(FOLDER.glob("*.raw"))
    ]


PROMPT_MATTERS = {"dmesg-and-reboot", "grub-command"}
"""Logs in which somebody has a boot or an error printed: once the prompt before it is lost, nothing tells that."""

# Without letters, which might by design say something: Hypothesis knows the words of the code under test.
NOISE = st.one_of(
    st.lists(
        st.sampled_from([byte for byte in range(256) if not chr(byte).isascii() or not chr(byte).isalpha()])
    ).map(bytes),
    st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"\x1b", b"\x1b[", b"\x1b]", b"\x00" * 20, b"\xff" * 20]),
)
DAMAGE = st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 400), NOISE), min_size=1, max_size=12)


def damaged(data: bytes, damage: list[tuple[int, int, bytes]]) -> bytes:
    """Replace pieces, from the end on."""
    for place, length, noise in sorted(damage, reverse=True):
        place %= max(len(data), 1)
        data = data[:place] + noise + data[place + length :]
    return data


def short(changes: list[Change]) -> list[tuple[str, str, int, int]]:
    return [(each.state.value, each.program, each.offset, each.end) for each in changes]


def recognise(*pieces: bytes) -> list[Change]:
    recogniser = Recogniser()
    return [change for piece in pieces for change in recogniser.feed(piece)]


def diagnose(data: bytes, *, wall_ns: int = 0, now_ns: int = 0) -> Report:
    triage = Triage()
    triage.text(0, wall_ns, data)
    return triage.report(now_ns=now_ns)


def names(report: Report) -> set[str]:
    return {finding.symptom.name for finding in report.findings}
