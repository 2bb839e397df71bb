"""Dialogues with the guest: sulogin, and the shell that was wished."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kbridge.boot.dialogue import (
    ECHO,
    MASK,
    MAX_PROBES,
    PASSWORD,
    ROOT,
    Ask,
    GaveUp,
    Note,
    Press,
    Until,
)
from kbridge.boot.recipes import ENTER, KILL_LINE
from kbridge.boot.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbridge.boot.dialogue import Dialogue
    from kbridge.boot.sight import Sight

MAX_ANSWERS: Final = 4
_ENTER_ONLY: Final = "Press Enter for maintenance"
_GIVE_ROOTS: Final = "Give root password for "


def log_in(sight: Sight, secrets: Mapping[str, str]) -> Dialogue:
    """Answer sulogin: by Enter where root has no password, else by root's."""
    asks = next(
        (
            line
            for line in reversed([*sight.last(20), sight.typed()])
            if _ENTER_ONLY in line or _GIVE_ROOTS in line
        ),
        _GIVE_ROOTS,
    )
    if _ENTER_ONLY in asks:
        yield from _answer_with(sight, Press(ENTER, "Enter"))
        return
    if ROOT not in secrets:
        yield Ask(ROOT)
    password = secrets.get(ROOT)
    if password is None:
        raise GaveUp(
            "root's password is asked for",
            "root has one, and sulogin lets nobody in without it",
            "give --secret root=FILE, type it at `kbridge console`, or boot with --init /bin/sh, which asks nobody",
            asks=ROOT,
        )
    yield from _answer_with(sight, Press(password.encode("utf-8", "surrogateescape") + ENTER, MASK))


def _answer_with(sight: Sight, press: Press) -> Dialogue:
    """Answer sulogin; again where it threw the answer away, as it does with what comes before it is ready."""
    for _ in range(MAX_ANSWERS):
        mark = sight.mark()
        yield press
        # Enter leaves the prompt's row, whatever is thought of what stands before it.
        if not (yield Until(_has_moved, ECHO, (sight, mark))):
            continue
        yield Until(lambda *of: _is_refused(*of) or _is_in(sight), PASSWORD, (sight, mark))
        if _is_refused(sight, mark):
            raise GaveUp(
                "root's password is wrong",
                "sulogin says so",
                "give another: --secret root=FILE; or boot with --init /bin/sh, which asks nobody",
            )
        if _is_in(sight):
            return


def _has_moved(sight: Sight, mark: int) -> bool:
    return sight.mark() > mark or _is_in(sight)


def _is_in(sight: Sight) -> bool:
    return sight.state is not State.LOGIN or sight.prompted


def _is_refused(sight: Sight, mark: int) -> bool:
    return any("incorrect" in line.lower() for line in sight.since(mark))


def probe(sight: Sight, nonce: str, *, stale: bool) -> Dialogue:
    """See that a shell answers, and that it is root's.

    The answer cannot be taken from the echo of the question, which has two quotes within the mark.
    """
    for attempt in range(1, MAX_PROBES + 1):
        mark = sight.mark()
        answer = re.compile(rf"{nonce}{attempt}:(\d*):")
        clear = KILL_LINE if stale or attempt > 1 else b""
        question = f'echo {nonce[:2]}""{nonce[2:]}{attempt}:$(id -u):'
        yield Press(clear + question.encode() + ENTER, question)
        # A shell that was not ready to read may have thrown the first question away.
        if (yield Until(lambda *of: _answer(*of) is not None, ECHO * attempt, (sight, mark, answer))):
            user = _answer(sight, mark, answer)
            if user not in ("", "0"):
                raise GaveUp("the shell is not root's", f"its user has number {user}")
            yield Note("the shell answers, as root")
            return
    raise GaveUp(
        "a prompt shows, and no shell answers behind it",
        f"it was asked {MAX_PROBES} times",
        "look: `kbridge console`",
    )


def _answer(sight: Sight, mark: int, answer: re.Pattern[str]) -> str | None:
    return next((found[1] for line in sight.since(mark) if (found := answer.search(line))), None)
