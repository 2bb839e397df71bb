"""What every test shares: real guests to start, and rules that a run as a whole must keep.

- In continuous integration (CI=true) a skipped test is a failure: there, everything it needs is there.
- An error logged through twisted.logger fails the test during which it was logged.
- Where workers share the tests, files with real guests are begun first.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from twisted.logger import LogLevel, eventAsText, globalLogPublisher

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from twisted.logger import LogEvent

ROOT = Path(__file__).resolve().parent.parent
GUEST = ROOT / "scripts" / "guest"
# The test guests' modules, for their tests; the test support beside this file.
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

_BUILD_SECONDS = 1500
_START_SECONDS = 60
_END_SECONDS = 15


# ── nothing is skipped in continuous integration ────────────────────────────────────────────────────────────


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _in_ci() and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, but with CI set nothing may be: {why}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


# ── two workers ─────────────────────────────────────────────────────────────────────────────────────────────


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take long first: those left for the end are short, and both workers end together.

    A worker takes a file at a time, so that what a file's tests share is made once.
    """
    if not hasattr(config, "workerinput"):
        return
    long = {
        item.path
        for item in items
        if any(item.get_closest_marker(name) for name in ("guest", "qemu", "slow"))
    }
    items.sort(key=lambda item: item.path not in long)


# ── logged errors ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def logged_errors(request: pytest.FixtureRequest) -> Iterator[list[LogEvent]]:
    """Events logged as error or critical; a test that means to cause some checks this list and clears it.

    In trial's TestCase an event that carries a failure is trial's own business: it fails the test unless
    `flushLoggedErrors` took it.
    """
    trial = request.cls is not None and hasattr(request.cls, "flushLoggedErrors")
    errors: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        bad = event.get("log_level") in (LogLevel.error, LogLevel.critical)
        if bad and not (trial and "log_failure" in event):
            errors.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        yield errors
    finally:
        globalLogPublisher.removeObserver(observe)
    if errors:
        pytest.fail("logged as errors:\n" + "\n".join(eventAsText(event) for event in errors), pytrace=False)


# ── guests ──────────────────────────────────────────────────────────────────────────────────────────────────


class StartGuest(Protocol):
    """Starts a guest and returns what `scripts/guest run` says of it; arguments are those of that command.

    The guest ends with the test. It is blocking, and takes about 0.3 s: the machine's monitor answers then,
    while the kernel only begins to boot.
    """

    def __call__(self, *arguments: str) -> dict[str, Any]: ...


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise TimeoutError(f"scripts/guest said nothing within {seconds} s")
        piece = os.read(process.stdout.fileno(), 65536)
        if not piece:
            break
        line += piece
    return line


def _factory(name: str, errors: Path) -> Generator[StartGuest]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> dict[str, Any]:
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                [str(GUEST), "run", name, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        started.append(process)
        line = _read_line(process, _START_SECONDS)
        assert line, f"scripts/guest run {name} failed: {errors.read_text()}"
        said: dict[str, Any] = json.loads(line)
        return said

    try:
        yield start
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(_END_SECONDS)
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()


def _built(name: str) -> str:
    done = subprocess.run(
        [str(GUEST), "build", name], capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False
    )
    assert done.returncode == 0, f"scripts/guest build {name} failed: {done.stderr}"
    return name


@pytest.fixture(scope="session")
def cloud_built() -> str:
    return _built("cloud")


@pytest.fixture(scope="session")
def kgdb_built() -> str:
    return _built("kgdb")


@pytest.fixture
def cloud_guest(cloud_built: str, tmp_path: Path) -> Iterator[StartGuest]:
    """Starts guests with Debian's cloud kernel.

    A trial TestCase takes it so:

        @pytest.fixture(autouse=True)
        def _guests(self, cloud_guest: StartGuest) -> None:
            self.start_guest = cloud_guest
    """
    yield from _factory(cloud_built, tmp_path / "guest-errors.txt")


@pytest.fixture(scope="module")
def shared_cloud_guest(cloud_built: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartGuest]:
    """As `cloud_guest`, for guests that all tests of a module share: they end with the module."""
    yield from _factory(cloud_built, tmp_path_factory.mktemp("guest") / "errors.txt")


@pytest.fixture(scope="module")
def shared_kgdb_guest(kgdb_built: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartGuest]:
    """As `kgdb_guest`, for guests that all tests of a module share."""
    yield from _factory(kgdb_built, tmp_path_factory.mktemp("guest") / "errors.txt")


@pytest.fixture
def kgdb_guest(kgdb_built: str, tmp_path: Path) -> Iterator[StartGuest]:
    """Starts guests with the kernel that has KGDB, lkdtm and the detectors; as `cloud_guest`."""
    yield from _factory(kgdb_built, tmp_path / "guest-errors.txt")


@pytest.fixture(scope="session")
def disk_built() -> str:
    return _built("disk")


@pytest.fixture(scope="session")
def debian_built() -> str:
    return _built("debian")


@pytest.fixture(scope="session")
def arm64_built() -> str:
    return _built("arm64")


@pytest.fixture
def disk_guest(disk_built: str, tmp_path: Path) -> Iterator[StartGuest]:
    """Starts guests that GRUB or U-Boot boots from a disk; as `cloud_guest`."""
    yield from _factory(disk_built, tmp_path / "guest-errors.txt")


@pytest.fixture
def debian_guest(debian_built: str, tmp_path: Path) -> Iterator[StartGuest]:
    """Starts guests with Debian and systemd on a disk; as `cloud_guest`."""
    yield from _factory(debian_built, tmp_path / "guest-errors.txt")


@pytest.fixture
def arm64_guest(arm64_built: str, tmp_path: Path) -> Iterator[StartGuest]:
    """Starts guests of another architecture that U-Boot boots from a disk; as `cloud_guest`."""
    yield from _factory(arm64_built, tmp_path / "guest-errors.txt")
