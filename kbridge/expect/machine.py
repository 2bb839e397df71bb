r"""A script on its way: bytes and time in; keys to send, words for the transcript and the outcome out.

in          bytes of the console (``receive``), that some came (``stirred``), what was lost, time (``tick``), what
            became of keys, the loss of the line or the pen, an order to stop (``cancel``)
out         ``effects``: keys for the line, entries of the transcript; ``deadline``; ``outcome`` at the end
states      sending (keys wait for their pace) · waiting for text · waiting for quiet · ended
invariant   every state but the last has a deadline; no more than ``MAX_STEPS`` statements are carried out;
            nothing is kept of what came but its last ``SEEN_CHARS`` characters and at most one escape sequence

Bytes are taken only while the script waits for text: what comes meanwhile is looked at by the next wait, and so
are bytes after the match, of which ``receive`` leaves the rest to its caller.  The time is the caller's, in
seconds from anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, assert_never

from kbridge.expect.patterns import Matcher
from kbridge.expect.script import MASK, MAX_VALUE, Act, End, Goto, Quiet, Send, SendBreak, Wait, quoted
from kbridge.expect.text import ConsoleText

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbridge.expect.script import Action, Script, Statement

MAX_STEPS: Final = 10_000
SEEN_CHARS: Final = 8 * MAX_VALUE
_SHOWN_CHARS: Final = 200


class State(Enum):
    """How a run ended."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run: what, why, and what to do next."""

    state: State
    what: str
    why: str = ""
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a transcript.

    ``kind``: ``waits`` (begins to wait), ``saw``, ``timeout``, ``lost`` (the line), ``gap`` (of text), ``quiet``,
    ``sent``, ``notice`` (words of the line), ``end``.  The console's text is as ``quoted`` has it: nothing in it
    acts on a terminal.
    """

    kind: str
    line: int
    step: str
    elapsed: float
    """Seconds since the run began."""
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Keys:
    """Bytes for the line, to be sent now; ``written`` or ``not_sent`` is the answer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Break:
    """BREAK for the line, and a SysRq key after it; answered as ``Keys`` are, some time later."""

    sysrq: str | None


Effect = Keys | Break | Entry


class _Phase(Enum):
    GOING = auto()
    SENDING = auto()
    WAITING = auto()
    QUIET = auto()
    ENDED = auto()


