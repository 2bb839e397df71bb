"""Kernel configuration fragments: what one asks for, and what of that a finished .config does not hold.

`make olddefconfig` drops in silence any option whose dependencies are not met.
"""

from __future__ import annotations

import re

from lab.errors import LabError

_SET = re.compile(r"(CONFIG_[A-Za-z0-9_]+)=(.+)")
_UNSET = re.compile(r"# (CONFIG_[A-Za-z0-9_]+) is not set")


def parse(text: str) -> dict[str, str]:
    """Option names to values as written; an option that is "not set" has the value "n".

    Raises LabError on a line that is neither an option, a comment nor empty, or if an option is named twice
    with different values.
    """
    options: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if match := _SET.fullmatch(line):
            name, value = match.groups()
        elif match := _UNSET.fullmatch(line):
            name, value = match.group(1), "n"
        elif not line or line.startswith("#"):
            continue
        else:
            raise LabError(f"line {number} of the kernel configuration is no option and no comment: {line!r}")
        if options.setdefault(name, value) != value:
            raise LabError(f"line {number} of the kernel configuration changes {name} again")
    return options


def lost(fragment: str, result: str) -> list[str]:
    """One line for each option of `fragment` that `result` lacks or has otherwise; empty when all took."""
    have = parse(result)
    return [
        f"{name}: wanted {value}, got {have.get(name, 'n')}"
        for name, value in parse(fragment).items()
        if have.get(name, "n") != value
    ]
