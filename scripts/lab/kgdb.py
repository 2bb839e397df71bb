"""The `kgdb` guest: compiled from Debian's linux-source, with KGDB and every detector of faults."""

from __future__ import annotations

from lab import builds
from lab.errors import LabError

NAME = "kgdb"


def build() -> builds.Build:
    raise LabError("not yet")
