r"""Scripts for a console: wait, send and branch, as plain text (``docs/expect.md`` has the language).

    login:
        send "\r"
        wait 30s
            on "login:" next
            on timeout  fail "nobody asks for a name"

in          a script's text, the values of its variables and secrets
out         a ``Script``: statements by number, with every name resolved; or ``ScriptError`` with all mistakes
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, NoReturn

from kbridge.errors import ScriptError, ScriptMistake
from kbridge.expect.patterns import Node, PatternError, byte_char, literal, parse, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_TEXT: Final = 49152
"""What the body of a request has room for, beside values."""
MAX_STATEMENTS: Final = 2000
MAX_MISTAKES: Final = 50
MAX_VALUE: Final = 1024
"""Characters of a variable's or secret's value."""
MAX_SECONDS: Final = 24 * 3600.0
DEFAULT_SECONDS: Final = 30.0
DEFAULT_LIMIT_SECONDS: Final = 30 * 60.0
MASK: Final = "***"


@dataclass(frozen=True, slots=True)
class Pace:
    """At most ``size`` bytes at once, then ``seconds`` of nothing.

    A 16550's queue holds 16 bytes, which a line at 115,200 baud (8N1) takes 1.4 ms to fill: half a queue at a time
    leaves room for what its reader has not taken yet, and 5 ms are time to take it.
    """

    size: int = 8
    seconds: float = 0.005


UNPACED: Final = Pace(MAX_TEXT, 0.0)


@dataclass(frozen=True, slots=True)
class Goto:
    """Go on at a statement; ``words`` is how the script says it."""

    to: int
    words: str


@dataclass(frozen=True, slots=True)
class End:
    """End the run, done or failed, in the script's own words."""

    done: bool
    words: str
    todo: str = ""


Action = Goto | End


@dataclass(frozen=True, slots=True)
class Pattern:
    """What is looked for; ``shown`` is how the script says it."""

    shown: str
    node: Node
    raw: bool


