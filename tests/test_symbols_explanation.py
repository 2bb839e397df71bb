"""Logs with lines, inlined calls and instructions put in, for a made-up kernel."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from symbols import explanation, table_making
from symbols.backtrace import read
from symbols.explanation import Explainer
from symbols.lines import Frame
from symbols.model import BuildId
from symbols.table import Symbol, Table

OOPSES = Path(__file__).resolve().parent / "data/oops"
BASE = 0xFFFFFFFF81000000


class Made:
    """A file with symbols at distances of 0x100, whose own sizes are 0x80."""

    def __init__(self, *names: str, size: int = 0x80) -> None:
        rows = [(BASE + 0x100 * at, size, 2, name.encode()) for at, name in enumerate((*names, "last"))]
        self.table = Table(memoryview(table_making.pack(rows)))
        self.calls: dict[int, tuple[Frame, ...]] = {}
        self.asked: list[int] = []

    def named(self, name: str) -> list[Symbol]:
        return self.table.named(name)

    def reach(self, symbol: Symbol) -> int:
        return self.table.reach(symbol)

    def symbol(self, address: int) -> tuple[Symbol, int] | None:
        return self.table.at(address)

    def frames(self, address: int) -> tuple[Frame, ...]:
        self.asked.append(address - BASE)
        return self.calls.get(address - BASE, (Frame("f", "a.c", address - BASE),))


def explained(source: Made | None, *texts: str) -> list[str]:
    return list(Explainer(source).explain(texts))


def test_a_return_address_is_of_the_call_before_it() -> None:
    made = Made("f")
    said = explained(made, "[ 1.0]  f+0x10/0x100", "[ 1.0] RIP: 0010:f+0x10/0x100", "[ 1.0]  ? f+0x0/0x100")
    assert said == [
        "[ 1.0]  f+0x10/0x100  a.c:15",
        "[ 1.0] RIP: 0010:f+0x10/0x100 (a.c:16)",
        "[ 1.0]  ? f+0x0/0x100  a.c:?",
    ]


def test_both_sizes_are_taken_and_no_other() -> None:
    made = Made("f")
    said = explained(made, " f+0x10/0x100", " f+0x10/0x80", " f+0x10/0x90")
    assert said == [
        " f+0x10/0x100  a.c:15",
        " f+0x10/0x80  a.c:15",
        " f+0x10/0x90  (of another build: in the file its size is 0x100)",
    ]


def test_of_several_with_one_name_that_of_the_size() -> None:
    rows = [(BASE, 0x40, 2, b"f"), (BASE + 0x40, 0x20, 2, b"g"), (BASE + 0x60, 0x60, 2, b"f")]
    made = Made()
    made.table = Table(memoryview(table_making.pack(rows)))
    assert explained(made, " f+0x10/0x60") == [f" f+0x10/0x60  a.c:{0x60 + 15}"]


def test_inlined_calls_are_lines_of_their_own() -> None:
    made = Made("f")
    made.calls[15] = (Frame("in", "i.h", 1), Frame("mid", "m.h", 2), Frame("f", "f.c", 3))
    made.calls[16] = made.calls[15]
    assert explained(made, "[ 1.0]  f+0x10/0x100", "[ 1.0]  ? f+0x10/0x100", "RIP: 0010:f+0x10/0x100 x") == [
        "[ 1.0]  in  i.h:1 (inlined)",
        "[ 1.0]  mid  m.h:2 (inlined)",
        "[ 1.0]  f+0x10/0x100  f.c:3",
        "[ 1.0]  ? in  i.h:1 (inlined)",
        "[ 1.0]  ? mid  m.h:2 (inlined)",
        "[ 1.0]  ? f+0x10/0x100  f.c:3",
        "RIP: 0010:f+0x10/0x100 (in at i.h:1, inlined at m.h:2, inlined at f.c:3) x",
    ]


def test_modules_are_looked_for_by_name_and_build_id() -> None:
    module = Made("go")
    asked: list[tuple[str, BuildId | None]] = []

    def find(name: str, build_id: BuildId | None) -> Made | None:
        asked.append((name, build_id))
        return module if name == "xfs" else None

    texts = [
        " go+0x10/0x100 [xfs]",
        " go+0x10/0x100 [nfs]",
        f" go+0x20/0x100 [xfs {'ab' * 20}]",
        " go+0x1/0x100",
    ]
    assert list(Explainer(Made("f"), find).explain(texts)) == [
        " go+0x10/0x100 [xfs]  a.c:15",
        " go+0x10/0x100 [nfs]",
        f" go+0x20/0x100 [xfs {'ab' * 20}]  a.c:31",
        " go+0x1/0x100",
    ]
    assert asked == [("xfs", None), ("nfs", None), ("xfs", BuildId("ab" * 20))]


def test_the_folder_that_a_distribution_builds_in_is_left_out() -> None:
    made = Made("entry")
    made.calls[15] = (
        Frame("entry", "/build/reproducible-path/linux-6.1.192/arch/x86/entry/entry_64.S", 121),
    )
    explainer = Explainer(made)
    for _ in range(2):
        assert list(explainer.explain([" entry+0x10/0x100"])) == [
            " entry+0x10/0x100  arch/x86/entry/entry_64.S:121"
        ]
    assert made.asked == [15]
    assert (explainer.explained, explainer.other_builds) == (2, 0)


def test_without_the_kernels_file_code_is_explained_all_the_same() -> None:
    said = explained(
        None, "RIP: 0010:f+0x2/0xa", "Code: 31 c0 <89> 04 25 00 00 00 00 c3", "CR2: 0000000000000000", ""
    )
    assert said == [
        "RIP: 0010:f+0x2/0xa",
        "Code: 31 c0 <89> 04 25 00 00 00 00 c3",
        "      <+0x0>  31 c0                    xorl %eax, %eax",
        "  =>  <+0x2>  89 04 25 00 00 00 00     movl %eax, 0",
        "      <+0x9>  c3                       retq",
        "CR2: 0000000000000000",
        "  -- it writes 4 bytes at 0x0",
        "",
    ]


def test_code_that_was_shown_is_not_shown_again_nor_that_of_user_space() -> None:
    oops = ["RIP: 0010:f+0x0/0x100", "Code: <f4> c3"]
    user = ["RIP: 0033:0x47b7a0", "Code: 0f 05 <48> 3d 00 f0 ff ff"]
    said = explained(Made("f"), *oops, *user, *oops)
    assert sum("hlt" in line for line in said) == 1
    assert said[-2:] == ["RIP: 0010:f+0x0/0x100 (a.c:?)", "Code: <f4> c3"]
    assert len(said) == len(oops) * 2 + len(user) + 2


def test_a_jump_to_where_no_code_is() -> None:
    said = explained(
        None, "[ 1.0] RIP: 0010:0x0", "[ 1.0] Code: Unable to access opcode bytes at 0xffffffffffffffd6."
    )
    assert "a pointer to a function was bad" in said[1]
    assert said[1].startswith("[ 1.0]   -- it went to 0x0")


def test_calls_and_variables_have_names() -> None:
    made = Made("f", "g")
    # At f+0x10: call g; then a write to g+0x20.
    said = explained(
        made, "RIP: 0010:f+0x10/0x100", "Code: <e8> eb 00 00 00 48 89 05 04 01 00 00", "RAX: 0000", "x"
    )
    assert "callq g" in said[2]
    said = explained(made, "RIP: 0010:f+0x10/0x100", "Code: <48> 89 05 09 01 00 00 c3", "RAX: 0000", "x")
    assert said[-2].endswith("= rip + 0x109, which is g+0x20")


def test_a_real_oops_without_any_file() -> None:
    texts = (OOPSES / "null-write.txt").read_text().splitlines()
    said = explained(None, *texts)
    added = [line for line in said if line not in texts]
    assert [line for line in said if line in texts] == texts
    assert added == [
        "[   48.997608]       <+0x0>  31 c0                    xorl %eax, %eax",
        "[   48.997608]   =>  <+0x2>  89 04 25 00 00 00 00     movl %eax, 0",
        "[   48.997608]       <+0x9>  c3                       retq",
        "[   48.998996]   -- it writes 4 bytes at 0x0",
    ]


def test_a_real_panic_in_an_interrupt() -> None:
    texts = (OOPSES / "panic-in-interrupt.txt").read_text().splitlines()
    places = {one.name: one for line in read(texts) for one in line.places}
    exact = {name for name, one in places.items() if not one.is_return}
    assert exact == {"native_safe_halt"}
    assert {"asm_common_interrupt", "amd_e400_idle", "cpu_startup_entry"} <= places.keys()
    said = explained(None, *texts)
    assert sum("=>" in line and "retq" in line for line in said) == 1
    assert not any("--" in line and line not in texts for line in said)


def test_what_is_remembered_is_limited() -> None:
    explainer = Explainer(Made("f"))
    for offset in range(1, explanation.MOST_REMEMBERED + 50):
        list(
            explainer.explain(
                [f" f+{offset:#x}/0x100", f"Code: <{offset & 0xFF:02x}> {offset >> 8 & 0xFF:02x}"]
            )
        )
    assert len(explainer._known) == explanation.MOST_REMEMBERED
    assert len(explainer._shown) == explanation.MOST_SHOWN


_LINES = st.lists(
    st.one_of(
        st.text(max_size=80),
        st.sampled_from(
            ["RIP: 0010:f+0x2/0xa", "RIP: 0033:0x1", "RIP: 0010:0x0", " f+0x10/0x100", " ? f+0xfff/0x100 [xfs]",
             "Code: 31 c0 <89> 04 25 00 00 00 00 c3", "RAX: 0123456789abcdef RBX: 0000000000000000", "GS:00ff(0000)"]
        ),
        st.binary(max_size=60).map(lambda data: f"Code: <{data[:1].hex() or '90'}> {data[1:].hex(' ')}"),
    ),
    max_size=20,
)  # fmt: skip


@settings(deadline=None)
@given(_LINES)
def test_no_line_is_lost(texts: list[str]) -> None:
    said = explained(Made("f"), *texts)
    left = iter(said)
    for text in texts:
        # Each in its order; what was put in stands between or behind.
        assert any(
            line == text or line.startswith(text.rstrip()) or _without(line) == text for line in left
        ), text


def _without(line: str) -> str:
    return line.partition(" (")[0]
