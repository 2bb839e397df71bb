"""The ``monitor`` commands that concern the sharing of the guest: who is here, control, live reads.

Each answers in text for the user.  What is not here is the shell's (``monitor log``, ``monitor info version``).
"""

from __future__ import annotations

from typing import Final

from gdbstubs.seat import Seat
from gdbstubs.sharing import Sharing
from gdbstubs.target import Breakpoint

HELP: Final = """\
monitor status                 the guest, the stop, who is here, whose breakpoints stand
monitor control                who controls the guest
monitor control take           take control if it is free, else ask its holder for it
monitor control take --force   take it from its holder (administrators only)
monitor control give NAME      hand it to another session
monitor control release        make it free; the guest and your breakpoints stay as they are
monitor live on|off            read memory while the guest runs
"""


def answer(sharing: Sharing, seat: Seat, command: str) -> str | None:
    """Carry out a command of one session; None for one that is not known here."""
    match command.split():
        case ["status"]:
            return status(sharing, seat)
        case ["control"]:
            return _who(sharing, seat)
        case ["control", "take"]:
            return _take(sharing, seat)
        case ["control", "take", "--force"]:
            return _force(sharing, seat)
        case ["control", "give", name]:
            return _give(sharing, seat, name)
        case ["control", "give"]:
            return f"whom to? {_others(sharing, seat)}\n"
        case ["control", "release"]:
            return _release(sharing, seat)
        case ["control", *_]:
            return (
                "what follows 'monitor control' is take, take --force, give NAME, release, or nothing\n"
                f"{_who(sharing, seat)}"
            )
        case ["live", "on" | "off" as switch]:
            seat.live = switch == "on"
            return "memory is read while the guest runs\n" if seat.live else "memory is read at stops only\n"
        case ["live", *_]:
            return f"live reads are {'on' if seat.live else 'off'}: monitor live on|off\n"
        case _:
            return None


def status(sharing: Sharing, seat: Seat) -> str:
    """Say where the guest stands and who is here."""
    stops = sharing.stops
    if stops.present:
        where = f"stands at stop {stops.present}"
        if seat.is_attached and seat.seen != stops.present:
            where += (
                f"; you have seen {'none' if seat.seen < 0 else f'stop {seat.seen}'}: 'continue' shows it"
            )
    else:
        where = f"runs; {stops.number} stop{'' if stops.number == 1 else 's'} so far"
    lines = [f"{sharing.guest} {where}"]
    width = max((len(one.name) for one in sharing.seats), default=0)
    for one in sharing.seats:
        role = "controls" if one.controls else "observes"
        marks = [role]
        if one.waits:
            marks.append("waits for a stop")
        if one in sharing.control.asking:
            marks.append("asks for control")
        lines.append(f"  {one.name:{width}}  {', '.join(marks)}{'  (you)' if one is seat else ''}")
    if sharing.control.holder is None:
        lines.append("  control is free: monitor control take")
    breakpoints = sharing.armed.all() | sharing.client.inserted
    lines.extend(
        f"  {_in_words(sharing, one)}"
        for one in sorted(breakpoints, key=lambda one: (one.address, one.kind.value, one.size))
    )
    return "\n".join(lines) + "\n"


def _in_words(sharing: Sharing, breakpoint_: Breakpoint) -> str:
    kind = {0: "breakpoint", 1: "hardware breakpoint", 2: "write watchpoint", 3: "read watchpoint"}.get(
        breakpoint_.kind.value, "access watchpoint"
    )
    owners = ", ".join(one.name for one in sharing.armed.owners(breakpoint_))
    return f"{kind} at {breakpoint_.address:#x}{f' ({owners})' if owners else ' (goes with the next resume)'}"


def _who(sharing: Sharing, seat: Seat) -> str:
    holder = sharing.control.holder
    if holder is None:
        return "control is free: monitor control take\n"
    if holder is not seat:
        return f"{holder.name} controls the guest; 'monitor control take' asks for it\n"
    asking = sharing.control.asking
    if not asking:
        return "you control the guest\n"
    names = ", ".join(one.name for one in asking)
    return f"you control the guest; asked for by {names}: monitor control give {asking[0].name}\n"


def _others(sharing: Sharing, seat: Seat) -> str:
    names = [one.name for one in sharing.seats if one is not seat]
    return f"here are: {', '.join(names)}" if names else "nobody else is here"


def _not_here(seat: Seat) -> str:
    return "" if seat.is_attached else "this session is not attached to the guest\n"


def _take(sharing: Sharing, seat: Seat) -> str:
    if not seat.is_attached:
        return _not_here(seat)
    control = sharing.control
    if control.holder is seat:
        return "you control the guest already\n"
    if sharing.take_control(seat):
        return "you control the guest now\n"
    holder = control.holder
    assert holder is not None
    control.ask(seat)
    holder.say(f"{seat.name} asks for control: 'monitor control give {seat.name}'")
    return f"{holder.name} controls the guest and has been asked; you are told when you get it\n"


def _force(sharing: Sharing, seat: Seat) -> str:
    if not seat.is_attached:
        return _not_here(seat)
    if not seat.admin:
        return "only an administrator of the relay may force control; 'monitor control take' asks for it\n"
    holder = sharing.control.holder
    sharing.force_control(seat)
    if holder is None or holder is seat:
        return "you control the guest now\n"
    return f"you control the guest now; {holder.name} observes\n"


def _give(sharing: Sharing, seat: Seat, name: str) -> str:
    control = sharing.control
    if control.holder is not seat:
        return f"you do not control the guest; {_who(sharing, seat)}"
    to = next((one for one in sharing.seats if one.name == name), None)
    if to is None:
        return f"no session {name!r} is here; {_others(sharing, seat)}\n"
    if to is seat:
        return "you control the guest already\n"
    control.give(to)
    return f"{name} controls the guest now; 'continue' waits for its next stop\n"


def _release(sharing: Sharing, seat: Seat) -> str:
    if sharing.control.holder is not seat:
        return f"you do not control the guest; {_who(sharing, seat)}"
    sharing.control.release()
    return "control is free; the guest and your breakpoints stay as they are\n"
