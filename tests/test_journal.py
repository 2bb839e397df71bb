"""The journal: what a relay that was killed tells its successor."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdbstubs.effects import Journal
from gdbstubs.target import Breakpoint, BreakpointKind
from kbridge import journal
from kbridge.errors import RecordError

BREAKPOINTS = st.builds(
    Breakpoint, st.sampled_from(BreakpointKind), st.integers(0, (1 << 64) - 1), st.integers(0, 4096)
)


@given(st.booleans(), st.lists(BREAKPOINTS, max_size=20))
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, run: bool, breakpoints: list[Breakpoint]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    entry = Journal(attached=True, run=run, breakpoints=tuple(breakpoints))
    journal.write(path, entry)
    assert journal.read(path) == entry
    assert path.stat().st_mode & 0o777 == 0o600
    journal.write(path, Journal(attached=False, run=run))
    assert journal.read(path) is None
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"version": 1}', '{"version": 1, "run": true, "breakpoints": [[9, 0, 1]]}',
     '{"version": 1, "run": true, "breakpoints": [["a", 0, 1]]}', '{"version": 2, "run": true, "breakpoints": []}'],
)  # fmt: skip
def test_what_cannot_be_understood_is_an_error_and_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "journal"
    path.write_text(text)
    with pytest.raises(RecordError, match="journal"):
        journal.read(path)
    assert path.read_text() == text


def test_what_cannot_be_written_is_an_error_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal.write(path, Journal(attached=True, run=True))
    (tmp_path / "journal.new").mkdir()
    with pytest.raises(RecordError):
        journal.write(path, Journal(attached=True, run=False))
    found = journal.read(path)
    assert found is not None
    assert found.run
