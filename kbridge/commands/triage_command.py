"""``kbridge triage``: what became of a guest's last boot."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from kbridge.boot.symptoms import Weight
from kbridge.boot.triage import Triage, Verdict
from kbridge.commands.log_command import pieces
from kbridge.console.log import Text
from kbridge.console.timeline import time_text
from kbridge.control import Refused, RelayDown, guest_path, relay
from kbridge.frontends.log_text import PlainText, clock
from kbridge.options import relay_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kbridge.boot.triage import Finding, Line, Report, Stage

PIECE_BYTES: Final = 65536
MAX_LINES_SHOWN: Final = 3
WIDTH: Final = 110
_COLOURS: Final[Mapping[Verdict, str]] = {
    Verdict.UP: "green",
    Verdict.FAILED: "red",
    Verdict.HUNG: "red",
    Verdict.STOPPED: "yellow",
    Verdict.OFF: "yellow",
    Verdict.UNKNOWN: "yellow",
}


@click.command("triage")
@relay_options
@click.argument("guest", required=False)
@click.option(
    "--file", "file", type=click.File("rb"), metavar="RAW", help="A saved console log instead; - is stdin."
)
@click.option("--json", "as_object", is_flag=True, help="A JSON object.")
def command(
    control: str | None, config: str | None, guest: str | None, *, file: BinaryIO | None, as_object: bool
) -> None:
    """Say how far a guest's last boot came, how long that took, what failed, and what to try.

    Reads the record of the console, through the relay or without it, or a log that was saved elsewhere.  What the
    record does not show is said to be unknown.

    Exit status: 0 whatever the verdict is; programs read `verdict` of --json.
    """
    if (guest is None) is (file is None):
        raise click.UsageError("name a guest, or a log with --file")
    triage = Triage()
    now_ns = 0
    if file is not None:
        offset = 0
        while data := file.read(PIECE_BYTES):
            triage.text(offset, 0, data)
            offset += len(data)
    else:
        assert guest is not None
        _read(triage, pieces(control, config, guest, "json", None, None, follow=False))
        now_ns = time.time_ns() if _silence_tells(control, config, guest) else 0
    report = triage.report(now_ns=now_ns)
    name = guest if guest is not None else ""
    if as_object:
        click.echo(json.dumps(as_json(report, name)))
        return
    for text in describe(report, name):
        click.echo(text)


def _silence_tells(control: str | None, config: str | None, guest: str) -> bool:
    """Whether silence means something: the line is open and the machine runs."""
    try:
        status = relay(control, config).get(guest_path(guest))
    except (RelayDown, Refused):
        return False
    console = status["console"]
    return console is not None and console["state"] == "open" and status["state"] in ("running", "unknown")


def _read(triage: Triage, record: Iterable[bytes]) -> None:
    """Give a record of JSON lines to ``triage``."""
    rest = b""
    for piece in record:
        *whole, rest = (rest + piece).split(b"\n")
        for one in whole:
            _entry(triage, json.loads(one))
    if rest:
        _entry(triage, json.loads(rest))


def _entry(triage: Triage, entry: dict[str, Any]) -> None:
    wall_ns = _ns(entry.pop("time"))
    offset, kind = entry.pop("offset"), entry.pop("kind")
    match kind:
        case "console.text":
            triage.text(offset, wall_ns, entry["text"].encode("latin-1"))
        case "console.gap":
            triage.gap(offset, entry["reason"])
        case _:
            triage.event(kind, offset, wall_ns, entry)


def _ns(text: str | None) -> int:
    if text is None:
        return 0
    moment = datetime.fromisoformat(text)
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


# ── for programs ────────────────────────────────────────────────────────────────────────────────────────────────


def as_json(report: Report, guest: str) -> dict[str, Any]:
    """Return the report as ``--json`` prints it."""
    return {
        "guest": guest or None,
        "verdict": report.verdict,
        "words": report.words,
        "reached": report.reached,
        "program": report.program,
        "begun_by": report.begun_by,
        "begin": _time(report.begin_ns),
        "begin_offset": report.begin_offset,
        "end": _time(report.end_ns),
        "end_offset": report.end_offset,
        "release": report.release or None,
        "command_line": report.command_line or None,
        "stages": [
            {
                "state": stage.state,
                "program": stage.program,
                "seconds": None if stage.seconds is None else round(stage.seconds, 3),
                "seconds_by": None if stage.seconds is None else "kernel" if stage.by_kernel else "record",
                "kernel_seconds": stage.kernel_seconds,
                **_line(stage.line),
            }
            for stage in report.stages
        ],
        "findings": [
            {
                "name": finding.symptom.name,
                "weight": finding.symptom.weight,
                "what": finding.symptom.what,
                "got_over": finding.refuted,
                "count": finding.count,
                "lines": [_line(line) for line in finding.lines],
                "try": list(finding.symptom.cures),
            }
            for finding in report.findings
        ],
        "last_lines": [_line(line) for line in report.last_lines],
        "gaps": [{"offset": offset, "reason": reason} for offset, reason in report.gaps],
        "boots": report.boots,
    }


def _line(line: Line) -> dict[str, Any]:
    return {"time": _time(line.wall_ns), "offset": line.offset, "text": line.text}


def _time(wall_ns: int) -> str | None:
    return time_text(wall_ns) if wall_ns else None


# ── for people ──────────────────────────────────────────────────────────────────────────────────────────────────


def describe(report: Report, guest: str) -> Iterable[str]:
    """Yield the report's lines."""
    yield from _head(report, guest)
    yield ""
    yield from _table(report.stages)
    yield ""
    yield click.style(f"{report.verdict.upper()}: ", fg=_COLOURS[report.verdict], bold=True) + report.words
    standing = [each for each in report.findings if not each.refuted]
    order = (Weight.FATAL, Weight.HUNG, Weight.WARNING, Weight.NOTE)
    for finding in sorted(standing, key=lambda each: order.index(each.symptom.weight)):
        yield from _finding(finding, report.words, guest)
    if not standing and report.verdict is not Verdict.UP:
        yield ""
        yield "  the last lines:"
        for line in report.last_lines:
            yield f"    {_clip(line.text)}"
    over = [each.symptom.name for each in report.findings if each.refuted]
    if over:
        yield ""
        yield f"Got over on the way: {', '.join(over)}"
    for offset, reason in report.gaps:
        yield f"Text may be missing at offset {offset} ({reason})."


