"""The screen: against pyte where that is right, and by itself where it must bear what pyte does not."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.boot.screen import MAX_STRING, Screen

FOLDER = Path(__file__).parent / "data" / "console"


class Told:
    """Keeps what a screen tells."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, int]] = []
        self.prompts: list[tuple[str, int, int]] = []

    def line(self, text: str, start: int, end: int) -> None:
        self.lines.append((text.rstrip(), start, end))

    def prompt(self, text: str, start: int, end: int) -> None:
        self.prompts.append((text, start, end))


def shown(data: bytes, columns: int = 20, rows: int = 6) -> list[str]:
    screen = Screen(columns=columns, rows=rows)
    screen.feed(data)
    return screen.display()


def told(*pieces: bytes, columns: int = 80) -> Told:
    watcher = Told()
    screen = Screen(watcher, columns=columns, rows=8)
    for piece in pieces:
        screen.feed(piece)
    return watcher


# Not here, because pyte 0.8.2 is wrong about them: DECSTBM, NEL, DL where rows are empty, DECRC for the second time.
TOKENS = [
    b"\r", b"\n", b"\b", b"\t", b"abc", b"hello world 12", b"x" * 9, b"\x1b[H", b"\x1b[2J", b"\x1b[J", b"\x1b[1J",
    b"\x1b[K", b"\x1b[1K", b"\x1b[2K", b"\x1b[3;4H", b"\x1b[99;40H", b"\x1b[5A", b"\x1b[2B", b"\x1b[3C", b"\x1b[2D",
    b"\x1bD", b"\x1bM", b"\x1b[2L", b"\x1b[2P", b"\x1b[2@", b"\x1b[3X", b"\x1b[7m", b"\x1b[0m",
    b"\x1b[4G", b"\x1b[3d", b"\x1bc", b"\x1b[?25l", b"\x1b[6n", b"\x1b(B",
]  # fmt: skip


@given(st.lists(st.sampled_from(TOKENS), max_size=25))
@settings(max_examples=400)
def test_it_shows_what_pyte_shows(tokens: list[bytes]) -> None:
    data = b"".join(tokens)
    # Wide, since pyte is wrong about a line end behind the last column too.
    screen = Screen(columns=450, rows=8)
    screen.feed(data)
    other = pyte.Screen(450, 8)
    pyte.Stream(other).feed(data.decode("ascii"))
    assert screen.display() == [row.rstrip() for row in other.display]
    assert (screen.y, screen.x) == (other.cursor.y, other.cursor.x)


@pytest.mark.parametrize(
    "name", ["grub-bios-single", "panic", "tcg-virtio", "deb-break", "kdb", "uboot-arm64"]
)
def test_it_shows_a_real_console_as_pyte_does(name: str) -> None:
    data = (FOLDER / f"{name}.raw").read_bytes()
    screen = Screen(columns=80, rows=25)
    other = pyte.Screen(80, 25)
    stream = pyte.Stream(other)
    for start in range(0, len(data), 4000):
        screen.feed(data[start : start + 4000])
        stream.feed(data[start : start + 4000].decode("ascii"))
        assert screen.display() == [row.rstrip() for row in other.display]


def test_margins_keep_what_is_outside_them() -> None:
    data = b"top\r\na\r\nb\r\nc\r\nd\r\nend" + b"\x1b[2;5r" + b"\x1b[5;1H\n" + b"new"
    assert shown(data) == ["top", "b", "c", "d", "new", "end"]
    assert shown(data + b"\x1b[2;1H\x1b[M") == ["top", "c", "d", "new", "", "end"]
    assert shown(data + b"\x1b[2;1H\x1bMx") == ["top", "x", "b", "c", "d", "end"]


def test_the_cursor_comes_back_to_where_it_was_saved_each_time() -> None:
    assert shown(b"ab\x1b7\r\nx\x1b8cd\x1b8C\x1b[5;5H\x1b[uD")[:2] == ["abDd", "x"]


def test_a_chosen_entry_is_known_by_its_reverse_or_its_light_background() -> None:
    for begin, end in ((b"\x1b[7m", b"\x1b[m"), (b"\x1b[30m\x1b[47m", b"\x1b[37m\x1b[40m")):
        screen = Screen()
        screen.feed(b"\x1b[5;3H" + begin + b"*Linux  " + end + b"\x1b[6;3H Other")
        assert (screen.reversed(4), screen.reversed(5)) == ("*Linux", "")
    screen.feed(b"\x1b[5;3H*Linux  ")
    assert screen.reversed(4) == ""


