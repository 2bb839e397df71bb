"""All that is learnt out of guest memory, on real kernels that KASLR has moved: equal to what the guest says itself.

The processor has five-level paging, which a kernel turns on by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bridge_lab import Monitor
from memory_lab import Shell, StubMemory

from kbridge.debuginfo.finders import read_kernel
from kbridge.debuginfo.mapping import mapped
from symbols import btf, elf, kallsyms, kaslr, modules, system_map, vmcoreinfo
from symbols.btf import Btf
from symbols.errors import SlideUnknown
from symbols.model import ModuleState
from symbols.reads import Read

if TYPE_CHECKING:
    from kbridge.debuginfo.finders import KernelFile
    from symbols.kallsyms import Kallsyms
    from symbols.kaslr import Found
    from symbols.reads import Search

pytestmark = pytest.mark.guest
StartGuest = Callable[..., dict[str, Any]]
BOOTS = 3


@pytest.mark.slow
def test_three_boots(cloud_guest: StartGuest, tmp_path: Path) -> None:
    """Names, types, modules and the kernel's place, at each boot those that the guest itself shows."""
    second = tmp_path / "monitor"
    guest = cloud_guest("--stub", "--", "-cpu", "max", "-qmp", f"unix:{second},server=on,wait=off")
    file = read_kernel(Path(guest["vmlinux"]))
    listed = system_map.parse(Path(guest["vmlinux"]).with_name("System.map").read_bytes())
    seen: set[int] = set()
    with closing(Monitor(str(second))) as monitor, Shell(guest["console"]) as shell:
        for _ in range(BOOTS):
            shell.booted()
            assert "la57" in shell.run("grep -wo la57 /proc/cpuinfo")
            names = shell.run("grep -v '\\[' /proc/kallsyms|md5sum").split()[0]
            loaded = shell.run("cat /proc/modules")
            shell.run("cd /sys/module/fat/sections")
            sections = shell.run("for i in .[_a-z]* _*;do echo $i $(cat $i);done")
            with StubMemory(guest["stub"]) as memory:
                found = memory.run(kaslr.find([file.linked]))
                assert found.way == "interrupt table"
                assert memory.batches == 2
                own = memory.run(kallsyms.search(memory.run(kaslr.divide_error_handler())))
                assert digest(own) == names
                assert entries(own) <= entries(listed.moved(found.slide))
                types_tell_the_same(memory, own, file)
                modules_are(memory, own, file, loaded, sections, Path(guest["modules"]))
                vmcoreinfo_agrees(memory, own, found)
                seen.add(found.slide)
            monitor.command("stop")
            monitor.command("system_reset")
            with StubMemory(guest["stub"]) as memory, pytest.raises(SlideUnknown):
                # Before its first instruction there is no kernel, whatever is left in memory of the last.
                memory.run(kaslr.find([file.linked]))
    # Of three boots all to one place would be a chance of one in 200,000.
    assert len(seen) > 1


def digest(own: Kallsyms) -> str:
    """The same of the symbols as `md5sum` of /proc/kallsyms without its modules."""
    lines = zip(own.addresses, own.types, own.names, strict=True)
    text = "".join([f"{address:016x} {chr(kind)} {name}\n" for address, kind, name in lines])
    return hashlib.md5(text.encode()).hexdigest()


def entries(table: Kallsyms) -> set[tuple[int, int, str]]:
    return set(zip(table.addresses, table.types, table.names, strict=True))


def between(start: int, end: int) -> Search[bytes]:
    (data,) = yield (Read(start, end - start),)
    return data


def types_tell_the_same(memory: StubMemory, own: Kallsyms, file: KernelFile) -> None:
    places = own.find("__start_notes", "__stop_notes", "__start_BTF", "__stop_BTF", "__start_rodata")
    notes = memory.run(between(places["__start_notes"], places["__stop_notes"]))
    assert elf.build_id_of_notes(notes) == file.linked.build_id
    data = memory.run(between(places["__start_BTF"], places["__stop_BTF"]))
    assert modules.layout(Btf(data)) == file.layout
    # Without a symbol that says where: by how they begin, with other memory before and behind.
    around = memory.run(between(places["__start_BTF"] - 65536, places["__stop_BTF"])) + bytes(100)
    found = btf.find(around)
    assert found.size(found.struct("task_struct")) == Btf(data).size(Btf(data).struct("task_struct"))


