"""The fuzz run of docs/fuzzing.md: a short one always, the whole million where long tests are run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rsp import fuzzing

FUZZ = Path(__file__).resolve().parent.parent / "scripts" / "fuzz"


@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_a_few_cases_of_each_target(name: str) -> None:
    assert fuzzing.run(name, 400, seed=1) is None


def test_a_case_is_the_same_again() -> None:
    first, second = (fuzzing.chance_of(3, 17).randbytes(40) for _ in range(2))
    assert first == second
    assert first != fuzzing.chance_of(3, 18).randbytes(40)
    assert first != fuzzing.chance_of(4, 17).randbytes(40)


def test_what_fails_is_named_so_that_it_can_be_run_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(chance: object) -> None:
        raise ValueError("found")

    monkeypatch.setitem(fuzzing.TARGETS, "qmp", (fails, 1))
    assert fuzzing.main(["--cases", "5", "--target", "qmp", "--seed", "9"]) == 1
    said = capsys.readouterr().err
    assert "scripts/fuzz --target qmp --seed 9 --case 0" in said
    assert "found" in said


def test_memory_that_grows_fails_the_run() -> None:
    # In a process of its own: what earlier tests left free would be used first.
    code = (
        "from rsp import fuzzing; kept = []\n"
        "fuzzing.TARGETS['qmp'] = (lambda chance: kept.append(bytearray(50_000)), 1)\n"
        "raise SystemExit(fuzzing.main(['--cases', '1200', '--target', 'qmp']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FUZZ.parent.parent / "tests", env={**os.environ, "PYTHONPATH": ".."},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "memory grew by more than 20 MB" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_cases() -> None:
    done = subprocess.run([str(FUZZ)], capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stderr
    assert "all" in done.stdout
