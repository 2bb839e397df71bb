r"""Regular expressions whose cost is bounded, matched while text comes, one character after the other.

in          an expression (``parse``), then characters (``Matcher.step``)
out         the number of the expression that matches, as soon as one does
invariant   the result depends on the characters up to now only; the time for a character is at most proportional
            to the size of the expressions, whatever the guest says (Thompson's construction, not backtracking)

Understood are ``.`` ``[…]`` ``(…)`` ``(?:…)`` ``|`` ``*`` ``+`` ``?`` ``{m,n}``, ``^`` at the start of a line,
``\d \w \s \D \W \S \n \r \t \e \xNN``, and ``\`` before what else has a meaning.  The first match that ends
counts, so ``*?`` has no use, and ``$`` none either: what came last is no end, more may come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, assert_never

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_STATES: Final = 1000
"""Of all expressions that one wait has."""
MAX_REPEAT: Final = 255
MAX_NESTING: Final = 30
_MAX_CACHED: Final = 1 << 16
"""Places and ways that are remembered, about 100 bytes each."""
_MAX_PUTS: Final = 8 * MAX_STATES
_TOO_LARGE: Final = f"it is too large: the expressions of one wait have {MAX_STATES} states at most"

_Range = tuple[str, str]


class PatternError(ValueError):
    """An expression is not valid."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of these ranges, or of none of them."""

    ranges: tuple[_Range, ...]
    negated: bool = False
    folded: bool = False
    """Whether upper and lower case are the same."""

    def accepts(self, char: str) -> bool:
        """Whether it is one of them."""
        same = {char, char.lower(), char.upper()} if self.folded else {char}
        return any(low <= one <= high for one in same for low, high in self.ranges) is not self.negated


@dataclass(frozen=True, slots=True)
class LineStart:
    """Nothing, at the start of a line."""


