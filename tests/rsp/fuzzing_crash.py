"""Targets of the fuzz run among what explains crashes: text of consoles, images, memory of a kernel, kept reports."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random

from crash_lab import logs
from image_lab import PHYSICAL, STEXT, TEXT, core, packed, small_machine
from test_boot_screen import TOKENS
from test_symbols_dmesg import DESCRIPTORS, INFOS, POINTER, RING, Log
from test_symbols_dmesg import LAYOUT as LOG
from test_symbols_dmesg import TEXT as LOG_TEXT
from test_symbols_tasks import BASE, Kernel
from test_symbols_tasks import LAYOUT as TASK

from kbridge.boot.screen import Screen
from kbridge.crash.core_bytes import open_bytes
from kbridge.crash.core_file import CoreFile
from kbridge.crash.detector import CrashEnds, Detector, Event
from kbridge.crash.facts import Facts, How, Noticed
from kbridge.crash.image_place import files_named_in
from kbridge.crash.report import as_json
from kbridge.crash.store import COUNTS, DOCUMENT, Store, read_report
from kbridge.errors import ImageError
from rsp import grammar
from symbols import dmesg, tasks
from symbols.dmesg import DmesgError
from symbols.tasks import TasksError

SIZE = 1 << 18
"""Bytes of the made-up machine's memory that are in its image: its page tables and its VMCOREINFO are."""


@cache
def _texts() -> tuple[bytes, ...]:
    """Crash reports as they came, none longer than a screenful or two."""
    return tuple(one.data[:3000] for one in logs())


def _damaged(chance: Random, data: bytes) -> bytes:
    for _ in range(chance.randrange(1, 4)):
        data = grammar.mutated(chance, data)
    return data


def _pieces(chance: Random, data: bytes) -> list[bytes]:
    cut = chance.randrange(len(data) + 1)
    return [data[:cut], data[cut:]]


def console(chance: Random) -> None:
    """Find the same crashes however a console's text comes; each where it says that it is."""
    data = b"".join(
        _damaged(chance, chance.choice(_texts())) if chance.randrange(3) else grammar.garbage(chance)
        for _ in range(chance.randrange(1, 3))
    )[:4000]

    def parsed(pieces: list[bytes]) -> list[Event]:
        detector = Detector()
        return [event for piece in pieces for event in detector.feed(piece)] + detector.settle()

    found = parsed([data])
    assert found == parsed(_pieces(chance, data))
    for one in found:
        if isinstance(one, CrashEnds):
            assert 0 <= one.begin.offset <= one.end <= len(data)
            assert one.title.title
            assert len(one.title.title) < 400


def screen(chance: Random) -> None:
    """Keep the size of a screen, and show the same however its text comes."""
    data = b"".join(
        chance.choice(TOKENS) if chance.randrange(3) else grammar.garbage(chance)[:40]
        for _ in range(chance.randrange(1, 30))
    )
    whole, parts = (Screen(columns=20, rows=5) for _ in range(2))
    whole.feed(data)
    for piece in _pieces(chance, data):
        parts.feed(piece)
    assert (whole.display(), whole.x, whole.y) == (parts.display(), parts.x, parts.y)
    assert len(whole.display()) == 5
    assert all(len(row) <= 20 for row in whole.display())


@cache
def _image() -> bytes:
    memory, notes = small_machine(TEXT, size=1 << 22)
    return core(memory[:SIZE], notes)


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="kb-fuzz-"))


def image(chance: Random) -> None:
    """Read an image, or say what is wrong with it; compressed or not."""
    data = bytearray(_image())
    for _ in range(chance.randrange(1, 6)):
        # In the head, the page tables, or anywhere.
        at = chance.randrange(chance.choice((1200, 0x8000, len(data))))
        data[at] = chance.randrange(256)
    whole = bytes(data[: chance.choice((len(data), chance.randrange(1, len(data))))])
    if not chance.randrange(3):
        squeezed = bytearray(packed(whole[:20_000], 4096))
        squeezed[chance.randrange(len(squeezed))] ^= chance.randrange(1, 256)
        whole = bytes(squeezed)
    path = _folder() / "image"
    path.write_bytes(whole)
    try:
        source = open_bytes(path)
        source.close()
        found = CoreFile.open(path)
    except ImageError:
        return
    try:
        for number in range(len(found.processors)):
            assert len(found.read_virtual(found.tables(number), STEXT, 1000)) <= 1000
        assert len(found.read_physical(PHYSICAL, 1000)) <= 1000
    except ImageError:
        pass
    finally:
        found.close()


