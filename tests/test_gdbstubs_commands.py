"""What `monitor control` and `monitor status` say, by the words that a user sees."""

from __future__ import annotations

from typing import Any

import pytest

from gdbstubs.client import StubClient
from gdbstubs.commands import HELP, answer
from gdbstubs.dialects import QEMU
from gdbstubs.effects import SessionId
from gdbstubs.seat import Seat
from gdbstubs.sharing import Sharing


class Guest:
    """A guest that runs, with two who observe it and one who may not force."""

    def __init__(self) -> None:
        self.sharing = Sharing("web1", StubClient(QEMU, lambda words: None), lambda effect: None)
        self.heard: dict[str, list[str]] = {}
        self.anna, self.ben, self.carl = (self._join(name) for name in ("anna", "ben", "carl"))

    def _join(self, name: str) -> Seat:
        heard = self.heard.setdefault(name, [])
        seat = self.sharing.join(
            SessionId(len(self.heard)), name, heard.append, observes=True, admin=name == "ben"
        )
        results: list[Any] = []
        seat.attach(results.append)
        self.sharing.guest_runs()
        assert results == [None]
        return seat

    def say(self, seat: Seat, command: str) -> str:
        said = answer(self.sharing, seat, command)
        assert said is not None
        return said

    def news(self) -> dict[str, list[str]]:
        news = {name: heard.copy() for name, heard in self.heard.items() if heard}
        for heard in self.heard.values():
            heard.clear()
        return news


@pytest.fixture
def guest() -> Guest:
    guest = Guest()
    guest.news()
    return guest


def test_control_is_asked_for_and_given(guest: Guest) -> None:
    assert guest.say(guest.anna, "control") == "control is free: monitor control take\n"
    assert guest.say(guest.anna, "control take") == "you control the guest now\n"
    assert guest.news() == {"ben": ["anna controls web1 now"], "carl": ["anna controls web1 now"]}
    assert guest.say(guest.ben, "control") == "anna controls the guest; 'monitor control take' asks for it\n"
    assert "has been asked" in guest.say(guest.ben, "control take")
    assert guest.news() == {"anna": ["ben asks for control: 'monitor control give ben'"]}
    assert (
        guest.say(guest.anna, "control")
        == "you control the guest; asked for by ben: monitor control give ben\n"
    )
    assert guest.say(guest.anna, "control give nobody") == (
        "no session 'nobody' is here; here are: ben, carl\n"
    )
    assert guest.say(guest.anna, "control give ben").startswith("ben controls the guest now")
    assert guest.news() == {
        "ben": ["anna gave you control of web1"],
        "carl": ["anna gave control of web1 to ben"],
    }
    assert guest.say(guest.ben, "control") == "you control the guest\n"
    assert "do not control" in guest.say(guest.anna, "control give carl")


def test_only_an_administrator_forces_control(guest: Guest) -> None:
    guest.say(guest.anna, "control take")
    guest.news()
    assert "only an administrator" in guest.say(guest.carl, "control take --force")
    assert guest.sharing.control.holder is guest.anna
    assert guest.say(guest.ben, "control take --force") == "you control the guest now; anna observes\n"
    took = "ben took control of web1 from anna"
    assert guest.news() == {"anna": [took], "carl": [took]}


def test_control_that_is_let_go_is_free_for_all(guest: Guest) -> None:
    guest.say(guest.anna, "control take")
    assert "control is free" in guest.say(guest.anna, "control release")
    assert guest.sharing.control.holder is None
    assert "do not control" in guest.say(guest.anna, "control release")


def test_the_status_names_all_and_their_roles(guest: Guest) -> None:
    guest.say(guest.anna, "control take")
    guest.say(guest.carl, "control take")
    assert guest.say(guest.ben, "status").splitlines() == [
        "web1 runs; 0 stops so far",
        "  anna  controls",
        "  ben   observes  (you)",
        "  carl  observes, asks for control",
    ]


@pytest.mark.parametrize("command", ["control take it", "control grab", "control give"])
def test_what_is_not_understood_names_what_is(guest: Guest, command: str) -> None:
    assert "take" in guest.say(guest.anna, command) or "whom to?" in guest.say(guest.anna, command)


def test_other_words_are_not_for_here(guest: Guest) -> None:
    assert answer(guest.sharing, guest.anna, "sysrq h") is None


def test_the_help_names_commands_that_exist(guest: Guest) -> None:
    for line in HELP.splitlines():
        command = line.split("  ")[0].removeprefix("monitor ").replace("NAME", "ben").replace("on|off", "on")
        assert answer(guest.sharing, guest.anna, command) is not None, line