def modules_are(
    memory: StubMemory, own: Kallsyms, file: KernelFile, loaded: str, sections: str, files: Path
) -> None:
    assert file.layout is not None
    memory.cost()
    told = memory.run(modules.read(file.layout, own.find(modules.LIST_SYMBOL)[modules.LIST_SYMBOL]))
    assert memory.batches <= len(told.modules) + 8
    lines = [line.split() for line in loaded.splitlines() if " Live " in line]
    assert len(lines) >= 15
    assert [(one.name, f"{one.base:#x}", one.state, one.taints) for one in told.modules] == [
        (words[0], words[5], ModuleState.LIVE, 0) for words in lines
    ]
    ids = {path.stem.replace("-", "_"): build_id_of(path) for path in files.rglob("*.ko")}
    for one in told.modules:
        assert one.build_id == ids[one.name]
    (fat,) = (one for one in told.modules if one.name == "fat")
    assert {(one.name, f"{one.address:#018x}") for one in fat.sections} <= {
        (words[0], words[1]) for words in map(str.split, sections.splitlines()) if len(words) == 2
    }
    assert len(fat.sections) > 10
    assert not memory.run(modules.has_changed(told))


def build_id_of(path: Path) -> str | None:
    with mapped(path) as image:
        return elf.build_id(image)


def vmcoreinfo_agrees(memory: StubMemory, own: Kallsyms, found: Found) -> None:
    places = own.find(vmcoreinfo.DATA_SYMBOL, vmcoreinfo.SIZE_SYMBOL)
    told = memory.run(
        vmcoreinfo.by_symbol(*(places[one] for one in (vmcoreinfo.DATA_SYMBOL, vmcoreinfo.SIZE_SYMBOL)))
    )
    assert told.slide == found.slide
    assert told.symbol("_stext") == own.find("_stext")["_stext"]
    assert told.number("pgtable_l5_enabled") == 1


@pytest.mark.slow
def test_a_module_that_goes_is_noticed_and_what_is_left_in_memory_is_found_by_its_text(
    cloud_guest: StartGuest,
) -> None:
    guest = cloud_guest("--stub")
    file = read_kernel(Path(guest["vmlinux"]))
    assert file.layout is not None
    assert file.modules is not None
    with Shell(guest["console"]) as shell:
        shell.booted()
        with StubMemory(guest["stub"]) as memory:
            found = memory.run(kaslr.find([file.linked]))
            head = file.modules + found.slide
            before = memory.run(modules.read(file.layout, head))
            # Physical addresses: the text is in a page that no symbol leads to.
            memory.ask(b"Qqemu.PhyMemMode:1")
            claims = [one.claim() for one in memory.run(vmcoreinfo.search(0, 256 << 20))]
            memory.ask(b"Qqemu.PhyMemMode:0")
            assert found.slide in {one.slide for one in claims if one is not None}
        shell.run("rmmod dummy")
        with StubMemory(guest["stub"]) as memory:
            assert memory.run(modules.has_changed(before))
            after = memory.run(modules.read(file.layout, head))
            assert [one for one in before.modules if one not in after.modules] == [
                one for one in before.modules if one.name == "dummy"
            ]


@pytest.mark.slow
def test_a_break_in_tells_the_place_of_a_kernel_with_its_own_debugger(kgdb_guest: StartGuest) -> None:
    guest = kgdb_guest("--kgdb-port")
    file = read_kernel(Path(guest["vmlinux"]))
    with Shell(guest["console"]) as shell:
        shell.booted()
        shell.type("echo g > /proc/sysrq-trigger")
        with StubMemory(guest["kgdb"], window=1) as memory:
            assert file.linked.breakpoint is not None
            claims = kaslr.counter_claims(memory.counter(), [file.linked])
            assert len(claims) == 1
            assert memory.run(kaslr.is_at(file.linked, claims[0].slide))
            assert memory.run(kaslr.find([file.linked])).slide == claims[0].slide
        shell.run("true")
