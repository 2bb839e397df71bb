r"""A boot that obeys: console bytes and time in; keys, a reset, words for the transcript and the outcome out.

in          bytes of the console (``receive``), bytes that were lost, time (``tick``), that the machine was reset or
            ended, what became of keys and of the reset, a secret that was asked for (``give``), the loss of the line
            or the pen, an order to stop
out         ``effects``: keys for the line, what the machine is to do, entries of the transcript; ``deadline``;
            ``outcome`` at the end
states      those of ``states``, as the console shows them; and where the run is in them:

            RESETTING ──▶ BEFORE ──▶ BOOTED ──▶ ENDED
                            │ a dialogue with the loader   │ a dialogue with sulogin or the shell
                            └── no word for the loader: BOOTED at once

invariant   every state but the last has a deadline: without a byte, and in all (``recipes.PATIENCE``, scaled); while a
            person is asked for a secret, that of the question instead (``dialogue.ANSWER``, scaled)
            nothing is typed at a guest that was not reset, nothing is booted whose edit was not read back;
            ``DONE`` only when what was wished was seen

Bytes are looked at in the pieces in which they come: what a dialogue waits for stays on the screen until it answers.
The time is the caller's, in seconds from anywhere.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

from kbridge.boot import editing, finding, menus, one_row, prompts, shells
from kbridge.boot.dialogue import ANSWER, LOADER, Ask, GaveUp, Note, Press, Until
from kbridge.boot.recipes import ESCAPE, GRUB, PATIENCE, RECIPES, Editor
from kbridge.boot.sight import Sight
from kbridge.boot.states import State
from kbridge.boot.symptoms import Weight
from kbridge.boot.triage import Triage
from kbridge.boot.wishes import Goal, Way
from kbridge.errors import KbridgeError
from kbridge.expect.script import Pace, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from kbridge.boot.dialogue import Dialogue, Step
    from kbridge.boot.recipes import Recipe
    from kbridge.boot.states import Change
    from kbridge.boot.symptoms import Symptom
    from kbridge.boot.wishes import Wishes

RESET_SECONDS: Final = 30.0
"""For the monitor to say that the machine was reset."""
REBOOT_SECONDS: Final = 600.0
"""For a machine that somebody else is to restart."""
WAKE_SECONDS: Final = 0.1
"""Between two keys for a loader that shows no menu."""
MAX_WAKES: Final = 300
BARE_PROMPT_SECONDS: Final = 0.2
"""For what looks like a prompt and is none that is known: how long nothing is to follow it."""
MAX_EVIDENCE: Final = 200
MAX_SAID: Final = 1 << 18

_GRUB_BEGINS: Final = b"\x1b[H\x1b[J\x1b[1;1H"
"""What GRUB sends when it takes the serial line, before it shows anything, or waits hidden."""
_UEFI_BEGINS: Final = b"\x1b[=3h"
"""What EDK II's serial terminal sends when it is set up, before it takes keys for the set-up."""
_FIRMWARES: Final = {"EFI shell": ESCAPE, "U-Boot": b" "}
"""Firmware with a command line, and the key that stops its countdown."""
_SET_UP: Final = "Boot Maintenance Manager"
"""On the first screen of EDK II's set-up."""
_LOADER_BEGINS: Final = re.compile(r"Booting from |Welcome to GRUB!|GRUB loading")
"""Lines after which firmware takes no keys any more: Escape would have opened its set-up."""

_LOADERS: Final = frozenset({State.LOADER, State.COUNTDOWN, State.MENU, State.EDITOR, State.COMMAND})
_BEGINNINGS: Final = _LOADERS | {State.FIRMWARE, State.KERNEL}
_BEHIND: Final = frozenset(
    {State.KERNEL, State.INITRAMFS, State.SYSTEMD, State.LOGIN, State.SHELL, State.KDB, State.PANIC}
)
"""What comes after a boot loader."""
_INITRAMFS: Final = frozenset({"initramfs-tools", "dracut"})


