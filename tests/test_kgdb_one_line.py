"""A guest with one serial port: someone types on its console while two gdbs debug its kernel on the same line."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from bridge_lab import wait_for
from debuggers_lab import GDB_13
from sharing_lab import OneLine, hits, leave, name_of, start
from test_cli_console import Visitor

pytestmark = [pytest.mark.guest, pytest.mark.gdb]

StartGuest = Callable[..., dict[str, Any]]
ROUNDS = 100
OFTEN = "hrtimer_nanosleep"
"""What the guest's ticking shell comes through again and again."""
FACTOR = 7919
"""What is typed has the numbers, what the guest answers their products: an echo is no answer."""


class Answering(OneLine):
    """One whose answers are looked at."""

    def answers(self) -> list[int]:
        # Between an answer and its line's end the terminal may put the echo of what is typed next.
        return [int(number) for number in re.findall(rb"<(\d+)>", self.console())]


@pytest.fixture(scope="module")
def web1(shared_kgdb_guest: StartGuest) -> Iterator[Answering]:
    with Answering(shared_kgdb_guest) as one:
        yield one


@pytest.fixture
def keyboard(web1: Answering) -> Iterator[Callable[[bytes], None]]:
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(web1.socket.with_name("console")))
        yield console.sendall


@pytest.mark.slow
def test_a_hundred_rounds_of_typing_and_debugging(web1: Answering, keyboard: Callable[[bytes], None]) -> None:
    often = web1.addresses(OFTEN)[OFTEN]
    random = Random(5)
    typed = 0

    def type_line() -> None:
        nonlocal typed
        typed += 1
        # In two pieces: what is typed may come in the middle of anything.
        line = f"echo \\<$(({typed}*{FACTOR}))\\>\r".encode()
        cut = random.randrange(1, len(line))
        keyboard(line[:cut])
        keyboard(line[cut:])

    with start(GDB_13, web1) as a, start(GDB_13, web1) as b:
        names = {a: name_of(a), b: name_of(b)}
        holder, other = a, b
        holder.break_at(often)
        for number in range(1, ROUNDS + 1):
            hits(holder, often)
            type_line()
            before = holder.pc
            holder.step()
            assert 0 < holder.pc - before < 16
            # Who observes is told at once what was missed.
            other.go()
            other.wait_stop()
            assert other.pc == holder.pc
            if number % 10 == 0:
                holder.run("delete")
                holder.monitor(f"control give {names[other]}")
                holder, other = other, holder
                holder.break_at(often)
        holder.run("delete")
        holder.go()
        type_line()
        wait_for(lambda: len(web1.answers()) >= typed, "an answer to each line that was typed", 60)
        holder.interrupt()
        holder.wait_stop()
        leave(other, "detach")
        leave(holder, "detach")
    web1.goes_on()
    assert web1.answers() == [number * FACTOR for number in range(1, typed + 1)]
    ticks = web1.ticks()
    assert ticks == list(range(1, len(ticks) + 1))
    # Of the protocol the console has seen nothing; the kernel's own hint is text.
    console = web1.console().replace(b"$3#33 for KDB", b"")
    assert not re.search(rb"\$[^#$\r\n]*#[0-9a-f]{2}", console)
    assert not re.search(rb"\r\n\++\r\n|^\++\$", console)


def test_what_is_typed_while_the_guest_is_held_is_kept_told_and_delivered(web1: Answering) -> None:
    visitor = Visitor(web1)
    try:
        visitor.joined()
        with start(GDB_13, web1) as a:
            visitor.type(b"echo \\<$((2*3))\\>\r")
            visitor.until(b"what you type is kept until the guest runs")
            assert 6 not in web1.answers()
            leave(a, "detach")
        visitor.until(b"what you typed was delivered")
        wait_for(lambda: 6 in web1.answers(), "the answer")
        visitor.type(b"\r~.")
        assert visitor.ended() == 0
    finally:
        visitor.close()


@pytest.mark.parametrize("typed", [b"\recho \\<$((%d*7919))\\>\r", b"echo \\<$((%d*7919))\\>\r"])
def test_what_kgdb_reads_of_what_is_typed_is_typed_once_more(
    web1: Answering, keyboard: Callable[[bytes], None], typed: bytes
) -> None:
    """The guest stops as it reads the first key; the others are kgdb's, which a `$` among them makes skip the rest."""
    with start(GDB_13, web1) as a:
        for _ in range(2):
            # Of its own in each round: an answer of an earlier one is not waited for.
            number = len(web1.answers()) + 1001
            assert number * FACTOR not in web1.answers()
            ticks = len(web1.ticks())
            a.break_at(web1.addresses("uart_insert_char")["uart_insert_char"])
            a.go()
            # For longer than a second: what is typed goes to the guest at once.
            wait_for(lambda ticks=ticks: len(web1.ticks()) > ticks + 8, "a guest that has run for a while")
            keyboard(typed % number)
            assert "Breakpoint " in a.wait_stop()
            # What is typed once more stops it like any key: the debugger is told.
            a.go()
            assert "Breakpoint " in a.wait_stop()
            a.run("delete")
            a.go()
            wait_for(lambda number=number: number * FACTOR in web1.answers(), "the answer")
            assert web1.answers().count(number * FACTOR) == 1
            a.interrupt()
            a.wait_stop()
        leave(a, "detach")
    assert b"$T05" not in web1.console()


def test_an_oops_with_nobody_attached_is_a_stop_for_who_comes(
    web1: Answering, keyboard: Callable[[bytes], None]
) -> None:
    before = len(web1.ticks())
    keyboard(b"\rsh -c 'echo EXCEPTION > /sys/kernel/debug/provoke-crash/DIRECT'\r")
    wait_for(lambda: b"lkdtm: Performing direct entry EXCEPTION" in web1.console(), "the fault")
    with start(GDB_13, web1) as a:
        assert "lkdtm_EXCEPTION" in a.run("bt")
        leave(a, "detach")
    # It is left to handle its fault, and not to repeat it.
    wait_for(lambda: b"---[ end trace" in web1.console(), "the kernel's own words", 30)
    wait_for(lambda: len(web1.ticks()) > before + 2, "a guest that goes on", 30)
