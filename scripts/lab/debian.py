"""Debian's archive: which versions it has, and their contents, without installing anything."""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

from lab.errors import LabError
from lab.progress import Step

_MEGABYTE = 1_000_000
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Package:
    """A package as apt would install it: name, version, size of the .deb in bytes, the first names it depends on."""

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


def _show(name: str) -> Package | None:
    command = ["apt-cache", "show", "--no-all-versions", "--", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LabError("there is no apt-cache here: the test guests are built from Debian's packages") from error
    return parse_record(done.stdout)


def update() -> bool:
    """Fetch apt's lists. False, with nothing done, if we are not root."""
    if os.geteuid() != 0:
        return False
    with Step("apt-get update"):
        command = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "update"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"apt-get update failed: {last_line(done.stderr)}")
    return True


def download(wanted: Package, into: Path) -> Path:
    """The package's .deb, in the existing folder `into`."""
    # apt's own user need not be able to write in a private cache; as root it would only warn.
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", f"{wanted.name}={wanted.version}"]
    with Step(f"{wanted.name} {wanted.version}: download") as step, (into / "apt.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=into, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                have = sum(path.stat().st_size for path in into.glob(f"{wanted.name}_*") if path.exists())
                step.update(f"{have / _MEGABYTE:.0f} of {wanted.size / _MEGABYTE:.0f} MB")
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        said = log.read()
        if process.returncode:
            raise LabError(f"cannot download {wanted.name}: {last_line(said)}; try: sudo apt-get update")
    (into / "apt.log").unlink()
    files = list(into.glob(f"{wanted.name}_*.deb"))
    if len(files) != 1:
        raise LabError(f"apt-get download {wanted.name} left {len(files)} packages instead of one")
    return files[0]


def pipeline(label: str, *commands: list[str], cwd: Path, watch: Callable[[], str] = lambda: "") -> None:
    """Run commands, the output of each being the input of the next, under one progress line.

    Raises LabError with the last line of stderr of a command that failed.
    """
    with Step(label) as step, (cwd / "pipeline.log").open("w+") as log:
        processes: list[subprocess.Popen[bytes]] = []
        try:
            source = None
            for number, command in enumerate(commands, start=1):
                output = subprocess.PIPE if number < len(commands) else subprocess.DEVNULL
                process = subprocess.Popen(command, cwd=cwd, stdin=source, stdout=output, stderr=log)
                if source is not None:
                    source.close()
                source = process.stdout
                processes.append(process)
            while any(process.poll() is None for process in processes):
                step.update(watch())
                time.sleep(_POLL_SECONDS)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        log.seek(0)
        said = log.read()
        if any(process.returncode for process in processes):
            raise LabError(f"{label} failed: {last_line(said)}")
    (cwd / "pipeline.log").unlink()


def unpack(deb: Path, into: Path, *patterns: str) -> None:
    """Those files of a package that match one of tar's wildcard `patterns`, under the existing folder `into`."""
    pipeline(
        f"{deb.name.partition('_')[0]}: unpack",
        ["dpkg-deb", "--fsys-tarfile", str(deb)],
        ["tar", "-x", "--no-same-owner", "--wildcards", *patterns],
        cwd=into,
    )


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
