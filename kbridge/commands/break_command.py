"""``kbridge break``."""

from __future__ import annotations

import time

import click

from kbridge.commands.pen_question import ask_for_pen
from kbridge.console.log import Text
from kbridge.console_client import ConsoleClient
from kbridge.control import Refused, guest_path, relay
from kbridge.errors import GuestError
from kbridge.frontends.log_text import PlainText
from kbridge.options import relay_options

ANSWER_SECONDS = 5.0
QUIET_SECONDS = 0.4
"""The answer is over when nothing came for so long."""
MAX_ANSWER_BYTES = 65536


@click.command("break")
@relay_options
@click.argument("guest")
@click.option("--sysrq", metavar="KEY", help="Send this SysRq key after the BREAK: h prints what there are.")
@click.option(
    "--kdb", is_flag=True, help="Bring the kernel to kdb's prompt, where kgdb is on the console's line."
)
@click.option("--force", is_flag=True, help="Take the pen from whoever types on the console.")
def command(
    control: str | None, config: str | None, guest: str, sysrq: str | None, *, kdb: bool, force: bool
) -> None:
    """Send BREAK and a SysRq key to a guest's kernel.

    Prints what came back on the console.  With --sysrq it is checked that the kernel answered: it prints
    `sysrq: …` for each key that it takes.  With --kdb it is broken into in the ways of `break_in`, each checked, until
    kdb's prompt stands; its command `go` lets it run.  Where somebody else has the pen you are asked at a terminal.
    """
    if kdb and sysrq is not None:
        raise click.UsageError("--kdb goes without --sysrq")
    api = relay(control, config)
    wanted = {"sysrq": sysrq, "kdb": kdb}
    with ConsoleClient(api, guest, read_only=True, history=0) as console:
        try:
            done = api.post(guest_path(guest, "/break"), {**wanted, "force": force})
        except Refused as error:
            ask_for_pen(api, guest, error)
            done = api.post(guest_path(guest, "/break"), {**wanted, "force": True})
        answer = _answer(console, kdb=kdb)
    text = PlainText().feed(Text(0, 0, answer)).strip("\n")
    if text:
        click.echo(text)
    if kdb:
        how = "stood in kgdb already" if done["way"] is None else f"was broken into by {done['way']}"
        click.echo(f"{guest} {how}: kdb waits on its console, `go` lets it run", err=True)
        return
    if sysrq is None:
        silence = "" if text else "; a kernel says nothing to it until a SysRq key follows"
        click.echo(f"BREAK was sent ({done['way']}){silence}", err=True)
        return
    if "sysrq:" not in text.lower():
        state = api.get(guest_path(guest))["state"]
        why = f"it is {state}" if state not in ("running", "unknown") else f"nothing in {ANSWER_SECONDS:g} s"
        raise GuestError(
            f"the kernel of {guest} did not answer SysRq {sysrq}",
            why=why,
            todo="is its console on this line, and CONFIG_MAGIC_SYSRQ_SERIAL set?",
        )
    if "disabled" in text:
        raise GuestError(
            f"the kernel of {guest} refused SysRq {sysrq}",
            why="kernel.sysrq masks it",
            todo="boot with sysrq_always_enabled",
        )


def _answer(console: ConsoleClient, *, kdb: bool) -> bytes:
    deadline = time.monotonic() + ANSWER_SECONDS
    answer = b""
    while (left := deadline - time.monotonic()) > 0 and len(answer) < MAX_ANSWER_BYTES:
        before = len(answer)
        for message in console.messages(min(left, QUIET_SECONDS)):
            if isinstance(message, bytes):
                answer += message
        done = len(answer) == before and (kdb or b"sysrq:" in answer.lower())
        if done or console.ended:
            break
    return answer
