"""Expressions against the standard library's, and what only ours must do: answer at once, and in bounded time."""

from __future__ import annotations

import re
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.expect.patterns import MAX_STATES, Matcher, PatternError, literal, parse

ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "\\w", "\\s", "\\n", "[a-b\\n]", "c", "\\."])
REPEATS = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}"])
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, REPEATS).map(lambda two: f"({two[0]}){two[1]}"),
    ),
    max_leaves=6,
)
TEXTS = st.text("ab.c\n _", max_size=14)


def first_end(expression: str, text: str) -> int | None:
    """Where the first match ends, by trying every place with the standard library."""
    pattern = re.compile(expression, re.MULTILINE)
    for end in range(1, len(text) + 1):
        if any(pattern.fullmatch(text, start, end) for start in range(end)):
            return end
    return None


@given(st.booleans(), EXPRESSIONS, TEXTS)
def test_the_first_match_that_ends_is_found(anchored: bool, expression: str, text: str) -> None:
    expression = f"^(?:{expression})" if anchored else expression
    try:
        node = parse(expression)
    except PatternError as error:
        assert "where nothing is" in str(error)  # noqa: PT017
        assert re.fullmatch(expression, "", re.MULTILINE)
        return
    found = Matcher([node], line_start=True).run(text)
    assert (None if found is None else found[0]) == first_end(expression, text)


@given(EXPRESSIONS, st.lists(TEXTS, max_size=5))
def test_splits_make_no_difference(expression: str, pieces: list[str]) -> None:
    try:
        node = parse(expression)
    except PatternError:
        return
    whole = Matcher([node], line_start=False).run("".join(pieces))
    matcher, taken = Matcher([node], line_start=False), 0
    for piece in pieces:
        found = matcher.run(piece)
        if found is not None:
            assert whole == (taken + found[0], 0)
            return
        taken += len(piece)
    assert whole is None


@given(st.text(max_size=30))
def test_any_text_is_an_expression_or_refused_in_words(text: str) -> None:
    try:
        parse(text)
    except PatternError as error:
        assert str(error)  # noqa: PT017


@given(st.text(min_size=1, max_size=10), st.text(max_size=10))
def test_a_literal_is_found_as_it_is(text: str, before: str) -> None:
    found = Matcher([literal(text)], line_start=False).run(before + text)
    assert found == ((before + text).index(text) + len(text), 0)


def test_the_first_of_those_that_end_together_counts() -> None:
    assert Matcher([literal("in:"), literal("login:")], line_start=False).run("login: ") == (6, 0)
    assert Matcher([literal("login:"), literal("in:")], line_start=False).run("login: ") == (6, 0)
    assert Matcher([literal("login: "), literal("in:")], line_start=False).run("login: ") == (6, 1)


@pytest.mark.parametrize("expression", ["(a+)+b", "(a|aa)+b", "(a*)*b", "(.*)(.*)(.*)b", ".*a.{250}b"])
def test_no_expression_makes_it_slow(expression: str) -> None:
    # With backtracking the first three would take longer than the universe is old.
    assert Matcher([parse(expression)], line_start=False).run("a" * 20_000 + "c") is None


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("a$", "more may come"),
        ("(a", "no )"),
        ("a)", "without its ("),
        ("*a", "nothing before it"),
        ("a**", "put that in ( )"),
        ("a{3,2}", "smaller number first"),
        ("a{x}", "takes a number"),
        ("a{1000}", "counts from"),
        ("[a", "no ]"),
        ("[b-a]", "goes from"),
        ("[\\W]", "cannot stand"),
        ("\\q", "not known"),
        ("\\x4", "two hexadecimal"),
        ("(?=a)", "look-ahead"),
        ("a*", "where nothing is"),
        ("^", "where nothing is"),
        ("a|", "where nothing is"),
        ("(" * 40 + "a" + ")" * 40, "nested"),
        ("(a{200}){200}", str(MAX_STATES)),
        ("(((((){255}){255}){255}){255}){255}a", str(MAX_STATES)),
        ("a\\", "ends with"),
    ],
)
def test_what_is_wrong_is_said(expression: str, words: str) -> None:
    with pytest.raises(PatternError, match=re.escape(words)):
        parse(expression)


def test_what_is_remembered_is_bounded() -> None:
    matcher = Matcher([parse(".*a.{100}never")], line_start=True)
    text = "".join("ab"[zlib.crc32(b"%d" % number) & 1] for number in range(6000))
    tracemalloc.start()
    try:
        assert matcher.run(text) is None
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_case_can_be_ignored() -> None:
    for text in ("panic", "PANIC", "Panic"):
        assert Matcher([parse("p[a]nic", folded=True)], line_start=False).run(text) == (5, 0)
        assert (Matcher([parse("p[a]nic")], line_start=False).run(text) is not None) == (text == "panic")


def test_bytes_have_no_letters_beyond_them() -> None:
    with pytest.raises(PatternError, match="no byte"):
        parse("é", raw=True)
    assert Matcher([parse("\\xda+", raw=True)], line_start=False).run("x\xda") == (2, 0)