class End(Enum):
    """How a run ended."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Reason(Enum):
    """Why it failed, for who has another way."""

    OTHER = "other"
    LOADER = "loader"
    """The boot loader could not be stopped, or has no recipe."""
    ASKED = "asked"
    """A password is wanting."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run: what, why, and what to do next."""

    end: End
    what: str
    why: str = ""
    todo: str = ""
    reason: Reason = Reason.OTHER
    asks: str = ""
    """The secret that is wanting, one of ``dialogue.SECRETS``."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a transcript.

    ``kind``: ``state`` (``evidence``, ``lasted``: how long the one before it was), ``sent`` (``keys``), ``reset``
    (``by_stub``), ``note`` (``text``), ``asks`` (``asks``: which secret; ``user``: whose; ``seconds`` for it), ``gap``
    (``lost``), ``end``.  The console's text is as ``quoted`` has it: nothing in it acts on a terminal.
    """

    kind: str
    elapsed: float
    state: State
    program: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Keys:
    """Bytes for the line, to be sent now."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Reset:
    """The machine is to start anew; ``restarted`` or ``not_reset`` is the answer.

    With ``by_stub`` the kernel's command line is to be changed on its way, without the loader.
    """

    by_stub: bool


Effect = Keys | Reset | Entry


class _Phase(Enum):
    RESETTING = auto()
    BEFORE = auto()
    BOOTED = auto()
    ENDED = auto()


class Machine:
    """One boot."""

    def __init__(
        self,
        wishes: Wishes,
        *,
        nonce: str,
        secrets: Mapping[str, str] | None = None,
        user: str = "root",
        may_ask: bool = False,
        patience: float = 1.0,
        reset: bool = True,
        way: Way = Way.LOADER,
        pace: Pace = Pace(),  # noqa: B008 (frozen)
        guest: str = "GUEST",
    ) -> None:
        """``nonce`` marks a shell's answers; ``patience`` multiplies all deadlines.

        Without ``reset`` somebody else restarts the machine.  ``may_ask`` tells that somebody may be asked for a secret
        that is wanting.

        ``way`` is what there is: who gives ``STUB`` or ``AUTO`` knows that the stub can.
        """
        self._wishes = wishes
        self._nonce = nonce
        self._secrets = dict(secrets or {})
        self._user = user
        self._may_ask = may_ask
        self._asking = ""
        """The secret that somebody is asked for now."""
        self._answered_at = 0.0
        """When the last question ended: what the guest took meanwhile was not its own time."""
        self._patience = patience
        self._reset = reset
        self._by_stub = way is Way.STUB
        self._is_caught = False
        """Whether the debug stub has caught the kernel."""
        self._may_by_stub = way is Way.AUTO and reset and wishes.edits and not wishes.entry
        self._pace = pace
        self._guest = guest
        self._phase = _Phase.RESETTING
        self._began = 0.0
        self._reset_at = 0.0
        self._since = 0.0
        """When the present state began."""
        self._stirred = 0.0
        """When the last byte came."""
        self._effects: list[Effect] = []
        self._out: deque[Press] = deque()
        self._typing: tuple[float, bytes] | None = None
        """Text that was sent since the last entry of the transcript, piece by piece, and when."""
        self._rest = b""
        """What is left of the keys that are being sent."""
        self._ready = 0.0
        self._sight = Sight(self._line)
        self._dialogue: Dialogue | None = None
        self._with_loader = False
        """Whether it is one with a loader."""
        self._fresh = False
        """Whether the dialogue has not begun."""
        self._then: Callable[[float], None] = self._booted
        self._until: Until | None = None
        self._until_end = 0.0
        self._met = ""
        """The loader that was told to boot."""
        self._wakes = 0
        self._next_wake = 0.0
        self._may_wake = False
        self._tail = b""
        """The last bytes before those that come."""
        self._seen_before: list[Change] = []
        self._said = bytearray()
        """What came since the reset, up to ``MAX_SAID`` bytes."""
        self._locked = False
        self._error = ""
        """The loader's last line that is an error."""
        self.outcome: Outcome | None = None
        """How it ended; ``None`` while it goes on."""

    @property
    def state(self) -> State:
        """Where the guest was last seen."""
        return self._sight.state

    @property
    def asking(self) -> str:
        """The secret that somebody is asked for now; empty for none."""
        return self._asking

    @property
    def _wants_loader(self) -> bool:
        wishes = self._wishes
        return not self._by_stub and (wishes.edits or bool(wishes.entry) or wishes.goal is Goal.LOADER)

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is to be called, unless something else happens before; ``None`` after the end."""
        if self._phase is _Phase.ENDED:
            return None
        times = [self._limit()[0]]
        if self._rest or self._out:
            times.append(self._ready)
        elif self._until is not None:
            times.append(self._until_end)
        if self._wakes_now():
            times.append(self._next_wake)
        if self._bare_prompt():
            times.append(self._stirred + BARE_PROMPT_SECONDS)
        return min(times)

    def effects(self) -> list[Effect]:
        """Return what is to be done since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, now: float) -> None:
        """Begin."""
        self._began = self._reset_at = self._since = self._stirred = self._ready = self._answered_at = now
        if self._reset:
            self._start_anew(now)
        else:
            self._note("note", now, text="waits for somebody to restart the machine")

    def _start_anew(self, now: float) -> None:
        self._phase = _Phase.RESETTING
        self._reset_at = now
        self._drop_dialogue()
        self._note("reset", now, by_stub=self._by_stub)
        self._effects.append(Reset(self._by_stub))

    def notice(self, words: str, now: float) -> None:
        """Put words of somebody else into the transcript."""
        if self._phase is not _Phase.ENDED:
            self._note("note", now, text=words)

    def restarted(self, now: float) -> None:
        """Note that the machine was reset where the bytes are now."""
        if self._phase is _Phase.ENDED:
            return
        if self._phase is _Phase.BOOTED and (self.state in _BEHIND or self._by_stub):
            self._failed(now, "the machine was reset again before it got there")
            return
        self._begin(now)

    def _begin(self, now: float) -> None:
        """A boot begins."""
        self._phase = _Phase.BEFORE
        self._drop_dialogue()
        self._sight.reset()
        self._since = self._stirred = now
        self._tail = b""
        self._may_wake = False
        self._seen_before = []
        self._said.clear()
        self._error = ""

    def not_reset(self, words: str, now: float) -> None:
        """Note that the machine could not be reset."""
        self._fail(now, "the machine could not be reset", words)

    def caught(self) -> None:
        """Note that the debug stub has a kernel before it, whose command line it changes."""
        self._is_caught = True

    def not_changed(self, words: str, now: float) -> None:
        """Note that the debug stub could not change the command line."""
        self._fail(now, f"no kernel was started that has the wished command line {self._where()}", words)

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes of the console."""
        if self._phase is _Phase.ENDED or not data:
            return
        self._stirred = now
        if self._phase is _Phase.RESETTING and self._reset:
            # The system that is about to be reset.
            return
        if self._phase is _Phase.BEFORE and not self._may_wake:
            found = self._tail + data
            self._may_wake = (_UEFI_BEGINS if self._wishes.goal is Goal.FIRMWARE else _GRUB_BEGINS) in found
            self._tail = found[-len(_GRUB_BEGINS) :]
        if len(self._said) < MAX_SAID:
            self._said += data
        for change in self._sight.recogniser.feed(data):
            self._changed(change, now)
            if self.outcome is not None or self._phase is _Phase.RESETTING:
                return
        self._go(now)

    def gap(self, lost: int, now: float) -> None:
        """Note that so many bytes came that will not be received."""
        if self._phase is not _Phase.ENDED:
            self._note("gap", now, lost=lost)

    def tick(self, now: float) -> None:
        """Take the time."""
        if self._phase is _Phase.ENDED:
            return
        self._go(now)
        limit, words = self._limit()
        if self.outcome is None and now >= limit:
            self._late(words, now)

    def machine_off(self, now: float) -> None:
        """Note that the machine was switched off."""
        if self._phase in (_Phase.BEFORE, _Phase.BOOTED):
            self._failed(now, "the machine was switched off")

    def machine_stopped(self, why: str, now: float) -> None:
        """Note that the machine stands still and will not go on by itself."""
        if self._phase in (_Phase.BEFORE, _Phase.BOOTED):
            self._failed(now, f"the machine was stopped: {why}")

    def machine_lost(self, why: str, now: float) -> None:
        """Note that the machine's monitor is gone."""
        self._fail(now, "the machine is gone", why, "start it again; `kbridge ls` shows when it is back")

    def line_lost(self, why: str, now: float) -> None:
        """Note that the line is gone."""
        self._fail(now, f"the line was lost {self._where()}", why, "try again when it is back")

    def not_sent(self, words: str, now: float) -> None:
        """Note that keys could not be sent."""
        self._fail(now, f"keys could not be sent {self._where()}", words)

    def pen_taken(self, holder: str, now: float) -> None:
        """Note that somebody took the pen."""
        self._fail(
            now, f"{holder} took the pen", f"it was {self._where()}", "run it again when the console is free"
        )

    def give(self, secret: str | None, now: float) -> None:
        """Answer what is asked; ``None`` gives up."""
        assert self._asking
        if secret is not None:
            self._secrets[self._asking] = secret
        self._asking = ""
        self._answered_at = now
        self._go(now)

    def cancel(self, why: str, now: float) -> None:
        """Stop."""
        if self._phase is not _Phase.ENDED:
            self._end(Outcome(End.CANCELLED, why, f"it was {self._where()}"), now)

    # ── what the console shows ──────────────────────────────────────────────────────────────────────────────

    def _line(self, body: str, believed: bool) -> None:
        if _LOADER_BEGINS.match(body):
            self._may_wake = self._wishes.goal is not Goal.FIRMWARE
        elif self._wishes.goal is Goal.FIRMWARE and body.startswith("BdsDxe: loading "):
            # It has seen the key, or takes none any more.
            self._may_wake = False
        if body.startswith("error: "):
            self._error = body
        if body.startswith("Cannot open access to console, the root account is locked"):
            self._locked = believed

    def _changed(self, change: Change, now: float) -> None:
        if self._phase is _Phase.RESETTING:
            if change.state not in _BEGINNINGS:
                return
            self._phase = _Phase.BEFORE
        fields = {"evidence": quoted(change.evidence[:MAX_EVIDENCE]), "lasted": round(now - self._since, 3)}
        self._enter(Entry("state", round(now - self._began, 3), change.state, change.program, fields))
        self._since = now
        if self._phase is _Phase.BEFORE:
            self._seen_before.append(change)
            self._before(change, now)
        else:
            self._after(change, now)

    def _before(self, change: Change, now: float) -> None:
        """A state before anything was booted that is wished."""
        goal = self._wishes.goal
        state = change.state
        if goal is Goal.FIRMWARE:
            self._before_firmware(change, now)
        elif state is State.FAILED:
            self._failed(now, f"{change.program} found nothing to boot")
        elif not self._wants_loader:
            if state in _BEHIND:
                self._phase = _Phase.BOOTED
                self._after(change, now)
            elif state is State.LOGIN:
                self._after(change, now)
        elif state in _BEHIND and not (state is State.LOGIN and change.program in RECIPES):
            self._missed(now)
        elif self._dialogue is None:
            self._meet(change, now)

    def _before_firmware(self, change: Change, now: float) -> None:
        """A state, where the firmware is to be stopped."""
        if change.state is State.COMMAND and change.program in _FIRMWARES:
            self._done(now, f"{change.program} waits: its command line")
        elif change.state is State.COUNTDOWN and change.program in _FIRMWARES:
            self._talk(self._hold(_FIRMWARES[change.program]), self._at_loader, now)
        elif change.state in _BEHIND | _LOADERS - {State.LOADER} or change.program == "GRUB":
            self._fail(
                now,
                "the firmware cannot be stopped over the serial line",
                f"{change.program} came, and no set-up of the firmware's before it",
                "a BIOS has none on this line: use the machine's screen; UEFI has where its console is this line",
            )

    def _meet(self, change: Change, now: float) -> None:
        """Talk to a loader that waits for keys."""
        recipe = RECIPES.get(change.program)
        wishes, sight = self._wishes, self._sight
        if change.state not in (State.COUNTDOWN, State.MENU, State.COMMAND):
            return
        if wishes.goal is Goal.LOADER and not wishes.entry:
            if recipe is None or change.state is State.COMMAND:
                self._at_loader(now)
            else:
                self._talk(self._hold(recipe.wake), self._at_loader, now)
        elif recipe is not None and recipe.disks is not None and change.state is State.COMMAND:
            self._met = GRUB.program
            self._talk(self._by_disks(recipe), self._chosen, now)
        elif recipe is None or (change.state is State.COMMAND and recipe.prompt is None):
            self._fail(
                now,
                f"{change.program} is at its {'command line' if change.state is State.COMMAND else 'menu'}",
                "there is no recipe by which it starts a kernel with another command line",
                f"do it by hand: `kbridge console {self._guest}`",
                reason=Reason.LOADER,
            )
        elif recipe.prompt is not None:
            if change.state is State.COUNTDOWN:
                # What follows is its prompt, with which it goes on.
                self._press(Press(recipe.wake))
            elif change.state is State.COMMAND:
                self._met = recipe.program
                self._talk(prompts.command(recipe, wishes, sight), self._booted, now)
        else:
            self._met = recipe.program
            self._talk(self._by_menu(recipe), self._chosen, now)

    def _by_menu(self, recipe: Any) -> Dialogue:
        wishes, sight = self._wishes, self._sight

        def look() -> Generator[Step, bool, bool]:
            return editing.is_menu(recipe, sight, self._secrets, self._user)

        if wishes.entry:
            yield from menus.choose(recipe, wishes.entry, sight, look)
        if wishes.edits and isinstance(recipe.editor, Editor):
            yield from editing.edit(recipe, wishes, sight, self._secrets, self._user)
        elif wishes.edits:
            yield from one_row.edit_one_row(recipe, wishes, sight)
        elif wishes.goal is not Goal.LOADER:
            yield Press(recipe.menu.open, "Enter", boots=True)

    def _by_disks(self, recipe: Recipe) -> Dialogue:
        """A configuration is opened, which brings a menu; or a kernel is booted without one."""
        if (yield from finding.find(recipe, self._wishes, self._sight)):
            yield from self._by_menu(GRUB)

    def _hold(self, wake: bytes) -> Dialogue:
        for _ in range(3):
            yield Press(wake)
            if (yield Until(lambda: self.state in (State.MENU, State.COMMAND), 2.0)):
                return
        raise GaveUp("the countdown could not be stopped", "keys were sent and did nothing")

    def _chosen(self, now: float) -> None:
        if self._wishes.goal is Goal.LOADER:
            self._at_loader(now)
        else:
            self._booted(now)

    def _at_loader(self, now: float) -> None:
        self._done(
            now,
            f"{self._sight.program} waits: its {'command line' if self.state is State.COMMAND else 'menu'}",
        )

    def _booted(self, _now: float) -> None:
        self._phase = _Phase.BOOTED

    def _after(self, change: Change, now: float) -> None:
        """A state after what is wished was booted."""
        goal = self._wishes.goal
        state = change.state
        if state in _BEHIND and self._with_loader and change.program not in RECIPES:
            self._drop_dialogue()
        match state:
            case State.FAILED:
                self._failed(now, f"{change.program} could not boot it")
            case State.PANIC:
                self._failed(now, "the kernel panicked")
            case State.OFF:
                self._failed(now, "the guest switched itself off")
            case State.KDB:
                self._failed(
                    now,
                    "the kernel's debugger has stopped the guest",
                    "go on there: `kbridge console`, `kbridge gdb`",
                )
            case State.MENU | State.COUNTDOWN if self._wants_loader and change.program != self._met:
                # One loader starts another, such as U-Boot GRUB.
                self._phase = _Phase.BEFORE
                self._meet(change, now)
            case State.MENU | State.COUNTDOWN | State.COMMAND | State.FIRMWARE:
                self._failed(
                    now,
                    f"{change.program or 'the firmware'} is back: what was booted did not start, or ended",
                )
            case State.KERNEL | State.INITRAMFS | State.SYSTEMD if goal is Goal.KERNEL:
                self._done(now, "the kernel has begun")
            case State.SYSTEMD if goal is Goal.INITRAMFS:
                self._failed(
                    now,
                    "the initramfs did not stop",
                    "it is neither initramfs-tools' nor dracut's, or knows no such stage",
                )
            case State.LOGIN:
                self._at_login(change.program, now)
            case State.SHELL:
                self._at_shell(change.program, now)
            case _:
                return

    def _at_login(self, program: str, now: float) -> None:
        goal = self._wishes.goal
        if program in RECIPES:
            if self._dialogue is None:
                self._talk(menus.give_name(self._sight, self._secrets, self._user), self._booted, now)
        elif program == "sulogin":
            if goal is Goal.UP:
                self._failed(now, "the system came up in rescue or emergency mode")
            else:
                self._talk(shells.log_in(self._sight, self._secrets), self._logged_in, now)
        elif goal is Goal.UP:
            self._done(now, "somebody may log in")
        elif goal is not Goal.KERNEL:
            self._failed(
                now,
                "the system came up as always, and asks for a login",
                "its init does not know the words on the kernel's command line",
                "boot with --init /bin/sh, which asks no init",
            )

    def _at_shell(self, program: str, now: float) -> None:
        goal = self._wishes.goal
        if goal is Goal.UP and program not in _INITRAMFS:
            self._done(now, "a shell is there")
        elif goal in (Goal.UP, Goal.SHELL) and program in _INITRAMFS:
            self._failed(now, "the initramfs has stopped in a shell of its own")
        elif goal in (Goal.SHELL, Goal.INITRAMFS) and self._dialogue is None:
            self._probe(now)

    def _logged_in(self, now: float) -> None:
        if self.state is State.SHELL or self._sight.prompted:
            self._probe(now)
        else:
            self._failed(now, "no shell came after sulogin")

    def _probe(self, now: float) -> None:
        # What was typed at a loader that did not listen may be here now.
        stale = self._wakes > 0
        self._talk(shells.probe(self._sight, self._nonce, stale=stale), self._answered, now)

    def _answered(self, now: float) -> None:
        where = "of the initramfs" if self._wishes.goal is Goal.INITRAMFS else "of root's"
        self._done(now, f"a shell {where} answers")

    def _bare_prompt(self) -> bool:
        """Whether a shell that is wished may stand behind a prompt that no rule knows."""
        return (
            self._phase is _Phase.BOOTED
            and self._wishes.wants_shell
            and self._dialogue is None
            and self.state in (State.LOADER, State.KERNEL, State.INITRAMFS, State.SYSTEMD, State.UNKNOWN)
            and self._sight.prompted
        )

    # ── carrying on ─────────────────────────────────────────────────────────────────────────────────────────

    def _talk(self, dialogue: Dialogue, then: Callable[[float], None], now: float) -> None:
        self._drop_dialogue()
        self._dialogue = dialogue
        self._fresh = True
        self._with_loader = self._phase is _Phase.BEFORE
        self._then = then
        self._go(now)

    def _drop_dialogue(self) -> None:
        if self._dialogue is not None:
            self._dialogue.close()
        self._dialogue = None
        self._until = None
        self._asking = ""
        self._out.clear()
        self._rest = b""

    def _go(self, now: float) -> None:
        """Send what may be sent, and go on with the dialogue."""
        while self.outcome is None:
            if self._rest or self._out:
                if now < self._ready:
                    return
                self._send(now)
            elif self._dialogue is not None:
                if not self._step(self._dialogue, now):
                    return
            elif self._wishes.goal is Goal.FIRMWARE and self._in_set_up():
                self._done(now, "the firmware's set-up waits")
            elif self._wakes_now() and now >= self._next_wake:
                self._wakes += 1
                self._next_wake = now + WAKE_SECONDS
                self._press(Press(ESCAPE))
            elif self._bare_prompt() and now >= self._stirred + BARE_PROMPT_SECONDS:
                self._probe(now)
            elif self._locked:
                self._failed(
                    now,
                    "root is locked: sulogin opens no shell",
                    "it does not take SYSTEMD_SULOGIN_FORCE=1",
                    "boot with --init /bin/sh, which asks no init",
                )
            elif self._loader_refused():
                self._failed(now, "the boot loader could not load what it was told to")
            else:
                return

    def _step(self, dialogue: Dialogue, now: float) -> bool:
        """Take a dialogue one step further; return whether it went on."""
        fresh, self._fresh = self._fresh, False
        try:
            wanted = next(dialogue) if fresh else self._answer(dialogue, now)
        except StopIteration:
            self._dialogue = None
            self._then(now)
            return True
        except GaveUp as error:
            self._dialogue = None
            cause = Reason.ASKED if error.asks else Reason.OTHER
            self._failed(now, error.what, error.why, error.todo, reason=cause, asks=error.asks)
            return True
        except KbridgeError as error:
            self._dialogue = None
            self._failed(now, error.what, error.why, error.todo)
            return True
        if wanted is None:
            return False
        match wanted:
            case Press():
                self._press(wanted)
            case Until():
                self._until = wanted
                self._until_end = now + wanted.seconds * self._patience
            case Note(words):
                self._note("note", now, text=words)
            case Ask(secret):
                self._ask(secret, now)
        return True

    def _ask(self, secret: str, now: float) -> None:
        """Ask for a secret, where somebody is there to be asked."""
        if not self._may_ask:
            return
        seconds = ANSWER * self._patience
        whose = self._user if secret == LOADER else "root"
        self._asking = secret
        self._until, self._until_end = Until(lambda: not self._asking, ANSWER), now + seconds
        self._note("asks", now, asks=secret, user=whose, seconds=seconds)

    def _answer(self, dialogue: Dialogue, now: float) -> Step | None:
        """Tell a dialogue whether it saw what it waits for; return what it wants next, nothing while it waits."""
        seen = False
        if self._until is not None:
            try:
                seen = self._until.seen(*self._until.of)
            except GaveUp as error:
                self._until = None
                return dialogue.throw(error)
            if not seen and now < self._until_end:
                return None
        self._until = None
        if self._asking:
            self._asking = ""
            self._note("note", now, text="nobody gave the password in time")
        return dialogue.send(seen)

    def _press(self, press: Press) -> None:
        self._out.append(press)

    def _send(self, now: float) -> None:
        if not self._rest:
            press = self._out.popleft()
            self._rest = press.keys
            if press.boots:
                self._phase = _Phase.BOOTED
            if press.shown or not press.keys.isascii() or not press.keys.decode().isprintable():
                self._note("sent", now, keys=press.shown or quoted(press.keys.decode("latin-1")))
            elif not self._typing:
                self._typing = (now, press.keys)
            else:
                self._typing = (self._typing[0], self._typing[1] + press.keys)
        piece, self._rest = self._rest[: self._pace.size], self._rest[self._pace.size :]
        self._effects.append(Keys(piece))
        self._ready = now + self._pace.seconds

    def _wakes_now(self) -> bool:
        """Whether a loader may be there that shows no menu, and is to be had to show it."""
        return (
            self._phase is _Phase.BEFORE
            and (self._wants_loader or self._wishes.goal is Goal.FIRMWARE)
            and self._may_wake
            and self._wakes < MAX_WAKES
            and self._dialogue is None
            and self.state in (State.UNKNOWN, State.FIRMWARE, State.LOADER)
            and self._sight.program not in ("U-Boot", "Linux's EFI stub")
            and not self._boots_already()
        )

    def _boots_already(self) -> bool:
        return any(
            change.state is State.LOADER and change.evidence.startswith(("Booting ", "Loading "))
            for change in self._seen_before
        )

    def _in_set_up(self) -> bool:
        return self._phase is _Phase.BEFORE and any(_SET_UP in row for row in self._sight.screen.display())

    def _loader_refused(self) -> bool:
        return (
            self._phase is _Phase.BOOTED
            and self.state is State.LOADER
            and bool(self._error)
            and self._sight.typed().startswith("Press any key to continue")
        )

    def _limit(self) -> tuple[float, str]:
        """Return when the present state has lasted too long, and in which way."""
        if self._phase is _Phase.RESETTING:
            seconds = (RESET_SECONDS if self._reset else REBOOT_SECONDS) * self._patience
            return self._reset_at + seconds, "reset"
        if self._asking:
            return self._until_end, "silent"
        patience = PATIENCE[self.state]
        silent = max(self._stirred, self._answered_at) + patience.silent * self._patience
        whole = max(self._since, self._answered_at) + patience.all * self._patience
        return (silent, "silent") if silent <= whole else (whole, "whole")

    def _late(self, how: str, now: float) -> None:
        waited = now - (self._stirred if how == "silent" else self._since)
        if how == "reset" and self._reset:
            self._fail(
                now, "the machine was not reset", f"the monitor said nothing of it within {waited:.0f} s"
            )
        elif how == "reset":
            self._fail(
                now, "nobody restarted the machine", f"no boot was seen within {now - self._began:.0f} s"
            )
        elif self._phase is _Phase.BEFORE and not self._seen_before and self._sight.blank:
            self._fail(
                now,
                "nothing came on the line",
                f"neither firmware, boot loader nor kernel spoke for {now - self._since:.0f} s since it was started",
                "see that the machine runs and that this is its serial line; `kbridge triage` says more",
                reason=Reason.LOADER,
            )
        elif how == "silent":
            self._failed(now, f"nothing came for {waited:.0f} s {self._where()}")
        else:
            self._failed(now, f"it was {waited:.0f} s {self._where()}")

    def _missed(self, now: float) -> None:
        """The kernel runs, and the loader was not stopped."""
        why, todo = unstoppable(self._seen_before)
        self._drop_dialogue()
        self._fail(
            now,
            "the boot loader cannot be stopped over the serial line",
            why,
            todo.replace("GUEST", self._guest),
            reason=Reason.LOADER,
        )

    # ── the transcript and the end ──────────────────────────────────────────────────────────────────────────

    def _where(self) -> str:
        if self._phase is _Phase.RESETTING:
            return "waiting for the reset"
        by = f" ({self._sight.program})" if self._sight.program else ""
        return f"in state {self.state.value}{by}"

    def _note(self, kind: str, now: float, **fields: Any) -> None:
        self._enter(Entry(kind, round(now - self._began, 3), self.state, self._sight.program, fields))

    def _enter(self, entry: Entry) -> None:
        typing, self._typing = self._typing, None
        if typing is not None:
            keys = {"keys": quoted(typing[1].decode())}
            at = round(typing[0] - self._began, 3)
            self._effects.append(Entry("sent", at, entry.state, entry.program, keys))
        self._effects.append(entry)

    def _done(self, now: float, what: str) -> None:
        if self._by_stub and self._wishes.edits and not self._is_caught:
            self._fail(
                now,
                "the kernel has another command line than the wished one",
                f"{what}, and the debug stub did not see its kernel begin",
                "try again, or leave it to the boot loader: --way loader",
            )
            return
        self._end(Outcome(End.DONE, what), now)

    def _failed(
        self,
        now: float,
        what: str,
        why: str = "",
        todo: str = "",
        *,
        reason: Reason = Reason.OTHER,
        asks: str = "",
    ) -> None:
        """End with what was seen first to go wrong, where something was."""
        cause = self._cause()
        if cause is not None:
            symptom, line = cause
            why = "; ".join(part for part in (why, f"{symptom.what} ({quoted(line[:MAX_EVIDENCE])})") if part)
            todo = todo or symptom.cures[0].replace("GUEST", self._guest)
        elif self._error and not why and self.state not in _BEHIND:
            why = quoted(self._error[:MAX_EVIDENCE])
        self._fail(
            now, what, why, todo or f"`kbridge triage {self._guest}` says more", reason=reason, asks=asks
        )

    def _cause(self) -> tuple[Symptom, str] | None:
        """Return what went wrong first, and the line that shows it."""
        triage = Triage()
        triage.text(0, 0, bytes(self._said))
        wished = {"emergency-mode"} if self._wishes.wants_shell else set()
        found = [
            finding
            for finding in triage.report().findings
            if finding.symptom.weight is Weight.FATAL
            and finding.lines
            and not finding.refuted
            and finding.symptom.name not in wished
        ]
        first = min(found, key=lambda finding: finding.lines[0].offset, default=None)
        return None if first is None else (first.symptom, first.lines[0].text)

    def _fail(
        self,
        now: float,
        what: str,
        why: str = "",
        todo: str = "",
        *,
        reason: Reason = Reason.OTHER,
        asks: str = "",
    ) -> None:
        if self._phase is _Phase.ENDED:
            return
        if reason is Reason.LOADER and self._may_by_stub:
            self._may_by_stub = False
            self._by_stub = True
            self._note("note", now, text=f"{what}: {why}; the debug stub can change the command line instead")
            self._start_anew(now)
            return
        self._end(Outcome(End.FAILED, what, why, todo, reason, asks), now)

    def _end(self, outcome: Outcome, now: float) -> None:
        self.outcome = outcome
        self._phase = _Phase.ENDED
        self._drop_dialogue()
        self._note(
            "end",
            now,
            end=outcome.end.value,
            what=outcome.what,
            why=outcome.why,
            todo=outcome.todo,
            asks=outcome.asks,
            reason=outcome.reason.value,
        )


