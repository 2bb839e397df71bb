"""The language of scripts: what is understood, and that all mistakes are named at once, each with its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import ScriptError, ScriptMistake
from kbridge.expect.script import (
    MAX_STATEMENTS,
    MAX_TEXT,
    Act,
    End,
    Goto,
    Pace,
    Quiet,
    Send,
    Wait,
    quoted,
    read,
    secret_names,
)

COMMANDS = [
    "wait",
    "on",
    "send",
    "send-secret",
    "goto",
    "done",
    "fail",
    "quiet",
    "timeout",
    "limit",
    "pace",
    "var",
]
OTHERS = [
    "secret",
    "raw",
    "next",
    "lost",
    "off",
    '"a\\r"',
    '"${A}"',
    '"',
    "/a+/",
    "/(/",
    "/x/i",
    "30s",
    "5",
    "1ms",
]
WORDS = st.sampled_from([*COMMANDS, *OTHERS, "A", "one", "one:", "#", "\n", "\n", "\n", "\\", "é"])


def mistakes(text: str, **given: dict[str, str]) -> list[tuple[int, str]]:
    with pytest.raises(ScriptError) as caught:
        read(text, **given)
    return [(one.line, one.words) for one in caught.value.mistakes]


@given(st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=40).map(" ".join)))
def test_any_text_is_a_script_or_refused_in_words(text: str) -> None:
    wrong: tuple[ScriptMistake, ...] = ()
    try:
        script = read(text)
    except ScriptError as error:
        wrong = error.mistakes
        assert wrong
        lines = text.count("\n") + 1
        assert all(0 <= one.line <= lines and one.words for one in wrong)
        return
    for statement in script.statements:
        for target in targets(statement):
            assert 0 <= target <= len(script.statements)


def targets(statement: object) -> list[int]:
    match statement:
        case Wait():
            actions = [*(one.action for one in statement.branches), statement.timeout, statement.lost]
        case Act():
            actions = [statement.action]
        case _:
            return []
    return [one.to for one in actions if isinstance(one, Goto)]


def test_a_script_is_what_it_says() -> None:
    script = read(
        """
        timeout 2m        # for waits that say nothing else
        pace 4 10ms
        limit 1h
        var USER "root"
        var HOST
        secret PW
        start:
            send "${USER}" "@${HOST}\\r\\x03\\xe9 # no remark"
            wait "a \\"quoted\\" word" 500ms
              on /^(a|b)\\/${HOST}/i goto start
              on raw "\\x1b[6n" next
              on timeout fail "no" "do this"
              on lost done
            wait /x/
            send-secret PW
            quiet 300ms 5s
            quiet 1s
            goto start
        """,
        {"HOST": "a.b"},
        {"PW": "geheim"},
    )
    assert script.pace == Pace(4, 0.01)
    assert script.limit_seconds == 3600
    assert script.secrets == ("geheim",)
    send, wait, second, secret, quiet, longer, goto = script.statements
    assert isinstance(send, Send)
    assert send.data == b"root@a.b\r\x03\xe9 # no remark"
    assert send.shown == '"root@a.b\\r\\x03\\xe9 # no remark"'
    assert (send.line, send.step) == (9, "start")
    assert isinstance(wait, Wait)
    assert wait.seconds == 0.5
    shown = [branch.pattern.shown for branch in wait.branches]
    assert shown == ['"a \\"quoted\\" word"', "/^(a|b)/a\\.b/i", 'raw "\\e[6n"']
    assert [branch.action for branch in wait.branches] == [
        Goto(2, "next"),
        Goto(0, "goto start"),
        Goto(2, "next"),
    ]
    assert wait.timeout == End(False, "no", "do this")
    assert wait.lost == End(True, "")
    assert isinstance(second, Wait)
    assert second.seconds == 120
    assert isinstance(secret, Send)
    assert (secret.data, secret.shown) == (b"geheim", "***")
    assert quiet == Quiet(17, "start", 0.3, 5)
    assert longer == Quiet(18, "start", 1, 120)
    assert goto == Act(19, "start", Goto(0, "goto start"))
    assert "geheim" not in repr(script)


def test_all_mistakes_are_named_at_once() -> None:
    found = mistakes(
        'wait "login: 30s\n'
        'sned "x"\n'
        "wait 5x\n"
        "  on /(/ next\n"
        "goto nowhere\n"
        "start:\n"
        '  on "x" next\n'
        "start:\n"
        'send "${USRE}"\n'
        'var USER "root"\n'
        "secret PW\n"
        'send "${PW}"\n'
        "send-secret PWD\n"
        'send "\\q"\n',
        values={"USR": "x"},
    )
    expected = [
        (0, "no variable USR (is it USER?)"),
        (1, 'no closing "'),
        (2, "no command sned (is it send?)"),
        (3, "'5x' is no time"),
        (4, "there is none"),
        (5, "there is no step nowhere"),
        (7, "the wait before it, and there is none"),
        (8, "a step start already, in line 6"),
        (9, "(is it USER?)"),
        (11, "PW has no value: give it with --secret PW"),
        (12, "only send-secret sends it"),
        (13, "no secret PWD (is it PW?)"),
        (14, "\\q is not known"),
    ]
    assert [line for line, _ in found] == [line for line, _ in expected]
    for (_, words), (_, part) in zip(found, expected, strict=True):
        assert part in words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing in it to do"),
        ("# only a remark", "nothing in it to do"),
        ("wait 5s", "waits for nothing"),
        ('wait "a\\r\\n"', "never seen"),
        ('wait ""', "cannot be empty"),
        ("wait /a/x", "i alone"),
        ("wait /a{200}b{200}/\n on /c{255}d{255}e{255}/ next", "too large"),
        ("wait /a/ 0s", "too short"),
        ("wait /a/ 25h", "too long"),
        ("wait /a/ 1s 2s", "takes a time at the end"),
        ('send-break "ww"', "one letter or digit"),
        ("send-break w", "one letter or digit"),
        ("quiet 2s 1s", "a longer time"),
        ("pace 0 5ms", "pace takes"),
        ("timeout 5s\ntimeout 6s", "there already"),
        ('var A "1"\nsecret A', "there already"),
        ("var A", "give it with --set A="),
        ("fail", "words in quotes"),
        ("goto", "a step's name"),
        ("on timeout", "there is none"),
        ("wait /a/\n on timeout next\n on timeout next", "already"),
        ("wait /a/\n on timeout sleep", "one of: next"),
        ("a b:", "not understood"),
        ('"a"', "begins with"),
        ("'quoted'", "not understood"),
        ("x" * (MAX_TEXT + 1), "at most"),
        ("done\n" * (MAX_STATEMENTS + 1), "at most"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    assert any(words in each for _, each in mistakes(text))


@given(st.text(max_size=20))
def test_a_value_is_looked_for_as_it_is(value: str) -> None:
    text = 'var V\nwait /x${V}x/\nsend "${V}."'
    wait, send = read(text, {"V": value}).statements
    assert isinstance(wait, Wait)
    assert isinstance(send, Send)
    assert send.data == (value + ".").encode("utf-8", "surrogateescape")


@given(st.text())
def test_quoted_text_does_nothing_to_a_terminal(text: str) -> None:
    shown = quoted(text)
    assert all(char >= " " and not "\x7f" <= char <= "\x9f" for char in shown)
    shown.encode()


@given(st.binary(max_size=20))
def test_bytes_are_quoted_so_that_a_script_can_have_them(data: bytes) -> None:
    shown = quoted("x" + data.decode("utf-8", "surrogateescape"))
    if "\\u" in shown or any(
        ord(char) in range(0x80, 0xA0) for char in data.decode("utf-8", "surrogateescape")
    ):
        return
    (send,) = read("send " + shown.replace("$", "\\$")).statements
    assert isinstance(send, Send)
    assert send.data == b"x" + data


def test_the_secrets_of_a_script_are_known_before_it_is_read() -> None:
    assert secret_names("secret A\n  secret\tB # x\nsecret A\nsend-secret C\n(") == ("A", "B")
