"""The rules of conftest.py hold: no silent skip in continuous integration, no logged error overlooked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = """
import pytest
from twisted.trial import unittest

def test_passes(): pass

@pytest.mark.skip(reason="no machine")
def test_marked(): pass

def test_inside(): pytest.skip("no kernel")

@pytest.mark.xfail(reason="known")
def test_known(): assert False

class Trial(unittest.TestCase):
    def test_raises(self): raise unittest.SkipTest("no reactor")
"""

LOGS = """
from twisted.logger import Logger
from twisted.trial import unittest

log = Logger()

def test_error(): log.error("bad {what}", what="weather")

def test_warning(): log.warn("clouds")

def test_meant(logged_errors):
    log.critical("rain")
    assert [event["log_format"] for event in logged_errors] == ["rain"]
    logged_errors.clear()

class Trial(unittest.TestCase):
    def test_flushed(self):
        log.failure("x", __import__("twisted.python.failure").python.failure.Failure(ValueError("storm")))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_failure(self):
        log.failure("x", __import__("twisted.python.failure").python.failure.Failure(ValueError("hail")))

    def test_text(self):
        log.error("thunder")
"""


WORKERS = ("--dist=loadfile", "--no-loadscope-reorder")


def outcome(folder: Path, text: str, ci: str | None, *arguments: str) -> tuple[int, str]:
    (folder / "test_it.py").write_text(text)
    return run(folder, ci, "-rA", "--tb=line", *arguments)


def run(folder: Path, ci: str | None, *arguments: str) -> tuple[int, str]:
    shutil.copy(Path(__file__).with_name("conftest.py"), folder / "conftest.py")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\nmarkers = slow\n")
    environment = {name: value for name, value in os.environ.items() if name != "CI" and "PYTEST" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--import-mode=importlib", *arguments, str(folder)],
        cwd=folder, env=environment | ({} if ci is None else {"CI": ci}), capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_skips_are_skips_at_a_desk(tmp_path: Path) -> None:
    status, output = outcome(tmp_path, SKIPS, None)
    assert status == 0
    assert "1 passed, 3 skipped, 1 xfailed" in output
    assert outcome(tmp_path, SKIPS, "false")[0] == 0


@pytest.mark.parametrize("workers", [(), ("--numprocesses=2", *WORKERS)], ids=["one process", "workers"])
def test_skips_are_failures_in_ci(tmp_path: Path, workers: tuple[str, ...]) -> None:
    status, output = outcome(tmp_path, SKIPS, "true", *workers)
    assert status == 1
    assert "2 failed, 1 passed, 1 xfailed, 1 error" in output
    for reason in ("no machine", "no kernel", "no reactor"):
        assert f"skipped, but with CI set nothing may be: Skipped: {reason}" in output


@pytest.mark.parametrize(
    "text",
    [
        "import pytest; pytest.importorskip('no_such_module_anywhere')",
        "import pytest; pytest.skip('no module', allow_module_level=True)",
    ],
)
def test_a_module_that_skips_itself_fails_ci(tmp_path: Path, text: str) -> None:
    assert outcome(tmp_path, text, "true")[0] not in (0, 5)


def test_workers_begin_with_the_files_that_take_long(tmp_path: Path) -> None:
    for name in "0123":
        mark = "import pytest; pytestmark = pytest.mark.slow\n" if name == "3" else ""
        (tmp_path / f"test_{name}.py").write_text(f"{mark}def test_it(): pass\n")
    _, output = run(tmp_path, None, "-v", "--numprocesses=1", *WORKERS)
    assert re.findall(r"PASSED test_(\d)", output) == ["3", "0", "1", "2"]


def test_a_logged_error_fails_its_test(tmp_path: Path) -> None:
    _, output = outcome(tmp_path, LOGS, None)
    verdicts = {
        line.partition(" - ")[0]
        for line in output.splitlines()
        if line.startswith(("PASSED", "FAILED", "ERROR"))
    }
    assert {verdict.split("::", 1)[0].split()[0] + " " + verdict.split("::", 1)[1] for verdict in verdicts} == {
        "PASSED test_error", "ERROR test_error", "PASSED test_warning", "PASSED test_meant",
        "PASSED Trial::test_flushed", "FAILED Trial::test_failure", "PASSED Trial::test_text",
        "ERROR Trial::test_text",
    }  # fmt: skip
    assert "bad weather" in output