_OTHER_WAYS: Final = (
    "give the loader time on the line (GRUB: GRUB_TIMEOUT=5, GRUB_TERMINAL='serial console'), or change its "
    "configuration on the disk while the machine is off; `kbridge triage GUEST` says what was seen"
)


def unstoppable(seen: list[Change]) -> tuple[str, str]:
    """Return why a loader of which so much was seen could not be stopped, and what else can be done."""
    programs = [change.program for change in seen if change.state in _LOADERS]
    waited = any(
        change.state in (State.COUNTDOWN, State.MENU, State.EDITOR, State.COMMAND) for change in seen
    )
    booting = any(change.evidence.startswith(("Booting ", "Loading ")) for change in seen)
    if waited:
        return "it went on although keys were sent: they did not arrive, or too late", "try again"
    if "U-Boot" in programs:
        return (
            "U-Boot counted nothing down: bootdelay is 0 or below",
            f"set bootdelay=2 in its environment; {_OTHER_WAYS}",
        )
    if "GRUB" in programs and booting:
        return "GRUB showed no menu and waited for no key: timeout=0", _OTHER_WAYS
    if "GRUB" in programs:
        return (
            (
                "GRUB spoke by the firmware's console only, and showed no menu there: timeout=0, or no terminal_output "
                "for this line"
            ),
            _OTHER_WAYS,
        )
    if "Linux's EFI stub" in programs or any(change.program == "UEFI" for change in seen):
        return "the firmware, or a loader that shows nothing, started the kernel at once", _OTHER_WAYS
    if not programs:
        return (
            (
                "nothing of a boot loader came before the kernel's first line: it has no terminal on this line (GRUB: "
                "terminal_output serial), or the hypervisor starts the kernel itself"
            ),
            _OTHER_WAYS,
        )
    return f"{programs[-1]} started the kernel without waiting for a key", _OTHER_WAYS