def log(chance: Random) -> None:
    """Read a damaged kernel log, or refuse it; never more messages than it has room for."""
    made = Log()
    for _ in range(chance.randrange(1, 40)):
        made.say(chance.randbytes(chance.randrange(40)), state=chance.choice((1, 2, 2, 2, 3)))
    memory = made.image()
    for _ in range(chance.randrange(8)):
        piece = chance.choice((POINTER, RING, DESCRIPTORS, INFOS, LOG_TEXT))
        memory.pieces[piece] = _damaged(chance, memory.pieces[piece])
    try:
        found = memory.run(dmesg.read(LOG, POINTER))
    except DmesgError:
        return
    assert len(found.records) + found.damaged <= 1 << 20
    assert all(len(one.text) <= dmesg.MOST_LINE for one in found.records)
    found.lines()


def sleepers(chance: Random) -> None:
    """Read damaged lists of tasks, each task once, and to an end."""
    kernel = Kernel([0], [1, 4], [2], [3, 5, 6])
    for _ in range(chance.randrange(1, 30)):
        at = chance.randrange(0, kernel._next, 8)
        value = chance.choice((BASE + chance.randrange(kernel._next), chance.getrandbits(64)))
        kernel.memory[at : at + 8] = value.to_bytes(8, "little")
    try:
        found = kernel.read(TASK)
    except TasksError:
        return
    assert len({one.address for one in found}) == len(found) <= tasks.MOST_TASKS


_VALUES = (
    None,
    True,
    0,
    -1,
    1e400,
    "",
    "pending",
    [],
    {},
    [[]],
    {"state": "pending"},
    "20261128-120000-web1",
    "\ud800",
)


def reports(chance: Random) -> None:
    """Start with whatever is among the crashes that were kept: list it, find it, finish it."""
    noticed = Noticed(
        How.CONSOLE, "panic", "kernel panic: x", "the kernel panicked", 1_700_000_000_000_000_000
    )
    folder = Path(tempfile.mkdtemp(dir=_folder()))
    for name in ("20261128-120000-web1", ".20261128-120001-web1.partial"):
        document = as_json(Facts(name.strip(".").removesuffix(".partial"), "web1", noticed))
        for _ in range(chance.randrange(4)):
            where = document
            if chance.randrange(2) and isinstance(document.get("machine"), dict):
                where = document["machine"]
            where[chance.choice(list(where) or ["id"])] = chance.choice(_VALUES)
        data = json.dumps(document).encode()
        if not chance.randrange(3):
            data = _damaged(chance, data)
        if not chance.randrange(20):
            data = b"[" * 100_000
        (folder / name).mkdir()
        (folder / name / DOCUMENT).write_bytes(data)
    counts = json.dumps(
        {"version": 1, "guests": {"web1": [dict.fromkeys(("title", "count", "first_ns", "last_ns"), 1)]}}
    )
    (folder / COUNTS).write_bytes(
        counts.replace("1}", chance.choice(("1e400}", "[]}", "1}"))).encode()
        if chance.randrange(2)
        else _damaged(chance, counts.encode())
    )
    store = Store(folder, lambda: noticed.wall_ns)
    store.open()
    for one in store.listed():
        assert {"id", "guest", "title", "state", "count", "path"} <= set(one)
        path = store.find(one["id"])
        assert path is not None
        assert read_report(path) is not None or not (path / "report.md").exists()
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            # What a killed relay had begun is finished.
            assert not path.name.startswith(".")
            files_named_in(path)
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        else:
            path.unlink()
    folder.rmdir()