def _head(report: Report, guest: str) -> Iterable[str]:
    begun = {
        "machine.reset": "since the machine was reset",
        "text": "since it shows on the console",
        "record": "from the record's own beginning",
    }[report.begun_by]
    when = f", {clock(report.begin_ns)}" if report.begin_ns else ""
    before = f"; {report.boots - 1} before it in the record" if report.boots > 1 else ""
    yield f"{guest or 'log'}: the last boot, {begun}{when}{before}"
    if report.release:
        yield f"  kernel   {report.release}"
    if report.command_line:
        yield f"  command  {_clip(report.command_line)}"


def _table(stages: tuple[Stage, ...]) -> Iterable[str]:
    if not stages:
        yield "  no stage of a boot is recognised"
        return
    rows = [
        (
            stage.state.value,
            stage.program,
            _seconds(stage, last=stage is stages[-1]),
            _clip(stage.line.text, 60),
        )
        for stage in stages
    ]
    widths = [max(len(row[column]) for row in (*rows, ("stage", "by", "lasted", ""))) for column in range(3)]
    yield f"  {'stage':{widths[0]}}  {'by':{widths[1]}}  {'lasted':>{widths[2]}}  shown by"
    for state, program, lasted, text in rows:
        yield f"  {state:{widths[0]}}  {program:{widths[1]}}  {lasted:>{widths[2]}}  {text}"
    known = [stage.seconds for stage in stages[:-1] if stage.seconds is not None]
    if len(known) > 1 and len(known) == len(stages) - 1:
        yield f"  until there, {sum(known):.1f} s in all"
    if any(stage.by_kernel for stage in stages):
        yield "  (k: by the kernel's own clock)"


def _seconds(stage: Stage, *, last: bool) -> str:
    if stage.seconds is None:
        return "-"
    if stage.seconds >= 600:
        minutes, seconds = divmod(round(stage.seconds), 60)
        text = f"{minutes} min {seconds:02} s"
    else:
        text = f"{stage.seconds:.1f} s"
    # How long it stays where it is nobody knows.
    return ("≥ " if last else "") + text + (" k" if stage.by_kernel else "")


def _finding(finding: Finding, said: str, guest: str) -> Iterable[str]:
    symptom = finding.symptom
    yield ""
    if symptom.what != said:
        yield f"  {symptom.weight}: {symptom.what} [{symptom.name}]"
    else:
        yield f"  [{symptom.name}]"
    for line in finding.lines[:MAX_LINES_SHOWN]:
        stamp = f"{clock(line.wall_ns)}  " if line.wall_ns else ""
        yield f"    {stamp}{_clip(line.text, WIDTH - len(stamp))}"
    if finding.count > MAX_LINES_SHOWN:
        yield f"    … and {finding.count - MAX_LINES_SHOWN} more"
    yield "  try:"
    for cure in symptom.cures:
        yield f"    - {cure.replace('GUEST', guest or 'GUEST')}"


def _clip(text: str, width: int = WIDTH) -> str:
    """Return text of the guest's, harmless for a terminal and not too long."""
    plain = PlainText().feed(Text(0, 0, text.encode())).replace("\n", " ")
    return plain if len(plain) <= width else plain[: width - 1] + "…"