@dataclass(frozen=True, slots=True)
class Series:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of them."""

    ways: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """``least`` to ``most`` times; without ``most``, any number from ``least`` on."""

    part: Node
    least: int
    most: int | None


Node = Chars | LineStart | Series | Choice | Repeat

_DIGITS: Final = (("0", "9"),)
_WORD: Final = (("0", "9"), ("A", "Z"), ("a", "z"), ("_", "_"))
_SPACE: Final = ((" ", " "), ("\t", "\r"))
_CLASSES: Final = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_COUNTS: Final[Mapping[str, tuple[int, int | None]]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_REPEATS: Final = ("*", "+", "?", "{")
_CHARACTERS: Final = {
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "e": "\x1b",
    "a": "\x07",
    "f": "\f",
    "v": "\v",
    "0": "\0",
}


def literal(text: str) -> Node:
    """Return the expression that means exactly this text."""
    return Series(tuple(Chars(((char, char),)) for char in text))


def parse(text: str, *, folded: bool = False, raw: bool = False) -> Node:
    """Read an expression; ``raw`` ones are held against bytes, a character each.

    Raises ``PatternError`` in words.
    """
    node = _Reading(text, folded=folded, raw=raw).whole()
    _check(node)
    return node


def _check(node: Node) -> None:
    program = _compile([node])
    if any(isinstance(program.code[at], _Match) for at in program.closure(program.starts, line_start=True)):
        raise PatternError("it matches where nothing is")


def size(nodes: Iterable[Node]) -> int:
    """Return how many states expressions have together; raises ``PatternError`` above ``MAX_STATES``."""
    return len(_compile(nodes).code)


class _Reading:
    """One reading of an expression."""

    def __init__(self, text: str, *, folded: bool, raw: bool) -> None:
        self._text = text
        self._at = 0
        self._folded = folded
        self._raw = raw
        self._nesting = 0

    def whole(self) -> Node:
        node = self._choice()
        if self._at < len(self._text):
            self._fail("there is a ) without its (")
        return node

    def _choice(self) -> Node:
        ways = [self._sequence()]
        while self._took("|"):
            ways.append(self._sequence())
        return ways[0] if len(ways) == 1 else Choice(tuple(ways))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated())
        return parts[0] if len(parts) == 1 else Series(tuple(parts))

    def _repeated(self) -> Node:
        part = self._atom()
        if self._peek() not in _REPEATS:
            return part
        least, most = self._counts()
        if self._peek() in _REPEATS:
            self._fail(f"{self._peek()} after a repetition: put that in ( )")
        return Repeat(part, least, most)

    def _counts(self) -> tuple[int, int | None]:
        sign = self._take()
        if sign in _COUNTS:
            return _COUNTS[sign]
        least, comma, most = self._up_to("}").partition(",")
        try:
            low = int(least)
            high = low if not comma else int(most) if most else None
        except ValueError:
            self._fail("{ } takes a number or two: write \\{ for the character")
        if not 0 <= low <= MAX_REPEAT or (high is not None and not low <= high <= MAX_REPEAT):
            self._fail(f"{{ }} counts from 0 to {MAX_REPEAT}, the smaller number first")
        return low, high

    def _atom(self) -> Node:
        char = self._take()
        if char == ".":
            return Chars((("\n", "\n"),), negated=True)
        if char == "[":
            return self._set()
        if char == "(":
            return self._group()
        if char == "^":
            return LineStart()
        if char == "$":
            self._fail(
                "$ has no meaning here, for more may come: write \\n for a line's end, \\$ for the sign"
            )
        if char in _REPEATS:
            self._fail(f"{char} has nothing before it to repeat: write \\{char} for the character")
        return self._escaped() if char == "\\" else self._single(char)

    def _single(self, char: str) -> Chars:
        if self._raw and char > "\x7f":
            self._fail(f"{char!r} is no byte: write \\xNN for each of its bytes")
        return Chars(((char, char),), folded=self._folded)

    def _group(self) -> Node:
        if self._took("?") and not self._took(":"):
            self._fail("(? takes : only: there are no look-ahead, flags or names; /…/i ignores case")
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            self._fail(f"groups are nested more than {MAX_NESTING} deep")
        node = self._choice()
        self._nesting -= 1
        if not self._took(")"):
            self._fail("a ( has no )")
        return node

    def _escaped(self) -> Chars:
        char = self._take()
        if char in ("D", "W", "S"):
            return Chars(_CLASSES[char.lower()], negated=True)
        if char in _CLASSES:
            return Chars(_CLASSES[char])
        found = self._character(char)
        return Chars(((found, found),), folded=self._folded)

    def _character(self, char: str) -> str:
        """Return what an escape means that is no class."""
        if char == "x":
            digits = self._text[self._at : self._at + 2]
            self._at += 2
            try:
                return byte_char(int(digits, 16) if len(digits) == 2 else -1, raw=self._raw)
            except ValueError:
                self._fail("\\x takes two hexadecimal digits")
        if char in _CHARACTERS:
            return _CHARACTERS[char]
        if not char:
            self._fail("it ends with a \\")
        if char.isalnum():
            self._fail(f"\\{char} is not known")
        return char

    def _set(self) -> Chars:
        negated = self._took("^")
        ranges: list[_Range] = []
        # A ] that comes first is one of the members.
        while not ranges or self._peek() != "]":
            low = self._set_member()
            if not isinstance(low, str):
                ranges.extend(low)
                continue
            high = low
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._take()
                end = self._set_member()
                if not isinstance(end, str) or end < low:
                    self._fail("a range in [ ] goes from one character up to another")
                high = end
            ranges.append((low, high))
        self._take()
        return Chars(tuple(ranges), negated=negated, folded=self._folded)

    def _set_member(self) -> str | tuple[_Range, ...]:
        char = self._take()
        if not char:
            self._fail("a [ has no ]: write \\[ for the character")
        if char != "\\":
            return self._single(char).ranges[0][0]
        char = self._take()
        if char in _CLASSES:
            return _CLASSES[char]
        if char in ("D", "W", "S"):
            self._fail(f"\\{char} cannot stand in [ ]")
        return self._character(char)

    def _up_to(self, end: str) -> str:
        found = self._text.find(end, self._at)
        if found < 0:
            self._fail(f"there is no {end}")
        text, self._at = self._text[self._at : found], found + 1
        return text

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._peek()
        self._at += 1
        return char

    def _took(self, char: str) -> bool:
        if self._peek() != char:
            return False
        self._at += 1
        return True

    def _fail(self, words: str) -> NoReturn:
        raise PatternError(words)


def byte_char(number: int, *, raw: bool) -> str:
    r"""Return the character by which a byte written as ``\xNN`` is known; raises ``ValueError``."""
    if not 0 <= number <= 0xFF:
        raise ValueError("no byte")
    return chr(number) if raw or number < 0x80 else chr(0xDC00 + number)


# Thompson's construction.


@dataclass(frozen=True, slots=True)
class _Split:
    ways: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _AtLineStart:
    """Goes on with the next, at the start of a line."""


@dataclass(frozen=True, slots=True)
class _Match:
    number: int


_Code = Chars | _Split | _AtLineStart | _Match


class _Program:
    """Expressions as code: each takes a character and goes on with the next, or goes without one."""

    def __init__(self) -> None:
        self.code: list[_Code] = []
        self.starts: tuple[int, ...] = ()
        self._puts = 0

    def add(self, code: _Code) -> int:
        if len(self.code) >= MAX_STATES:
            raise PatternError(_TOO_LARGE)
        self.code.append(code)
        return len(self.code) - 1

    def put(self, node: Node) -> None:
        """Add what takes ``node`` and then goes on with what is added next."""
        # Repetitions of nothing add no code, and could be nested for ever.
        self._puts += 1
        if self._puts > _MAX_PUTS:
            raise PatternError(_TOO_LARGE)
        match node:
            case Chars():
                self.add(node)
            case LineStart():
                self.add(_AtLineStart())
            case Series(parts):
                for part in parts:
                    self.put(part)
            case Choice(ways):
                self._put_choice(ways)
            case Repeat(part, least, most):
                for _ in range(least):
                    self.put(part)
                if most is None:
                    self._put_loop(part)
                else:
                    self._put_options(part, most - least)
            case _:
                assert_never(node)

    def _put_choice(self, ways: tuple[Node, ...]) -> None:
        split = self.add(_Split(()))
        begins, ends = [], []
        for way in ways:
            begins.append(len(self.code))
            self.put(way)
            ends.append(self.add(_Split(())))
        self.code[split] = _Split(tuple(begins))
        for end in ends:
            self.code[end] = _Split((len(self.code),))

    def _put_loop(self, part: Node) -> None:
        split = self.add(_Split(()))
        self.put(part)
        self.add(_Split((split,)))
        self.code[split] = _Split((split + 1, len(self.code)))

    def _put_options(self, part: Node, count: int) -> None:
        splits = []
        for _ in range(count):
            splits.append(self.add(_Split(())))
            self.put(part)
        for split in splits:
            self.code[split] = _Split((split + 1, len(self.code)))

    def closure(self, begin: Iterable[int], *, line_start: bool) -> frozenset[int]:
        """Return all that is reached without a character, of which only what takes one or matches."""
        seen: set[int] = set()
        waiting = list(begin)
        found = set()
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            match self.code[at]:
                case _Split(ways):
                    waiting.extend(ways)
                case _AtLineStart():
                    if line_start:
                        waiting.append(at + 1)
                case Chars() | _Match():
                    found.add(at)
        return frozenset(found)


def _compile(nodes: Iterable[Node]) -> _Program:
    program = _Program()
    starts = []
    for number, node in enumerate(nodes):
        starts.append(len(program.code))
        program.put(node)
        program.add(_Match(number))
    program.starts = tuple(starts)
    return program


class _State:
    __slots__ = ("matched", "next", "places")

    def __init__(self, places: frozenset[int], matched: int | None) -> None:
        self.places = places
        self.matched = matched
        self.next: dict[str, _State] = {}


class Matcher:
    """Looks for several expressions at once in what comes; the first of those that end at the same place counts."""

    def __init__(self, nodes: Sequence[Node], *, line_start: bool) -> None:
        """Begin, at the start of a line or not; raises ``PatternError`` where they are too large together."""
        self._program = _compile(nodes)
        self._cached = 0
        self._states: dict[frozenset[int], _State] = {}
        self._state = self._at(self._program.closure(self._program.starts, line_start=line_start))

    def step(self, char: str) -> int | None:
        """Take one character; return the number of the expression that ends with it, or ``None``."""
        found = self._state.next.get(char)
        if found is None:
            found = self._make(char)
        self._state = found
        return found.matched

    def run(self, text: str) -> tuple[int, int] | None:
        """Take characters up to the first match; return how many were taken, and the number."""
        state = self._state
        for taken, char in enumerate(text, 1):
            after = state.next.get(char)
            if after is None:
                self._state = state
                after = self._make(char)
            state = after
            if state.matched is not None:
                self._state = state
                return taken, state.matched
        self._state = state
        return None

    def _make(self, char: str) -> _State:
        program = self._program
        reached = [at + 1 for at in self._state.places if _accepts(program.code[at], char)]
        places = program.closure((*reached, *program.starts), line_start=char in "\r\n")
        self._cached += 1
        if self._cached >= _MAX_CACHED:
            self._cached = 0
            self._states = {}
            # The one from which we come too would keep all others.
            self._state.next = {}
        found = self._at(places)
        self._state.next[char] = found
        return found

    def _at(self, places: frozenset[int]) -> _State:
        found = self._states.get(places)
        if found is None:
            code = self._program.code
            self._cached += len(places)
            numbers = [one.number for at in places if isinstance(one := code[at], _Match)]
            found = self._states[places] = _State(places, min(numbers, default=None))
        return found


def _accepts(code: _Code, char: str) -> bool:
    return isinstance(code, Chars) and code.accepts(char)
