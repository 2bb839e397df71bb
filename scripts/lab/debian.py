"""Debian's archive: which versions it has, and their contents, without installing anything."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

from lab import lifetime
from lab.errors import LabError
from lab.progress import Step

_MEGABYTE = 1_000_000
_POLL_SECONDS = 0.2
_DAY_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Package:
    """A package as apt would install it; `size` of the .deb in bytes, `depends` without their versions."""

    name: str
    version: str
    size: int
    depends: tuple[str, ...]


def parse_record(text: str) -> Package | None:
    """The first record of what `apt-cache show` prints; None if there is none."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            break
        key, separator, value = line.partition(":")
        if separator and not line[0].isspace():
            fields[key] = value.strip()
    if not {"Package", "Version", "Size"} <= fields.keys():
        return None
    depends = re.findall(r"(?:^|,)\s*([a-z0-9][a-z0-9+.-]*)", fields.get("Depends", ""))
    return Package(fields["Package"], fields["Version"], int(fields["Size"]), tuple(depends))


def package(name: str) -> Package:
    """The candidate version of a package; brings apt's lists up to date if they lack it and we may."""
    found = _show(name)
    if found is None and update():
        found = _show(name)
    if found is None:
        raise LabError(
            f"apt knows no package {name}; run `sudo apt-get update`, and see that its sources name Debian 12"
        )
    return found


@dataclass(frozen=True, slots=True)
class Archive:
    """Packages of another architecture. This machine's apt is left as it is: lists and all are in `folder`."""

    architecture: str
    folder: Path

    def package(self, name: str) -> Package:
        """The candidate version of a package; fetches the lists if there are none yet."""
        if not self._stamp.exists():
            self._update()
        found = _show(name, self._environment())
        if found is None:
            raise LabError(f"the archive has no package {name} for {self.architecture}")
        return found

    def renew(self) -> bool:
        """Fetch lists that are older than a day. False if they were newer."""
        if time.time() - self._stamp.stat().st_mtime < _DAY_SECONDS:
            return False
        self._update()
        return True

    def download(self, wanted: Package, into: Path) -> Path:
        """The package's .deb, in the existing folder `into`."""
        return download(wanted, into, self._environment())

    @property
    def _stamp(self) -> Path:
        return self.folder / "updated"

    def _update(self) -> None:
        for name in ("state/lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "apt.conf").write_text(
            f'APT::Architecture "{self.architecture}";\nAPT::Architectures {{ "{self.architecture}"; }};\n'
            f'Dir::State "{self.folder}/state";\nDir::State::status "/dev/null";\n'
            f'Dir::Cache "{self.folder}/cache";\nAcquire::Languages "none";\n'
        )
        with Step(f"apt-get update, for {self.architecture}"):
            _apt_update(self._environment())
        self._stamp.touch()

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "APT_CONFIG": str(self.folder / "apt.conf")}


def installed(name: str) -> str:
    """The version of a package that is installed on this machine; empty if none is."""
    command = ["dpkg-query", "--show", "--showformat=${Version}", "--", name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _show(name: str, environment: Mapping[str, str] | None = None) -> Package | None:
    command = ["apt-cache", "show", "--no-all-versions", "--", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError as error:
        raise LabError("there is no apt-cache: the guests are made of Debian's packages") from error
    return parse_record(done.stdout)


def update() -> bool:
    """Fetch apt's lists. False, with nothing done, if we are not root."""
    if os.geteuid() != 0:
        return False
    with Step("apt-get update"):
        _apt_update()
    return True


def _apt_update(environment: Mapping[str, str] | None = None) -> None:
    # As root apt would fetch as a user of its own, which need not be able to write in a private cache.
    command = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "APT::Sandbox::User=root", "update"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise LabError(f"apt-get update failed: {last_line(done.stderr)}")


def download(wanted: Package, into: Path, environment: Mapping[str, str] | None = None) -> Path:
    """The package's .deb, in the existing folder `into`."""
    # apt's own user need not be able to write in a private cache; as root it would only warn.
    command = [
        "apt-get",
        "-qq",
        "-o",
        "APT::Sandbox::User=root",
        "download",
        f"{wanted.name}={wanted.version}",
    ]
    with Step(f"{wanted.name} {wanted.version}: download") as step, (into / "apt.log").open("w+") as log:
        process = subprocess.Popen(
            command,
            cwd=into,
            stdout=log,
            stderr=log,
            env=environment,
            preexec_fn=lifetime.child_setup(),  # noqa: PLW1509 - this process has one thread
        )
        try:
            while process.poll() is None:
                have = sum(path.stat().st_size for path in into.glob(f"{wanted.name}_*") if path.exists())
                step.update(f"{have / _MEGABYTE:.0f} of {wanted.size / _MEGABYTE:.0f} MB")
                time.sleep(_POLL_SECONDS)
        finally:
            _end(process)
        log.seek(0)
        said = log.read()
        if process.returncode:
            raise LabError(f"cannot download {wanted.name}: {last_line(said)}; try: sudo apt-get update")
    (into / "apt.log").unlink()
    files = list(into.glob(f"{wanted.name}_*.deb"))
    if len(files) != 1:
        raise LabError(f"apt-get download {wanted.name} left {len(files)} packages instead of one")
    return files[0]


def pipeline(label: str, *commands: list[str], cwd: Path) -> None:
    """Run commands, the output of each being the input of the next, under one progress line.

    Raises LabError with the last words of the first command that failed.
    """
    with Step(label) as step, contextlib.ExitStack() as stack:
        running: list[tuple[subprocess.Popen[bytes], IO[str]]] = []
        source = None
        for number, command in enumerate(commands, start=1):
            errors: IO[str] = stack.enter_context(tempfile.TemporaryFile("w+"))
            output = subprocess.PIPE if number < len(commands) else subprocess.DEVNULL
            process = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=source,
                stdout=output,
                stderr=errors,
                # One that went on after us would write into a folder that the next build removes.
                preexec_fn=lifetime.child_setup(),  # noqa: PLW1509 - this process has one thread
            )
            stack.callback(_end, process)
            if source is not None:
                # Only the next command may hold it, or the earlier one would never see that its reader is gone.
                source.close()
            source = process.stdout
            running.append((process, errors))
        while any(process.poll() is None for process, _ in running):
            step.update("")
            time.sleep(_POLL_SECONDS)
        for process, errors in running:
            # A command whose reader failed dies of that, which tells nothing.
            if process.returncode and process.returncode != -signal.SIGPIPE:
                errors.seek(0)
                raise LabError(f"{label} failed: {last_line(errors.read())}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def unpack(deb: Path, into: Path, *patterns: str) -> None:
    """Those files of a package that match one of tar's wildcard `patterns`, into an existing folder."""
    pipeline(
        f"{deb.name.partition('_')[0]}: unpack",
        ["dpkg-deb", "--fsys-tarfile", str(deb)],
        ["tar", "-x", "--no-same-owner", "--wildcards", *patterns],
        cwd=into,
    )


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
