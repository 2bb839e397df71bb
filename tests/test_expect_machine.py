"""A script on its way, without a line or a clock: what it sends, sees and does when time or the line runs out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kbridge.expect.machine import MAX_STEPS, SEEN_CHARS, Break, Entry, Keys, Machine, State
from kbridge.expect.script import read
from kbridge.expect.text import MAX_SEQUENCE, ConsoleText
from kbridge.frontends.log_text import PlainText

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Run:
    """A run, its clock, and a console whose bytes wait until they are wanted."""

    def __init__(self, text: str, secrets: Mapping[str, str] | None = None, **values: str) -> None:
        self.machine = Machine(read(text, values, secrets))
        self.now = 100.0
        self.waiting = b""
        self.sent: list[tuple[float, bytes]] = []
        self.breaks: list[str | None] = []
        self.entries: list[Entry] = []
        self.machine.start(self.now)
        self._take()

    def say(self, data: bytes) -> None:
        self.machine.stirred(self.now)
        self.waiting += data
        self._take()

    def _take(self) -> None:
        while (self.machine.wants_bytes and self.waiting) or self._carry_out():
            self.waiting = self.waiting[self.machine.receive(self.waiting, self.now) :]

    def _carry_out(self) -> bool:
        effects = self.machine.effects()
        for effect in effects:
            if isinstance(effect, Keys):
                self.sent.append((round(self.now - 100, 6), effect.data))
                self.machine.written(self.now)
            elif isinstance(effect, Break):
                self.breaks.append(effect.sysrq)
            else:
                self.entries.append(effect)
        return bool(effects)

    def sleep(self, seconds: float) -> None:
        """Let time go by, as one does who keeps the deadlines."""
        until = self.now + seconds
        while (deadline := self.machine.deadline) is not None and deadline <= until:
            assert deadline >= self.now
            self.now = deadline
            self.machine.tick(self.now)
            self._take()
        self.now = until

    def lose_line(self) -> None:
        self.machine.line_lost("hung up", self.now)
        self._take()

    @property
    def keys(self) -> bytes:
        return b"".join(data for _, data in self.sent)

    @property
    def state(self) -> State | None:
        return None if self.machine.outcome is None else self.machine.outcome.state

    @property
    def what(self) -> str:
        assert self.machine.outcome is not None
        return self.machine.outcome.what

    @property
    def why(self) -> str:
        assert self.machine.outcome is not None
        return self.machine.outcome.why

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.entries]


LOGIN = """
pace off
secret PW
start:
    send "\\r"
    wait 30s
        on "login:" goto name
        on /^[$#] / goto shell
        on timeout fail "nobody asks" "is the console on this line?"
name:
    send "root\\r"
    wait "Password:" 5s
    send-secret PW
    send "\\r"
    wait 10s
        on /incorrect/i fail "the password is wrong"
        on /[$#] / next
shell:
    done "a shell"
"""


def login() -> Run:
    return Run(LOGIN, {"PW": "geheim"})


def test_a_branch_is_taken_by_what_comes_first() -> None:
    one = login()
    one.say(b"\r\ndebian login: ")
    one.say(b"root\r\nPassword: ")
    one.say(b"\r\nLogin incorrect\r\nlogin: ")
    assert (one.state, one.what) == (State.FAILED, "the password is wrong")
    assert one.why == "line 15 (name) saw /incorrect/i"
    assert one.keys == b"\rroot\rgeheim\r"

    other = login()
    other.say(b"\r\n\x1b[6n\x1b[?2004h# ")
    assert (other.state, other.what) == (State.DONE, "a shell")
    assert other.kinds() == ["sent", "waits", "saw", "end"]
    assert other.entries[2].fields["then"] == "goto shell"


def test_a_time_out_is_a_branch_or_a_failure_with_what_came_last() -> None:
    one = login()
    one.sleep(29.9)
    assert one.state is None
    one.sleep(0.2)
    assert one.what == "nobody asks"
    assert one.machine.outcome is not None
    assert one.why == "line 6 (start) did not see what it waited for within 30 s"
    assert one.machine.outcome.todo == "is the console on this line?"

    other = login()
    other.say(b"login:\r\n")
    other.say(b"\x1b[31mkernel panic\x1b[0m\r\n")
    other.sleep(6)
    assert other.what == '"Password:" did not come within 5 s'
    assert "line 12 (name)" in other.why
    assert '"\\nkernel panic\\n"' in other.why


def test_what_comes_while_it_does_not_look_is_looked_at_later() -> None:
    run = Run('wait "a"\nsend "12345678901234567890"\nwait "b"\nwait "c"\nquiet 1s 9s\nwait "d"\ndone')
    run.say(b"aabcd")
    assert run.state is None
    run.sleep(0.1)
    assert run.machine.line == 5
    run.sleep(1)
    assert run.state is State.DONE


def test_a_match_begins_behind_the_one_before() -> None:
    run = Run('wait "ab"\nwait "bc" 1s\n  on timeout done "not twice"')
    run.say(b"abc")
    run.sleep(1)
    assert run.what == "not twice"


def test_keys_are_paced_within_and_between_sends() -> None:
    run = Run('pace 4 10ms\nsend "0123456789"\nsend "ab"\nsend "c"\ndone')
    run.sleep(1)
    assert run.sent == [(0, b"0123"), (0.01, b"4567"), (0.02, b"89"), (0.03, b"ab"), (0.04, b"c")]
    assert run.state is State.DONE


def test_the_pace_by_default_fits_a_queue_of_16_bytes_at_115200_baud() -> None:
    run = Run(f'send "{"x" * 100}"')
    run.sleep(1)
    for (before, _), (after, data) in zip(run.sent, run.sent[1:], strict=False):
        # Never more than half of the queue, and the line has carried it before the next half comes.
        assert len(data) <= 8
        assert after - before >= 8 * 10 / 115200


def test_quiet_is_for_so_long_nothing() -> None:
    run = Run("quiet 300ms 2s\ndone")
    for _ in range(5):
        run.sleep(0.2)
        run.say(b".")
    assert run.state is None
    run.sleep(0.31)
    assert run.state is State.DONE
    noisy = Run("quiet 300ms 2s\ndone")
    for _ in range(11):
        noisy.sleep(0.2)
        noisy.say(b".")
    assert noisy.what == "the console was not quiet for 300 ms within 2 s"


def test_break_is_sent_and_waited_for() -> None:
    run = Run('send-break "w"\nsend-break\ndone')
    run.sleep(5)
    assert run.machine.line == 1
    for _ in range(2):
        run.machine.written(run.now)
        run._take()
    assert run.state is State.DONE
    assert run.breaks == ["w", None]
    assert [entry.fields["keys"] for entry in run.entries if entry.kind == "sent"] == ["BREAK w", "BREAK"]
    other = Run("send-break")
    other.machine.not_sent("this kind of line has none", other.now)
    assert other.what == "the keys of line 1 could not be sent"


def test_a_lost_line_is_a_branch_or_a_failure() -> None:
    run = Run('wait "a"\n  on lost goto again\ndone\nagain:\nwait "b" 5s\ndone "back"')
    run.lose_line()
    assert run.state is None
    run.say(b"b")
    assert run.what == "back"
    other = Run('wait "a"')
    other.lose_line()
    assert other.what == "the line was lost: hung up"


def test_raw_patterns_see_escape_sequences_and_others_do_not() -> None:
    run = Run('wait raw "\\e[6n"\nwait raw /\\xda\\xc4+\\xbf/\nwait "plain text"\ndone')
    run.say(b"\x1b[6")
    run.say(b"n\xda\xc4\xc4\xbf")
    run.say(b"pl\x1b[1main\x1b[0m te\x07xt")
    assert run.state is State.DONE


def test_a_loop_without_an_end_is_ended() -> None:
    run = Run("again:\ngoto again")
    assert run.state is State.FAILED
    assert str(MAX_STEPS) in run.what


def test_the_whole_has_a_limit() -> None:
    run = Run('limit 10s\nagain:\nwait "x" 3s\n  on timeout goto again')
    run.sleep(20)
    assert run.what == "it took longer than 10 s"


def test_the_pen_and_the_order_to_stop_end_it() -> None:
    run = login()
    run.machine.pen_taken("ben", run.now)
    assert (run.state, run.what) == (State.FAILED, "ben took the pen")
    other = login()
    other.machine.cancel("who ran it is gone", other.now)
    other.machine.cancel("again", other.now)
    assert (other.state, other.what) == (State.CANCELLED, "who ran it is gone")
    assert other.machine.deadline is None
    other.machine.tick(other.now + 1e6)
    assert other.machine.receive(b"login:", other.now) == 0


def test_words_of_the_line_are_in_the_transcript() -> None:
    run = login()
    run.machine.notice("kgdb holds the guest", run.now)
    run.say(b"login:")
    notice = run.entries[2]
    assert (notice.kind, notice.line, notice.fields) == ("notice", 6, {"text": "kgdb holds the guest"})


def test_text_that_is_missing_joins_nothing() -> None:
    run = Run('wait "login:" 5s')
    run.say(b"log")
    run.machine.gap(1000, run.now)
    run.say(b"in:")
    assert run.state is None
    run.say(b" login:")
    assert run.state is State.DONE


@given(st.text("ge\\him\r\n \x1b", min_size=1, max_size=12), st.lists(st.binary(max_size=9), max_size=9))
def test_no_entry_has_a_secret(secret: str, pieces: list[bytes]) -> None:
    secret = "s3" + secret
    run = Run('secret PW\nsend-secret PW\nwait "never" 1s', {"PW": secret})
    run.sleep(0.1)
    for piece in pieces:
        run.say(piece + secret.encode() + piece)
    run.sleep(1)
    assert run.keys == secret.encode()
    assert run.state is State.FAILED
    assert secret not in repr([run.entries, run.machine.outcome])


# Any bytes, split anywhere.

SCRIPTS = [
    'wait "a"\nsend "1"\nwait "b"\nsend "2"\nwait raw "\\e["\nsend "3"\nwait /^c/\ndone',
    'again:\nwait\n  on /[ab]{2}c/ goto again\n  on "\\n" fail "end"\n  on raw /\\xc3/ next\nsend "x"\ngoto again',
    'wait /é/\nwait /^./\nwait "b"\nwait "c"\ndone',
]
PIECES = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [
                b"a",
                b"b",
                b"c",
                b"abc\r\n",
                b"\r\r\n",
                b"\x1b[",
                b"1;31m",
                b"\x1b]0;t",
                b"\x07",
                b"\xc3",
                b"\xa9",
            ]
        ),
    ),
    max_size=30,
)


def transcript(script: str, pieces: Iterable[bytes]) -> tuple[list[Entry], bytes, bytes]:
    run = Run("pace off\n" + script)
    for piece in pieces:
        run.say(piece)
    return run.entries, run.keys, run.waiting


@given(st.sampled_from(SCRIPTS), PIECES)
@example(SCRIPTS[2], [b"\xc3\xa9\r\nb\x1b]c\n"])
def test_splits_make_no_difference(script: str, pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    whole = transcript(script, [data])
    assert transcript(script, pieces) == whole
    assert transcript(script, [data[at : at + 1] for at in range(len(data))]) == whole


ACTIONS = ["next", "goto one", "goto two", "done", 'fail "no" "try"']
PATTERNS = ['"a"', "/[ab]c/", 'raw "\\e["', "/^b/i", '"\\xff"']
STATEMENTS = st.one_of(
    st.sampled_from(
        ['send "x"', 'send "long enough for two"', "send-break", "goto two", "quiet 1s 3s", "goto one"]
    ),
    st.tuples(
        st.lists(
            st.tuples(st.sampled_from([*PATTERNS, "timeout", "lost"]), st.sampled_from(ACTIONS)), min_size=1
        ),
    ).map(
        lambda found: (
            "wait 2s\n" + "\n".join(f"on {what} {action}" for what, action in dict(found[0]).items())
        )
    ),
)
EVENTS = st.one_of(
    st.sampled_from([b"a", b"ac", b"bc\r\n", b"\x1b[", b"\xff", b"\x1b]x", b"\xc3"]),
    st.sampled_from(["lose", "gap", "break", "refuse", "notice"]),
    st.floats(0, 4),
)


@given(st.lists(STATEMENTS, max_size=5), st.lists(STATEMENTS, max_size=5), st.lists(EVENTS, max_size=20))
def test_whatever_happens_it_has_a_deadline_or_an_end(
    one: list[str], two: list[str], events: list[bytes | str | float]
) -> None:
    run = Run("\n".join(["pace 8 5ms", "limit 1m", "one:", *one, "two:", *two, "done"]))
    for event in events:
        assert (run.machine.deadline is None) == (run.state is not None)
        assert run.machine.deadline is None or run.machine.deadline >= run.now
        match event:
            case bytes():
                run.say(event)
            case "lose":
                run.lose_line()
            case "gap":
                run.machine.gap(9, run.now)
            case "break":
                run.machine.written(run.now)
            case "refuse":
                run.machine.not_sent("full", run.now)
            case "notice":
                run.machine.notice("words", run.now)
            case float():
                run.sleep(event)
        run._take()
        assert ("end" in run.kinds()) == (run.state is not None)
        assert "end" not in run.kinds()[:-1]
    run.sleep(61)
    assert run.state is not None
    assert run.kinds().index("end") == len(run.entries) - 1


CAPTURES = {
    "grub-bios-single": 'wait "GNU GRUB"\nwait /automatically in \\d+s/\nwait /Linux version [\\d.]+/\ndone "a kernel"',
    "panic": 'again:\nwait\n on /^\\/ # / goto again\n on /Kernel panic - [^\\n]*\\n/ done "a panic"',
    "tcg-virtio": 'wait /Linux version/\nwait raw "\\e[6n"\nwait raw "never" 5s\n on timeout done "a shell"',
    "uboot-arm64": 'wait /^Hit any key.*: +\\d/\nsend " "\nwait /^=> /\ndone "a prompt"',
    "uboot-x86_64": 'wait /^Hit any key.*: +\\d/\nsend " "\nwait /^=> /\ndone "a prompt"',
}


@pytest.mark.parametrize("name", CAPTURES)
def test_real_consoles_give_the_same_however_they_are_split(name: str) -> None:
    data = (Path(__file__).parent / "data" / "console" / f"{name}.raw").read_bytes()
    script = CAPTURES[name]
    runs = []
    for size in (len(data), 1, 7, 128, 4096):
        run = Run("pace off\n" + script)
        for start in range(0, len(data), size):
            run.say(data[start : start + size])
        run.sleep(10)
        runs.append((run.entries, run.sent))
        assert run.state is State.DONE, run.what
    assert all(one == runs[0] for one in runs)


@given(st.binary(max_size=200))
def test_text_has_nothing_but_characters_and_line_ends(data: bytes) -> None:
    console = ConsoleText()
    text = "".join(console.feed(data[at : at + 1]) for at in range(len(data)))
    assert not any((char < " " and char not in "\n\t") or "\x7f" <= char <= "\x9f" for char in text)
    assert "".join(char for char in text if char.isascii()).isprintable() or "\n" in text or "\t" in text


@given(
    st.lists(
        st.sampled_from(
            ["login: ", "é", "\r\n", "\r\r\n", "\x1b[1;31m", "\x1b[6n", "\x1b]0;x\x07", "\x1bM", "\b"]
        )
    )
)
def test_text_is_what_the_log_shows(parts: list[str]) -> None:
    from kbridge.console.log import Text

    data = "".join(parts).encode() + b"."
    console = ConsoleText()
    text = "".join(console.feed(data[at : at + 1]) for at in range(len(data)))
    assert text == PlainText().feed(Text(0, 0, data))


def test_a_sequence_without_an_end_hides_nothing_for_long() -> None:
    run = Run('wait "login:" 5s')
    run.say(b"\x1b]0;" + b"x" * MAX_SEQUENCE + b"login:")
    assert run.state is State.DONE
    other = Run('wait "login:" 5s')
    other.say(b"\x1b]junk\r\nlogin:")
    assert other.state is State.DONE


def test_a_flood_is_not_kept() -> None:
    run = Run('wait "never"')
    for _ in range(50):
        run.say(b"x" * 4096)
    assert len(run.machine._seen) <= 2 * SEEN_CHARS
    run.sleep(31)
    assert len(run.why) < 400


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_has_a_deadline_as_long_as_it_has_no_end(script: str) -> None:
    run = Run(script)
    for data in (b"a", b"b", b"\x1b[", b"c\r\n", b"\xc3\xa9"):
        assert (run.machine.deadline is None) == (run.state is not None)
        run.say(data)
    run.sleep(24 * 3600)
    assert run.state is not None