class Machine:
    """One run of a script."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._at = 0
        self._phase = _Phase.GOING
        self._began = 0.0
        self._since = 0.0
        """When the present statement began."""
        self._stirred = 0.0
        self._ready = 0.0
        """When the next keys may be sent."""
        self._out = b""
        self._steps = 0
        self._effects: list[Effect] = []
        self._console = ConsoleText()
        self._matcher: Matcher | None = None
        self._raw: Matcher | None = None
        self._text_branches: tuple[int, ...] = ()
        self._raw_branches: tuple[int, ...] = ()
        self._pending = ""
        """Characters that came with the last byte and were not looked at."""
        self._seen = ""
        self._cause = ""
        """What led to the branch that was taken last."""
        self._line_start = True
        self._raw_line_start = True
        self.outcome: Outcome | None = None
        """How it ended; ``None`` while it goes on."""

    @property
    def wants_bytes(self) -> bool:
        """Whether the console's bytes are looked at now."""
        return self._phase is _Phase.WAITING

    @property
    def line(self) -> int:
        """The line of the script that is carried out."""
        return 0 if self._statement is None else self._statement.line

    @property
    def step(self) -> str:
        """The step that is carried out."""
        return "" if self._statement is None else self._statement.step

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is to be called, unless something else happens before; ``None`` after the end."""
        end = self._began + self._script.limit_seconds
        match self._phase:
            case _Phase.ENDED:
                return None
            case _Phase.SENDING:
                return min(end, self._ready) if self._out else end
            case _Phase.WAITING:
                assert isinstance(self._statement, Wait)
                return min(end, self._since + self._statement.seconds)
            case _Phase.QUIET:
                assert isinstance(self._statement, Quiet)
                silent = self._stirred + self._statement.silence
                return min(end, silent, self._since + self._statement.seconds)
            case _Phase.GOING:
                return end
            case _:
                assert_never(self._phase)

    def effects(self) -> list[Effect]:
        """Return what is to be done since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    # Events.

    def start(self, now: float) -> None:
        """Begin."""
        self._began = self._since = self._ready = now
        self._go(now)

    def receive(self, data: bytes, now: float) -> int:
        """Take bytes of the console; return how many, for those behind a match are for the next wait."""
        taken = 0
        while taken < len(data) and self._phase is _Phase.WAITING:
            end = taken if self._raw is not None else self._console.plain_run(data, taken)
            if end > taken:
                taken += self._scan(data[taken:end].decode("ascii"), now)
                self._raw_line_start = False
            else:
                taken += 1
                self._take_byte(data[taken - 1 : taken], now)
            self._go(now)
        return taken

    def stirred(self, now: float) -> None:
        """Note that the console said something, whoever looks at it."""
        self._stirred = now

    def gap(self, lost: int, now: float) -> None:
        """Note that so many bytes came that will not be received."""
        if self._phase is _Phase.ENDED:
            return
        self._console.reset()
        self._pending = ""
        self._seen = ""
        self._note("gap", now, lost=lost)
        if isinstance(self._statement, Wait) and self._phase is _Phase.WAITING:
            self._look(self._statement)

    def tick(self, now: float) -> None:
        """Take the time."""
        statement = self._statement
        if self._phase is _Phase.ENDED:
            return
        if now >= self._began + self._script.limit_seconds:
            self._fail(
                now,
                f"it took longer than {seconds(self._script.limit_seconds)}",
                why=self._where(),
                todo="give it more by `limit`, if it is to",
            )
        elif self._phase is _Phase.SENDING:
            if self._out and now >= self._ready:
                self._send(now)
        elif isinstance(statement, Wait) and now >= self._since + statement.seconds:
            self._timed_out(statement, now)
        elif isinstance(statement, Quiet):
            self._quiet(statement, now)

    def notice(self, words: str, now: float) -> None:
        """Put words of somebody else into the transcript."""
        if self._phase is not _Phase.ENDED:
            self._note("notice", now, text=words)

    def line_lost(self, reason: str, now: float) -> None:
        """Note that the line is gone."""
        if self._phase is _Phase.ENDED:
            return
        statement = self._statement
        self._console.reset()
        if self._phase is _Phase.WAITING and isinstance(statement, Wait) and statement.lost is not None:
            self._note("lost", now, why=reason, waited=self._waited(now), **_then(statement.lost))
            self._cause = f"{self._where()} lost the line: {reason}"
            self._act(statement.lost, now)
            self._go(now)
        else:
            self._fail(
                now,
                f"the line was lost: {reason}",
                why=self._where(),
                todo="`on lost` goes on where that is to be expected",
            )

    def written(self, now: float) -> None:
        """Note that the line took the keys, or the BREAK, that were to be sent last."""
        if self._phase is _Phase.SENDING and not self._out:
            statement = self._statement
            assert isinstance(statement, Send | SendBreak)
            keys = (
                statement.shown if isinstance(statement, Send) else f"BREAK {statement.sysrq or ''}".rstrip()
            )
            self._note("sent", now, keys=keys)
            self._at += 1
            self._phase = _Phase.GOING
            self._go(now)

    def not_sent(self, words: str, now: float) -> None:
        """Note that keys could not be sent."""
        self._fail(now, f"the keys of line {self.line} could not be sent", why=words)

    def pen_taken(self, holder: str, now: float) -> None:
        """Note that somebody took the pen."""
        self._fail(
            now, f"{holder} took the pen", why=self._where(), todo="run it again when the console is free"
        )

    def cancel(self, why: str, now: float) -> None:
        """Stop."""
        if self._phase is not _Phase.ENDED:
            self._end(Outcome(State.CANCELLED, why, self._where()), now)

    # Statements.

    @property
    def _statement(self) -> Statement | None:
        return self._script.statements[self._at] if self._at < len(self._script.statements) else None

    def _go(self, now: float) -> None:
        """Carry out statements up to one that must wait."""
        while self._phase is _Phase.GOING:
            statement = self._statement
            self._steps += 1
            self._since = now
            if statement is None:
                self._end(Outcome(State.DONE, ""), now)
            elif self._steps > MAX_STEPS:
                self._fail(now, f"it did {MAX_STEPS} things and is not done", why=self._where(), todo=_CIRCLE)
            else:
                self._begin(statement, now)

    def _begin(self, statement: Statement, now: float) -> None:
        match statement:
            case Act():
                self._act(statement.action, now)
            case Send():
                self._out = statement.data
                self._phase = _Phase.SENDING
                if now >= self._ready:
                    self._send(now)
            case SendBreak():
                self._phase = _Phase.SENDING
                self._effects.append(Break(statement.sysrq))
            case Quiet():
                self._phase = _Phase.QUIET
                self._stirred = now
                self._note("waits", now, patterns=["quiet"], seconds=statement.seconds)
            case Wait():
                self._phase = _Phase.WAITING
                patterns = [branch.pattern.shown for branch in statement.branches]
                self._note("waits", now, patterns=patterns, seconds=statement.seconds)
                self._look(statement)
                self._scan_pending(now)
            case _:
                assert_never(statement)

    def _act(self, action: Action, now: float) -> None:
        self._phase = _Phase.GOING
        match action:
            case Goto(to):
                self._at = to
            case End(done, words, todo):
                if done:
                    self._end(Outcome(State.DONE, words), now)
                else:
                    self._fail(now, words, why=self._cause or self._where(), todo=todo)
            case _:
                assert_never(action)

    def _send(self, now: float) -> None:
        pace = self._script.pace
        piece, self._out = self._out[: pace.size], self._out[pace.size :]
        self._effects.append(Keys(piece))
        self._ready = now + pace.seconds

    def _quiet(self, statement: Quiet, now: float) -> None:
        if now >= self._stirred + statement.silence:
            self._note("quiet", now, waited=self._waited(now))
            self._at += 1
            self._phase = _Phase.GOING
            self._go(now)
        elif now >= self._since + statement.seconds:
            self._fail(
                now,
                f"the console was not quiet for {seconds(statement.silence)} within {seconds(statement.seconds)}",
                why=self._where(),
                todo=_SEE,
            )

    def _timed_out(self, statement: Wait, now: float) -> None:
        if statement.timeout is not None:
            self._note(
                "timeout", now, last=self._last(), waited=self._waited(now), **_then(statement.timeout)
            )
            self._cause = (
                f"{self._where()} did not see what it waited for within {seconds(statement.seconds)}"
            )
            self._act(statement.timeout, now)
            self._go(now)
            return
        patterns = " or ".join(branch.pattern.shown for branch in statement.branches) or "nothing"
        self._note("timeout", now, last=self._last(), waited=self._waited(now), then="fail")
        self._fail(
            now,
            f"{patterns} did not come within {seconds(statement.seconds)}",
            why=f"{self._where()}; last came {self._last()}"
            if self._seen
            else f"{self._where()}; nothing came",
            todo=_SEE,
        )

    # Text.

    def _look(self, statement: Wait) -> None:
        numbered = list(enumerate(statement.branches))
        self._text_branches = tuple(number for number, one in numbered if not one.pattern.raw)
        self._raw_branches = tuple(number for number, one in numbered if one.pattern.raw)
        text = [statement.branches[number].pattern.node for number in self._text_branches]
        raw = [statement.branches[number].pattern.node for number in self._raw_branches]
        self._matcher = Matcher(text, line_start=self._line_start)
        self._raw = Matcher(raw, line_start=self._raw_line_start) if raw else None

    def _scan(self, text: str, now: float) -> int:
        """Look at text up to the first match; return how many characters were looked at."""
        assert self._matcher is not None
        found = self._matcher.run(text)
        taken = len(text) if found is None else found[0]
        self._see(text[:taken])
        if found is not None:
            self._saw(self._text_branches[found[1]], now)
        return taken

    def _scan_pending(self, now: float) -> None:
        text, self._pending = self._pending, ""
        if text:
            self._pending = text[self._scan(text, now) :]

    def _take_byte(self, byte: bytes, now: float) -> None:
        self._pending += self._console.feed(byte)
        raw = self._raw.step(byte.decode("latin-1")) if self._raw is not None else None
        self._raw_line_start = byte in b"\r\n"
        if raw is None:
            self._scan_pending(now)
        else:
            self._see(self._pending)
            self._pending = ""
            self._saw(self._raw_branches[raw], now)

    def _saw(self, number: int, now: float) -> None:
        statement = self._statement
        assert isinstance(statement, Wait)
        branch = statement.branches[number]
        self._note(
            "saw",
            now,
            text=self._last(),
            pattern=branch.pattern.shown,
            waited=self._waited(now),
            **_then(branch.action),
        )
        self._seen = ""
        self._cause = f"{self._where()} saw {branch.pattern.shown}"
        self._act(branch.action, now)

    def _see(self, text: str) -> None:
        if text:
            self._line_start = text.endswith("\n")
            self._seen += text
            if len(self._seen) > 2 * SEEN_CHARS:
                self._seen = self._seen[-SEEN_CHARS:]

    def _last(self) -> str:
        """Return the end of what was seen since the last match, without secrets."""
        text = self._seen
        for secret in self._script.secrets:
            text = text.replace(secret, MASK)
        return quoted(text[-_SHOWN_CHARS:])

    # The transcript and the end.

    def _waited(self, now: float) -> float:
        return round(now - self._since, 3)

    def _where(self) -> str:
        step = f" ({self.step})" if self.step else ""
        return f"line {self.line}{step}"

    def _note(self, kind: str, now: float, **fields: Any) -> None:
        self._effects.append(Entry(kind, self.line, self.step, round(now - self._began, 3), fields))

    def _fail(self, now: float, what: str, *, why: str, todo: str = "") -> None:
        if self._phase is not _Phase.ENDED:
            self._end(Outcome(State.FAILED, what, why, todo), now)

    def _end(self, outcome: Outcome, now: float) -> None:
        self.outcome = outcome
        self._phase = _Phase.ENDED
        self._out = b""
        self._note(
            "end", now, state=outcome.state.value, what=outcome.what, why=outcome.why, todo=outcome.todo
        )


def _then(action: Action) -> dict[str, str]:
    """Return where an action leads, for the transcript; nothing for the next statement."""
    match action:
        case Goto(words=words):
            return {} if words == "next" else {"then": words}
        case End(done=done):
            return {"then": "done" if done else "fail"}
        case _:
            assert_never(action)


def seconds(number: float) -> str:
    """Return a time as a script has it."""
    if number < 1:
        return f"{number * 1000:g} ms"
    return f"{number:g} s" if number < 120 else f"{number / 60:g} min"


_SEE: Final = "`kbridge log` has all that came"
_CIRCLE: Final = "see that its loops end"