@dataclass(frozen=True, slots=True)
class Branch:
    """Where to go when a pattern comes."""

    pattern: Pattern
    action: Action


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for the first of several patterns; without ``timeout`` or ``lost`` those fail the run."""

    line: int
    step: str
    seconds: float
    branches: tuple[Branch, ...]
    timeout: Action | None
    lost: Action | None


@dataclass(frozen=True, slots=True)
class Quiet:
    """Wait until nothing came for ``silence`` seconds."""

    line: int
    step: str
    silence: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Send:
    """Send keys; ``shown`` is what may be told of them."""

    line: int
    step: str
    data: bytes = field(repr=False)
    shown: str


@dataclass(frozen=True, slots=True)
class SendBreak:
    """Send BREAK, and a SysRq key after it if one is given."""

    line: int
    step: str
    sysrq: str | None


@dataclass(frozen=True, slots=True)
class Act:
    """Go somewhere, or end."""

    line: int
    step: str
    action: Action


Statement = Wait | Quiet | Send | SendBreak | Act


@dataclass(frozen=True, slots=True)
class Script:
    """A script, ready to be run."""

    statements: tuple[Statement, ...]
    pace: Pace
    limit_seconds: float
    secrets: tuple[str, ...] = field(repr=False)
    """Values that no transcript may show."""


def read(
    text: str, values: Mapping[str, str] | None = None, secrets: Mapping[str, str] | None = None
) -> Script:
    """Read a script; raises ``ScriptError`` with all its mistakes."""
    return _Reading(values or {}, secrets or {}).script(text)


def secret_names(text: str) -> tuple[str, ...]:
    """Return the names of the secrets that a script declares, in order, whatever else is in it."""
    found = re.finditer(rf"^[ \t]*secret[ \t]+({_NAME.pattern})", text, re.MULTILINE)
    return tuple(dict.fromkeys(one[1] for one in found))


_SHOWN: Final = {"\r": "\\r", "\n": "\\n", "\t": "\\t", "\x1b": "\\e", "\\": "\\\\", '"': '\\"'}
_HIDDEN: Final = re.compile(
    r'[\x00-\x1f\x7f-\x9f\\"\ud800-\udfff\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]'
)


def quoted(text: str) -> str:
    """Return text as a script would have it, in quotes: nothing in it can act on a terminal."""
    return f'"{_HIDDEN.sub(_escape, text)}"'


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    if char in _SHOWN:
        return _SHOWN[char]
    number = ord(char)
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number <= 0xFF else f"\\u{number:04x}"


# Words of a line.


@dataclass(frozen=True, slots=True)
class _Word:
    text: str


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Regex:
    text: str
    folded: bool


_Token = _Word | _Text | _Regex

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_LABEL: Final = re.compile(r"[ \t]*([^\s:\"/#]+)[ \t]*:[ \t]*(?:#.*)?")
_SPACE: Final = re.compile(r"[ \t\f\v\r]*")
_TOKEN: Final = re.compile(
    r'"(?P<text>(?:[^"\\]|\\.)*)"|/(?P<regex>(?:[^/\\]|\\.)*)/(?P<flags>\w*)|(?P<word>[\w.-]+)'
)
_PIECE: Final = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|(.))|\$\{([^}]*)\}|([^\\])", re.DOTALL)
_REGEX_PIECE: Final = re.compile(r"\\(.)|\$\{([^}]*)\}|([^\\])", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "e": "\x1b", "a": "\x07", "0": "\0"}
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SYSRQ: Final = re.compile("[0-9A-Za-z]")
_COMMANDS: Final = (
    "wait", "on", "send", "send-secret", "send-break", "quiet", "goto", "done", "fail",
    "timeout", "limit", "pace", "var", "secret",
)  # fmt: skip


class _Mistake(Exception):
    """A line cannot be understood."""


def _wrong(words: str) -> NoReturn:
    raise _Mistake(words)


@dataclass(frozen=True, slots=True)
class _To:
    """Where to go, before names are resolved: a step, or the next statement."""

    step: str | None


@dataclass(slots=True)
class _OpenWait:
    """A wait whose branches are being read."""

    line: int
    step: str
    seconds: float | None
    branches: list[tuple[int, Pattern, _To | End]] = field(default_factory=list)
    others: dict[str, tuple[int, _To | End]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _OpenAct:
    line: int
    step: str
    action: _To | End


@dataclass(frozen=True, slots=True)
class _OpenQuiet:
    line: int
    step: str
    silence: float


class _Reading:
    """One reading of a script."""

    def __init__(self, values: Mapping[str, str], secrets: Mapping[str, str]) -> None:
        self._given = values
        self._given_secrets = secrets
        self._values: dict[str, str] = {}
        self._secrets: dict[str, str] = {}
        self._mistakes: list[ScriptMistake] = []
        self._statements: list[_OpenWait | _OpenAct | _OpenQuiet | Quiet | Send | SendBreak] = []
        self._steps: dict[str, tuple[int, int]] = {}
        self._step = ""
        self._line = 0
        self._settings: dict[str, object] = {}

    def script(self, text: str) -> Script:
        """Read it all; raises ``ScriptError``."""
        if len(text) > MAX_TEXT:
            raise ScriptError([ScriptMistake(0, f"a script has at most {MAX_TEXT} characters")])
        lines = text.split("\n")
        self._names(lines)
        for self._line, line in enumerate(lines, 1):
            try:
                self._one(line)
            except (_Mistake, PatternError) as error:
                self._note(self._line, str(error))
        statements = self._resolved()
        if not statements and not self._mistakes:
            self._note(0, "there is nothing in it to do")
        if self._mistakes:
            found = sorted(self._mistakes, key=lambda one: one.line)
            raise ScriptError(found[:MAX_MISTAKES])
        limit, pace = self._settings.get("limit"), self._settings.get("pace")
        return Script(
            tuple(statements),
            pace if isinstance(pace, Pace) else Pace(),
            limit if isinstance(limit, float) else DEFAULT_LIMIT_SECONDS,
            tuple(value for value in self._secrets.values() if value),
        )

    def _note(self, line: int, words: str) -> None:
        self._mistakes.append(ScriptMistake(line, words))

    # Variables, which are known before anything else is read.

    def _names(self, lines: Sequence[str]) -> None:
        for self._line, line in enumerate(lines, 1):
            if line.lstrip().startswith(("var ", "var\t", "secret ", "secret\t")):
                try:
                    self._declare(self._tokens(line))
                except _Mistake as error:
                    self._note(self._line, str(error))
        for name in self._given:
            if name not in self._values:
                self._note(0, f"it has no variable {name}{_like(name, self._values)}")
        for name in self._given_secrets:
            if name not in self._secrets:
                self._note(0, f"it has no secret {name}{_like(name, self._secrets)}")

    def _declare(self, tokens: Sequence[_Token]) -> None:
        match tokens:
            case [_Word("var"), _Word(name)]:
                self._variable(name, None)
            case [_Word("var"), _Word(name), _Text(default)]:
                self._variable(name, self._plain(default))
            case [_Word("secret"), _Word(name)]:
                self._free(name)
                value = self._given_secrets.get(name)
                self._secrets[name] = self._fitting(name, value or "")
                if value is None:
                    _wrong(f"{name} has no value: give it with --secret {name}")
            case [_Word("var"), *_]:
                _wrong('var takes a name, and a value in quotes: var USER "root"')
            case _:
                _wrong("secret takes a name: secret PASSWORD")

    def _variable(self, name: str, default: str | None) -> None:
        self._free(name)
        value = self._given.get(name, default)
        self._values[name] = self._fitting(name, value or "")
        if value is None:
            _wrong(f"{name} has no value: give it with --set {name}=…")

    def _free(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            _wrong(f"{name!r} is no name: letters, digits, - and _, a letter first")
        if name in self._values or name in self._secrets:
            _wrong(f"{name} is there already")

    def _fitting(self, name: str, value: str) -> str:
        if len(value) > MAX_VALUE:
            _wrong(f"the value of {name} has more than {MAX_VALUE} characters")
        return value

    # Lines.

    def _one(self, line: str) -> None:
        label = _LABEL.fullmatch(line)
        if label is not None:
            self._begin_step(label[1])
            return
        tokens = self._tokens(line)
        match tokens:
            case [] | [_Word("var" | "secret"), *_]:
                return
            case [_Word("on"), *rest]:
                self._on(rest)
                return
            case [_Word("timeout" | "limit" as name), *rest]:
                self._set(name, self._only_duration(name, rest))
            case [_Word("pace"), *rest]:
                self._set("pace", _pace(rest))
            case [_Word(), *_]:
                self._statement(tokens)
            case _:
                _wrong(f"a line begins with one of {', '.join(_COMMANDS)}, or is a step's name with a colon")
        if len(self._statements) > MAX_STATEMENTS:
            self._statements.pop()
            _wrong(f"a script has at most {MAX_STATEMENTS} statements")

    def _statement(self, tokens: Sequence[_Token]) -> None:
        match tokens:
            case [_Word("wait"), *rest]:
                self._wait(rest)
            case [_Word("send"), *texts]:
                self._send(texts)
            case [_Word("send-secret"), _Word(name)]:
                if name not in self._secrets:
                    _wrong(
                        f"there is no secret {name}{_like(name, self._secrets)}: declare it by `secret {name}`"
                    )
                data = self._secrets[name].encode("utf-8", "surrogateescape")
                self._statements.append(Send(self._line, self._step, data, MASK))
            case [_Word("send-secret"), *_]:
                _wrong("send-secret takes the name of a secret")
            case [_Word("send-break"), *rest]:
                self._statements.append(SendBreak(self._line, self._step, self._sysrq(rest)))
            case [_Word("quiet"), *rest]:
                self._quiet(rest)
            case [_Word("goto" | "done" | "fail"), *_]:
                self._statements.append(_OpenAct(self._line, self._step, self._action(tokens)))
            case [_Word(name), *_]:
                _wrong(f"there is no command {name}{_like(name, _COMMANDS)}")
            case _:
                _wrong("this is no command")

    def _begin_step(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            _wrong(f"{name!r} is no step's name: letters, digits, - and _, a letter first")
        if name in self._steps:
            _wrong(f"there is a step {name} already, in line {self._steps[name][0]}")
        self._steps[name] = (self._line, len(self._statements))
        self._step = name

    def _set(self, name: str, value: object) -> None:
        if name in self._settings:
            _wrong(f"{name} is there already, for the whole script")
        self._settings[name] = value

    def _wait(self, rest: Sequence[_Token]) -> None:
        branches = []
        if rest and not _is_duration(rest[0]):
            pattern, rest = self._pattern(rest)
            branches.append((self._line, pattern, _To(None)))
        seconds = self._only_duration("wait", rest) if rest else None
        self._statements.append(_OpenWait(self._line, self._step, seconds, [*branches]))

    def _on(self, rest: Sequence[_Token]) -> None:
        wait = self._statements[-1] if self._statements else None
        after_label = self._steps and max(at for _, at in self._steps.values()) == len(self._statements)
        if not isinstance(wait, _OpenWait) or after_label:
            _wrong("on belongs to the wait before it, and there is none")
        match rest:
            case [_Word("timeout" | "lost" as what), *action]:
                if what in wait.others:
                    _wrong(f"this wait has its `on {what}` already")
                wait.others[what] = (self._line, self._action(action))
            case _:
                pattern, then = self._pattern(rest)
                wait.branches.append((self._line, pattern, self._action(then)))

    def _send(self, texts: Sequence[_Token]) -> None:
        parts = []
        for token in texts:
            if not isinstance(token, _Text):
                _wrong('send takes text in quotes: send "root\\r"')
            parts.append(self._plain(token.text))
        text = "".join(parts)
        if not text:
            _wrong('send takes text in quotes: send "root\\r"')
        data = text.encode("utf-8", "surrogateescape")
        self._statements.append(Send(self._line, self._step, data, quoted(text)))

    def _sysrq(self, rest: Sequence[_Token]) -> str | None:
        match rest:
            case []:
                return None
            case [_Text(written)] if _SYSRQ.fullmatch(key := self._plain(written)):
                return key
            case _:
                _wrong('send-break takes a SysRq key, one letter or digit in quotes: send-break "w"')

    def _quiet(self, rest: Sequence[_Token]) -> None:
        match rest:
            case [_Word(silence)]:
                self._statements.append(_OpenQuiet(self._line, self._step, _duration(silence)))
            case [_Word(silence), _Word(within)]:
                least, most = _duration(silence), _duration(within)
                if most < least:
                    _wrong(
                        "quiet takes how long nothing is to come, then a longer time within which it must be so"
                    )
                self._statements.append(Quiet(self._line, self._step, least, most))
            case _:
                _wrong("quiet takes how long nothing is to come, and the time within: quiet 300ms 10s")

    def _action(self, tokens: Sequence[_Token]) -> _To | End:
        match tokens:
            case [_Word("next")]:
                return _To(None)
            case [_Word("goto"), _Word(step)]:
                return _To(step)
            case [_Word("done")]:
                return End(True, "")
            case [_Word("done"), _Text(words)]:
                return End(True, self._plain(words))
            case [_Word("fail"), _Text(words)]:
                return End(False, self._plain(words))
            case [_Word("fail"), _Text(words), _Text(todo)]:
                return End(False, self._plain(words), self._plain(todo))
            case [_Word("fail"), *_]:
                _wrong('fail takes words in quotes, and what to do next: fail "no prompt" "look at the log"')
            case [_Word("goto"), *_]:
                _wrong("goto takes a step's name")
            case _:
                _wrong('what to do is one of: next, goto STEP, done, fail "words"')

    def _pattern(self, tokens: Sequence[_Token]) -> tuple[Pattern, Sequence[_Token]]:
        raw = bool(tokens) and tokens[0] == _Word("raw")
        rest = tokens[1:] if raw else tokens
        mark = "raw " if raw else ""
        match rest:
            case [_Text(written), *after]:
                text = self._plain(written)
                if not text:
                    _wrong("a pattern cannot be empty")
                found = text.encode("utf-8", "surrogateescape").decode("latin-1") if raw else text
                if not raw and "\r" in text:
                    _wrong("\\r is never seen: a line's end is one \\n, unless the pattern is raw")
                return Pattern(mark + quoted(text), literal(found), raw), after
            case [_Regex(written, folded), *after]:
                text = self._regex(written)
                shown = f"{mark}/{_HIDDEN.sub(_as_is, text)}/{'i' if folded else ''}"
                return Pattern(shown, parse(text, folded=folded, raw=raw), raw), after
            case _:
                _wrong('a pattern is text in quotes or an expression in slashes: "login:" or /[$#] /')

    def _only_duration(self, name: str, rest: Sequence[_Token]) -> float:
        match rest:
            case [_Word(text)]:
                return _duration(text)
            case _:
                _wrong(f"{name} takes a time at the end, such as 30s")

    # Words.

    def _tokens(self, line: str) -> list[_Token]:
        tokens: list[_Token] = []
        at = 0
        while True:
            at = _SPACE.match(line, at).end()  # type: ignore[union-attr]
            if at >= len(line) or line[at] == "#":
                return tokens
            found = _TOKEN.match(line, at)
            if found is None:
                what = {'"': 'text has no closing "', "/": "an expression has no closing /"}.get(line[at])
                _wrong(what or f"{quoted(line[at : at + 20])} is not understood")
            at = found.end()
            if found["text"] is not None:
                tokens.append(_Text(found["text"]))
            elif found["word"] is not None:
                tokens.append(_Word(found["word"]))
            elif found["flags"] in ("", "i"):
                tokens.append(_Regex(found["regex"], found["flags"] == "i"))
            else:
                _wrong(f"/…/{found['flags']} is not known: i alone, to ignore case")

    def _plain(self, written: str) -> str:
        """Return what text in quotes means."""
        out = []
        for piece in _PIECE.finditer(written):
            digits, escaped, name, char = piece.groups()
            if digits is not None:
                out.append(byte_char(int(digits, 16), raw=False))
            elif escaped is not None:
                if escaped.isalnum() and escaped not in _ESCAPES:
                    _wrong(f'\\{escaped} is not known in text: \\r \\n \\t \\e \\xNN \\\\ \\" \\$ are')
                out.append(_ESCAPES.get(escaped, escaped))
            elif name is not None:
                out.append(self._value(name))
            else:
                out.append(char)
        return "".join(out)

    def _regex(self, written: str) -> str:
        """Return an expression with the values of its variables in place, each as it is."""
        out = []
        for piece in _REGEX_PIECE.finditer(written):
            escaped, name, char = piece.groups()
            if escaped is not None:
                out.append("/" if escaped == "/" else "\\" + escaped)
            elif name is not None:
                out.extend(one if one.isalnum() else "\\" + one for one in self._value(name))
            else:
                out.append(char)
        return "".join(out)

    def _value(self, name: str) -> str:
        if name in self._secrets:
            _wrong(f"{name} is a secret: only send-secret sends it")
        if name not in self._values:
            _wrong(f"there is no variable {quoted(name)}{_like(name, self._values)}: declare it by `var`")
        return self._values[name]

    # Names of steps, once all are known.

    def _resolved(self) -> list[Statement]:
        default = self._settings.get("timeout")
        seconds = default if isinstance(default, float) else DEFAULT_SECONDS
        found: list[Statement] = []
        for number, one in enumerate(self._statements):
            try:
                match one:
                    case _OpenWait():
                        found.append(self._resolve_wait(one, number, seconds))
                    case _OpenAct(line, step, action):
                        found.append(Act(line, step, self._resolve(action, line, number)))
                    case Quiet() | Send() | SendBreak():
                        found.append(one)
                    case _OpenQuiet(line, step, silence):
                        found.append(Quiet(line, step, silence, max(seconds, silence)))
            except (_Mistake, PatternError) as error:
                self._note(one.line, str(error))
        return found

    def _resolve_wait(self, wait: _OpenWait, number: int, seconds: float) -> Wait:
        if not wait.branches and not wait.others:
            _wrong('it waits for nothing: give a pattern, `on` lines, or use `quiet`: wait "login:" 30s')
        for raw in (False, True):
            size(pattern.node for _, pattern, _ in wait.branches if pattern.raw is raw)
        branches = tuple(
            Branch(pattern, self._resolve(action, line, number)) for line, pattern, action in wait.branches
        )
        others = {what: self._resolve(action, line, number) for what, (line, action) in wait.others.items()}
        return Wait(
            wait.line,
            wait.step,
            seconds if wait.seconds is None else wait.seconds,
            branches,
            others.get("timeout"),
            others.get("lost"),
        )

    def _resolve(self, action: _To | End, line: int, number: int) -> Action:
        match action:
            case End():
                return action
            case _To(None):
                return Goto(number + 1, "next")
            case _To(step):
                assert step is not None
                if step in self._steps:
                    return Goto(self._steps[step][1], f"goto {step}")
                self._note(line, f"there is no step {step}{_like(step, self._steps)}")
                return Goto(number + 1, "next")


def _as_is(found: re.Match[str]) -> str:
    return found[0] if found[0] in ('"', "\\") else _escape(found)


def _is_duration(token: _Token) -> bool:
    return isinstance(token, _Word) and token.text[:1].isdigit()


def _duration(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None:
        _wrong(f"{text!r} is no time: write 500ms, 30s, 2m or 1h")
    seconds = float(found[1]) * _UNITS[found[2]]
    if not 0.001 <= seconds <= MAX_SECONDS:
        _wrong(f"{text} is too {'short' if seconds < 1 else 'long'}: from 1ms to 24h")
    return seconds


def _pace(rest: Sequence[_Token]) -> Pace:
    match rest:
        case [_Word("off")]:
            return UNPACED
        case [_Word(count), _Word(pause)] if (
            count.isdecimal() and count.isascii() and 1 <= int(count[:9]) <= MAX_TEXT
        ):
            return Pace(int(count[:9]), _duration(pause))
        case _:
            _wrong("pace takes how many bytes at once and the pause after them: pace 8 5ms, or pace off")


def _like(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, list(names), 1)
    return f" (is it {near[0]}?)" if near else ""
