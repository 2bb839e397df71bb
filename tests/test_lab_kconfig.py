"""A kernel built without what a guest is for must not pass for that guest."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import kconfig
from lab.errors import LabError

FRAGMENT = Path(kconfig.__file__).with_name("kgdb.config")

options = st.dictionaries(
    st.from_regex(r"CONFIG_[A-Z0-9_]{1,10}", fullmatch=True),
    st.sampled_from(["y", "m", "n", "0x1", "10", '"-kgdb"']),
    max_size=10,
)


def written(values: dict[str, str]) -> str:
    lines = [f"# {name} is not set" if value == "n" else f"{name}={value}" for name, value in values.items()]
    return "\n".join(["# a comment", "", *lines, ""])


@given(options)
def test_what_is_written_is_read(values: dict[str, str]) -> None:
    assert kconfig.parse(written(values)) == values


@given(options, options)
def test_an_option_is_lost_exactly_if_it_has_another_value(
    wanted: dict[str, str], have: dict[str, str]
) -> None:
    lost = kconfig.lost(written(wanted), written(have))
    assert {line.partition(":")[0] for line in lost} == {
        name for name, value in wanted.items() if have.get(name, "n") != value
    }


def test_a_lost_option_is_named_with_both_values() -> None:
    assert kconfig.lost("CONFIG_CRC16=m\nCONFIG_KGDB=y\n", "CONFIG_CRC16=y\n") == [
        "CONFIG_CRC16: wanted m, got y",
        "CONFIG_KGDB: wanted y, got n",
    ]


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(LabError):
        assert set(kconfig.parse(text)) <= set(re.findall(r"CONFIG_[A-Za-z0-9_]+", text))


def test_a_slip_of_the_pen_is_not_taken_for_a_comment() -> None:
    with pytest.raises(LabError, match="line 2"):
        kconfig.parse("CONFIG_KGDB=y\nKGDB_KDB=y\n")
    with pytest.raises(LabError, match="changes CONFIG_KGDB"):
        kconfig.parse("CONFIG_KGDB=y\n# CONFIG_KGDB is not set\n")


def test_the_guest_asks_for_what_it_promises() -> None:
    wanted = kconfig.parse(FRAGMENT.read_text())
    for name in (
        "SMP", "RANDOMIZE_BASE", "KGDB_SERIAL_CONSOLE", "KGDB_KDB", "LKDTM", "SOFTLOCKUP_DETECTOR",
        "HARDLOCKUP_DETECTOR", "DETECT_HUNG_TASK", "STACKPROTECTOR_STRONG", "VMAP_STACK", "DEBUG_LIST",
        "SLUB_DEBUG_ON", "UBSAN", "DEBUG_INFO_BTF", "DEBUG_INFO_DWARF5", "GDB_SCRIPTS", "VIRTIO_PCI", "VIRTIO_BLK",
        "VIRTIO_NET", "VIRTIO_CONSOLE", "EXT4_FS", "PVPANIC_PCI", "CRASH_CORE", "FW_CFG_SYSFS",
    ):  # fmt: skip
        assert wanted[f"CONFIG_{name}"] == "y", name