def test_a_grub_menu_is_on_the_screen() -> None:
    data = (FOLDER / "grub-bios-single.raw").read_bytes()
    screen = Screen()
    screen.feed(data[: data.index(b"\x1b[?25h")])
    assert screen.row(1).strip() == "GNU GRUB  version 2.06-13+deb12u2"
    assert screen.reversed(4) == "*KB Mini Linux"
    screen.feed(data[screen.offset : data.index(b"Booting a command list")].rpartition(b"\x1b[H")[0])
    assert screen.row(7).strip(" |") == "linux /boot/vmlinuz root=/dev/vda1 ro console=ttyS0,115200 single"


def test_lines_are_told_whole_with_their_place() -> None:
    assert told(b"one\r\n\ntwo \x1b[5;1Hthree\n").lines == [("one", 0, 4), ("two", 6, 16), ("three", 16, 22)]
    long = b"0123456789" * 10
    assert told(long + b"\r\n", columns=30).lines == [(long.decode(), 0, 101)]


def test_a_line_that_is_overwritten_is_told_twice() -> None:
    assert [text for text, _, _ in told(b"waits 1\rwaits 2\r\n").lines] == ["waits 1", "waits 2"]


def test_a_line_longer_than_the_screen_is_told_in_parts() -> None:
    lines = told(b"x" * 3000 + b"\r\nnext\r\n", columns=20).lines
    assert [text for text, _, _ in lines][-1] == "next"
    assert all(len(text) <= 20 * 8 for text, _, _ in lines)
    assert sum(len(text) for text, _, _ in lines[:-1]) == 3000


def test_prompts_are_told_when_they_are_whole() -> None:
    assert told(b"a\r\nweb1 login: root\r\n").prompts == [("web1 login: ", 3, 15)]
    assert told(b"\x1b[1m#\x1b[0m ls # x").prompts == [("# ", 4, 10), ("# ls # ", 4, 15)]


def test_bytes_that_are_no_utf_8_are_code_page_437() -> None:
    assert shown("Boot…".encode() + b" \xda\xc4\xc4\xd9 \xe2\x94")[0] == "Boot… ┌──┘"
    assert shown(b"\xe2\x94\xe2\x94\x80.")[0] == "Γö─."
    assert shown(b"\xe2\r\nx")[:2] == ["Γ", "x"]


def test_noise_that_begins_a_string_does_not_hide_what_follows() -> None:
    assert shown(b"\x1b]0;title\x07A\x1b]1;t\x1b\\B\x1bP\nC")[:2] == ["AB", "  C"]
    assert shown(b"\x1b]" + b"x" * MAX_STRING + b"seen")[0] == "seen"
    assert shown(b"\x1b[" + b"1" * 70 + b"A")[0].endswith("A")


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
@settings(max_examples=300)
def test_no_input_is_an_error_and_pieces_do_not_matter(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[begin:end] for begin, end in pairwise(places)]
    whole, parts = Told(), Told()
    one, other = Screen(whole, columns=20, rows=5), Screen(parts, columns=20, rows=5)
    one.feed(data)
    for piece in pieces:
        other.feed(piece)
    assert (one.display(), one.x, one.y) == (other.display(), other.x, other.y)
    assert (whole.lines, whole.prompts) == (parts.lines, parts.prompts)
    assert len(one.display()) == 5
    assert all(len(row) <= 20 for row in one.display())


HOSTILE = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from(TOKENS),
        st.builds(
            lambda numbers, final: b"\x1b[" + b";".join(b"%d" % n for n in numbers) + final,
            st.lists(st.integers(0, 10**12), max_size=20),
            st.sampled_from([bytes([final]) for final in range(0x40, 0x7F)]),
        ),
        st.builds(
            lambda sign, number: b"\x1b[" + sign + b"%dm" % number,
            st.sampled_from([b"?", b">"]),
            st.integers(0, 99),
        ),
    ),
    max_size=40,
)


@given(HOSTILE)
@settings(max_examples=300)
def test_any_control_sequence_leaves_a_screen_of_its_size(tokens: list[bytes]) -> None:
    watcher = Told()
    screen = Screen(watcher, columns=20, rows=5)
    data = b"".join(tokens)
    for at in range(len(data)):
        screen.feed(data[at : at + 1])
    assert len(screen.display()) == 5
    assert all(len(row) <= 20 for row in screen.display())
    assert 0 <= screen.x < 20
    assert 0 <= screen.y < 5
    other = Told()
    whole = Screen(other, columns=20, rows=5)
    whole.feed(data)
    assert whole.display() == screen.display()
    assert (other.lines, other.prompts) == (watcher.lines, watcher.prompts)
    starts = [start for _, start, _ in watcher.lines]
    assert all(0 <= start < end <= len(data) for _, start, end in watcher.lines), starts
