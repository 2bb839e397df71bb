"""Boots that are controlled, against loaders and guests that are not there, in a time of their own."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from boot_lab import FOLDER
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loaders_lab import DEFAULT, FORCE, KERNEL, PLAIN, Grub, Guest, Run, SystemdBoot, UBoot, drive

from kbridge.boot.control import End, Keys, Machine, Reason
from kbridge.boot.states import State
from kbridge.boot.wishes import StopAt, Way, Wishes

if TYPE_CHECKING:
    from collections.abc import Callable

SINGLE = Wishes(single_user=True)
WANTED = f"{PLAIN} single {FORCE}"


def done(run: Run) -> bool:
    assert run.outcome.end is End.DONE, run.outcome
    return True


def failed(run: Run, what: str, why: str = "") -> bool:
    assert run.outcome.end is End.FAILED, run.outcome
    assert what in run.outcome.what, run.outcome
    assert why in run.outcome.why, run.outcome
    assert run.outcome.todo, "what to do next is said"
    return True


# ── to a shell ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wishes", "booted"),
    [
        (SINGLE, WANTED),
        (Wishes(emergency=True), f"{PLAIN} emergency {FORCE}"),
        (Wishes(init="/bin/sh"), f"{PLAIN} init=/bin/sh"),
        (Wishes(break_at="premount"), f"{PLAIN} break=premount rd.break=pre-mount {FORCE}"),
        (Wishes(single_user=True, append="debug nokaslr"), f"{WANTED} debug nokaslr"),
        (Wishes(append="debug"), f"{PLAIN} quiet debug"),
        (Wishes(init="/bin/sh", append="-- -x"), f"{PLAIN} init=/bin/sh -- -x"),
        (Wishes(), f"{PLAIN} quiet"),
    ],
)
def test_a_wish_is_booted_and_seen(wishes: Wishes, booted: str) -> None:
    """The kernel has the wanted command line, and it is done when what was wished answers."""
    loader = Grub()
    assert done(drive(loader, wishes))
    assert loader.guest.booted == [booted]
    assert loader.resets == 1


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": -1},
        {"style": "hidden"},
        {"style": "countdown"},
        {"terminals": "serial"},
        {"terminals": "serial_com0 gfxterm"},
        {"rows": 3},
        {"rows": 40},
    ],
)
def test_grub_as_it_may_be_configured(options: dict[str, Any]) -> None:
    """A menu that waits, hidden ones, few rows that scroll."""
    loader = Grub(**options)
    run = drive(loader, SINGLE)
    assert done(run)
    assert loader.guest.booted == [WANTED]
    assert run.seconds < 3, "no countdown is waited out"


LONG = " ".join(f"word{number}=value{number}" for number in range(30))


@pytest.mark.parametrize(
    "text",
    [
        f"{KERNEL} {LONG}",
        f"{KERNEL} quiet {LONG}",
        *(f"{KERNEL} {'x' * length}" for length in range(1, 40)),
        "linux /boot/vmlinuz \\\n\t\troot=/dev/vda1 \\\n\t\tro\\\n\tquiet",
        # Of the last one more rows are below the screen's end.
        f"insmod a\n\tinsmod b\n\tinsmod c\n\tlinux /boot/vmlinuz \\\n\t\tro \\\n\t\tquiet {LONG[:250]}",
        "linux\t/boot/vmlinuz\troot=/dev/vda1\tro\tquiet",
        "linux /boot/vmlinuz",
        "linux /boot/vmlinuz quiet splash",
        f"{KERNEL} single",
    ],
)
def test_any_kernels_line_is_edited(text: str) -> None:
    """Long ones wrap, some go on in the next line, tabs show as blanks."""
    loader = Grub(entries={"Linux": ("insmod ext2", text, "initrd /x")}, rows=9 if "insmod a" in text else 12)
    assert done(drive(loader, SINGLE))
    _, _, *old = text[text.index("linux") :].replace("\\\n", "").split()
    kept = [word for word in old if word not in ("quiet", "splash")]
    new = [word for word in ("single", FORCE) if word not in kept]
    assert loader.guest.booted == [" ".join([*kept, *new])]


@pytest.mark.parametrize("above", range(12))
def test_a_line_whose_next_one_is_shown_in_part_is_made_one(above: int) -> None:
    """Lines above it, so many that those behind it begin in the last rows of the window and wrap below it."""
    text = f"{KERNEL} \\\n\t\tro \\\n\t\tlong={'x' * 200}"
    loader = Grub(entries={"Linux": (*("insmod ext2",) * above, text, "initrd /x")})
    assert done(drive(loader, SINGLE))
    assert loader.guest.booted[0].endswith(f" ro long={'x' * 200} single {FORCE}")


def test_words_that_grub_would_take_for_its_own_are_written_for_it() -> None:
    """What its editor has is in its language."""
    loader = Grub()
    assert done(drive(loader, Wishes(append="a=$x;{b} 'c'")))
    assert loader.guest.booted[0].endswith(r"a=\$x\;\{b\} \'c\'")


@pytest.mark.parametrize(
    ("entry", "title"),
    [
        ("1", "a"),
        ("3", "c"),
        ("B", "b"),
        ("30", "entry 30"),
        ("menu>2", "inner 2"),
        ("4 > inner 3", "inner 3"),
        ("entry 17", "entry 17"),
    ],
)
@pytest.mark.parametrize("edits", [False, True])
def test_an_entry_is_chosen_by_number_or_title(entry: str, title: str, edits: bool) -> None:
    """Menus that scroll, and menus in menus."""
    plain = ["a", "b", "c"]
    more = [f"entry {number}" for number in range(5, 31)]
    inner = {f"inner {number}": (f"linux /x is={number}",) for number in (1, 2, 3)}
    entries: dict[str, Any] = {name: (f"linux /x is={name}",) for name in plain}
    entries |= {"menu": inner} | {name: (f"linux /x is={name[6:]}",) for name in more}
    loader = Grub(entries=entries)
    assert done(drive(loader, Wishes(entry=entry, append="y" if edits else "")))
    name = title.rsplit(maxsplit=1)[-1]
    assert loader.guest.booted == [f"is={name}" + (" y" if edits else "")]


def test_an_entry_that_there_is_not_is_named() -> None:
    """With those that there are; nothing is booted."""
    loader = Grub()
    for entry in ("7", "Windows"):
        assert failed(drive(loader, Wishes(entry=entry)), f"no entry '{entry}'", "'Small Linux (rescue)'")
    assert failed(drive(loader, Wishes(entry="1>2")), "is no menu")
    assert failed(drive(Grub(), Wishes(entry="3", append="x")), "a menu of its own")
    chain = Grub(entries={"Other": ("chainloader +1",)})
    assert failed(drive(chain, SINGLE), "starts no Linux")
    assert not loader.guest.booted
    assert not chain.guest.booted


def test_u_boot_is_stopped_and_its_preset_kept() -> None:
    """The kernel's words are set, printed and booted."""
    for preset, wanted in (
        ("console=ttyS0 root=/dev/sda1", f"console=ttyS0 root=/dev/sda1 single {FORCE}"),
        ("", f"single {FORCE}"),
        (LONG, f"{LONG} single {FORCE}"),
    ):
        loader = UBoot(bootargs=preset)
        assert done(drive(loader, SINGLE))
        assert loader.guest.booted == [wanted]


@pytest.mark.parametrize("old", ["ro quiet", "", "ro ", LONG, f"{LONG} ", "x" * 77, "x" * 78, "x" * 200])
def test_systemd_boot_has_words_added(old: str) -> None:
    """In its one row, which shows a part; what is there stays."""
    loader = SystemdBoot(entries={"x": old})
    assert done(drive(loader, SINGLE))
    assert loader.guest.booted[0].split() == [*old.split(), "single", FORCE]
    assert done(drive(chosen := SystemdBoot(), Wishes(entry="rescue", append="debug")))
    assert chosen.guest.booted == [f"{PLAIN} rescue debug"]
    assert done(drive(chosen := SystemdBoot(), Wishes(entry="2")))
    assert chosen.guest.booted == [f"{PLAIN} rescue"]


@pytest.mark.parametrize("loader", [Grub(), Grub(timeout=-1), UBoot(), SystemdBoot()])
def test_a_loader_can_be_what_is_wished(loader: Any) -> None:
    """It waits, and nothing is booted."""
    assert done(drive(loader, Wishes(stop_at=StopAt.LOADER)))
    loader.tick(1000.0)
    assert not loader.guest.booted


def test_the_firmware_can_be_what_is_wished() -> None:
    """Where it has a set-up or a command line on the line; elsewhere that is said."""
    wish = Wishes(stop_at=StopAt.FIRMWARE)
    assert done(drive(UBoot(), wish))
    assert failed(drive(Grub(), wish), "the firmware cannot be stopped", "GRUB came")
    machine = Machine(wish, nonce="kb0001")
    machine.start(0.0)
    machine.restarted(0.0)
    machine.receive(b"\x1b[2J\x1b[01;01H\x1b[=3h", 1.0)
    assert b"".join(effect.data for effect in machine.effects() if isinstance(effect, Keys)) == b"\x1b"
    machine.receive(b'BdsDxe: loading Boot0000 "UiApp" from Fv(7)\r\n', 2.0)
    assert machine.deadline is not None
    machine.tick(3.0)
    assert not [effect for effect in machine.effects() if isinstance(effect, Keys)]
    machine.receive(b"\x1b[2J\x1b[11;01H > Boot Maintenance Manager", 4.0)
    assert machine.outcome is not None
    assert machine.outcome.what == "the firmware's set-up waits"


def test_the_kernel_can_be_what_is_wished() -> None:
    """Nothing is waited for after its first line."""
    loader = Grub(Guest(login=""))
    assert done(drive(loader, Wishes(stop_at=StopAt.KERNEL, append="x")))


# ── passwords ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_grubs_password() -> None:
    """Given, wrong, wanting."""
    protected: dict[str, Any] = {"password": ("admin", "hunter2")}
    loader = Grub(**protected)
    run = drive(loader, SINGLE, user="admin", secrets={"loader": "hunter2"})
    assert done(run)
    assert loader.guest.booted == [WANTED]
    assert "hunter2" not in repr(run.entries), "what is secret is in no transcript"
    assert failed(
        drive(Grub(**protected), SINGLE, user="admin", secrets={"loader": "x"}),
        "refused the password of 'admin'",
    )
    run = drive(Grub(**protected), SINGLE)
    assert failed(run, "asks for a user's name and password")
    assert (run.outcome.reason, run.outcome.asks) == (Reason.ASKED, "loader")


def test_roots_password() -> None:
    """Given, wrong, wanting."""
    assert done(run := drive(Grub(Guest(asks="hunter2")), SINGLE, secrets={"root": "hunter2"}))
    assert "hunter2" not in repr(run.entries)
    assert done(drive(Grub(Guest(asks="hunter2", flushes=2)), SINGLE, secrets={"root": "hunter2"}))
    wrong = {"root": "x"}
    assert failed(
        drive(Grub(Guest(asks="hunter2", flushes=1)), SINGLE, secrets=wrong), "root's password is wrong"
    )
    run = drive(Grub(Guest(asks="hunter2")), SINGLE)
    assert failed(run, "root's password is asked for")
    assert (run.outcome.reason, run.outcome.asks) == (Reason.ASKED, "root")


def test_a_person_is_asked_for_a_password_when_the_guest_asks() -> None:
    """For longer than its state may last; it is typed, and shown nowhere."""
    loader = Grub(Guest(asks="swordfish"), password=("admin", "hunter2"))
    passwords = {"loader": "hunter2", "root": "swordfish"}
    run = drive(loader, SINGLE, user="admin", may_ask=True, answers=passwords.pop)
    assert done(run)
    assert loader.guest.booted == [WANTED]
    asked = [(entry.state, dict(entry.fields)) for entry in run.entries if entry.kind == "asks"]
    assert asked == [
        (State.LOGIN, {"asks": "loader", "user": "admin", "seconds": 120.0}),
        (State.LOGIN, {"asks": "root", "user": "root", "seconds": 120.0}),
    ]
    assert not any(word in repr(run.entries) for word in ("hunter2", "swordfish"))


@pytest.mark.parametrize(
    ("loader", "asks", "words"),
    [
        (lambda: Grub(password=("root", "hunter2")), "loader", "asks for a user's name and password"),
        (lambda: Grub(Guest(asks="hunter2")), "root", "root's password is asked for"),
    ],
)
def test_who_gives_no_password_has_what_is_said_without_him(
    loader: Callable[[], Grub], asks: str, words: str
) -> None:
    """At once when he gives up, after two minutes when nobody is there; and he is not asked for what was given."""
    given_up = drive(loader(), SINGLE, may_ask=True, answers=lambda _name: None, thinks=1.0)
    nobody = drive(loader(), SINGLE, may_ask=True)
    for run in (given_up, nobody):
        assert failed(run, words)
        assert (run.outcome.reason, run.outcome.asks) == (Reason.ASKED, asks)
    assert given_up.seconds < 10
    assert 120 < nobody.seconds < 130
    assert "nobody gave the password in time" in repr(nobody.entries)
    wrong = drive(loader(), SINGLE, may_ask=True, answers=lambda _name: "x")
    assert wrong.outcome.end is End.FAILED
    assert ("refused" if asks == "loader" else "is wrong") in wrong.outcome.what
    given = drive(loader(), SINGLE, may_ask=True, secrets={asks: "hunter2"})
    assert done(given)
    assert not [entry for entry in given.entries if entry.kind == "asks"]


def test_a_guest_that_dies_while_a_person_is_asked_is_told_at_once() -> None:
    """What is typed then is not wanted any more."""
    machine = Machine(SINGLE, nonce="kb0001", may_ask=True, way=Way.STUB)
    machine.start(0.0)
    machine.restarted(0.0)
    machine.caught()
    machine.receive(b"[    0.000000] Linux version 6.1.0-1 (a@b) #1 SMP\r\n", 1.0)
    machine.receive(b"Give root password for maintenance\r\n(or press Control-D to continue): ", 2.0)
    assert machine.asking == "root"
    assert machine.deadline == 122.0
    machine.receive(b"\r\n[    9.000000] Kernel panic - not syncing: no\r\n", 50.0)
    assert not machine.asking
    assert machine.outcome is not None
    assert machine.outcome.what == "the kernel panicked"


# ── what a shell is ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_shell_must_answer() -> None:
    """One that threw the question away is asked again; a prompt behind which nobody is is none."""
    assert done(drive(Grub(Guest(deaf=2)), SINGLE))
    assert failed(drive(Grub(Guest(deaf=100)), SINGLE), "no shell answers behind it")
    assert failed(drive(Grub(Guest(user="1000")), SINGLE), "not root's", "1000")


@pytest.mark.parametrize(
    "prompt", ["# ", "sh-5.2# ", "bash# ", "root@web1:/# ", "/ # ", "\x1b[?2004h[root@web1 ~]# "]
)
def test_prompts_of_many_shells(prompt: str) -> None:
    """Known or not."""
    assert done(drive(Grub(Guest(shell=prompt)), Wishes(init="/bin/sh")))


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("loader", "why"),
    [
        (Grub(timeout=0), "timeout=0"),
        (Grub(serial=False), "nothing of a boot loader came"),
        (UBoot(delay=0), "bootdelay"),
    ],
)
def test_a_loader_that_cannot_be_stopped_is_said_to_be_so(loader: Any, why: str) -> None:
    """Told apart by what came, with what else can be done."""
    run = drive(loader, SINGLE)
    assert failed(run, "cannot be stopped over the serial line", why)
    assert run.outcome.reason is Reason.LOADER
    assert "on the disk" in run.outcome.todo


def test_the_stub_is_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the loader cannot be stopped and the stub can change the command line, the machine is reset once more."""
    loader = Grub(Guest(), timeout=0)

    def boot(command_line: str) -> str:
        return guest_boot(WANTED if loader.resets > 1 else command_line)

    guest_boot = loader.guest.boot
    monkeypatch.setattr(loader.guest, "boot", boot)
    assert done(drive(loader, SINGLE, way=Way.AUTO))
    assert loader.guest.booted == [f"{PLAIN} quiet", WANTED]
    # A kernel that it did not see begin has another command line, whatever shell there is.
    loader.resets = 1
    missed = drive(loader, SINGLE, way=Way.STUB, catches=False)
    assert failed(missed, "another command line than the wished one", "did not see its kernel begin")
    # It cannot choose an entry.
    assert failed(drive(Grub(timeout=0), Wishes(entry="2", append="x"), way=Way.AUTO), "cannot be stopped")


def test_a_panic_is_said_with_its_first_cause() -> None:
    """Not the panic's own words."""
    assert failed(drive(Grub(Guest(panics=True)), SINGLE), "the kernel panicked", "Cannot open root device")
    assert failed(drive(Grub(Guest(panics=True)), Wishes()), "the kernel panicked", "Cannot open root device")


def test_a_system_that_does_not_obey_is_no_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for a login."""
    loader = Grub(entries={"x": ("linux /x",)})
    said = (
        "[    0.000000] Linux version 6.1.0-1 (a@b) #1\r\nDebian GNU/Linux 12 web1 ttyS0\r\n\r\nweb1 login: "
    )
    monkeypatch.setattr(loader.guest, "boot", lambda _words: said)
    assert failed(drive(loader, SINGLE), "came up as always")


def test_an_editor_that_takes_no_keys_is_given_up() -> None:
    """And nothing is booted."""
    loader = Grub(stalls=True)
    assert failed(drive(loader, SINGLE), "")
    assert not loader.guest.booted


class Silent:
    """A machine without a word."""

    due = None

    def reset(self, _now: float) -> str:
        return ""

    tick = reset


def test_silence_ends() -> None:
    """Of a machine, and of a kernel."""
    assert failed(drive(Grub(Guest(silent=True)), SINGLE), "nothing came for")
    quiet = Silent()
    run = drive(quiet, SINGLE)
    assert failed(run, "nothing came on the line")
    hurried = drive(quiet, SINGLE, patience=0.1)
    assert failed(hurried, "nothing came on the line")
    assert hurried.seconds * 5 < run.seconds


def test_what_happens_to_machine_line_and_pen_ends_it() -> None:
    """Each in its words."""
    events: list[tuple[Callable[[Machine], None], str]] = [
        (lambda m: m.line_lost("unplugged", 1.0), "the line was lost"),
        (lambda m: m.machine_lost("gone", 1.0), "the machine is gone"),
        (lambda m: m.machine_off(1.0), "switched off"),
        (lambda m: m.machine_stopped("a panic", 1.0), "was stopped: a panic"),
        (lambda m: m.not_sent("no line", 1.0), "keys could not be sent"),
        (lambda m: m.pen_taken("ben", 1.0), "ben took the pen"),
        (lambda m: m.not_reset("no", 1.0), "could not be reset"),
    ]
    for event, words in events:
        machine = Machine(SINGLE, nonce="kb0001")
        machine.start(0.0)
        machine.restarted(0.5)
        machine.receive(b"SeaBIOS (version 1.16)\r\n", 0.6)
        event(machine)
        assert machine.outcome is not None
        assert machine.outcome.end is End.FAILED
        assert words in machine.outcome.what
        assert machine.deadline is None
        machine.receive(b"x", 2.0)
        machine.tick(3.0)
    machine = Machine(SINGLE, nonce="kb0001")
    machine.start(0.0)
    machine.cancel("enough", 1.0)
    assert machine.outcome is not None
    assert machine.outcome.end is End.CANCELLED


def test_a_reset_that_somebody_else_makes_is_waited_for() -> None:
    """What the system before says is none of it, and nothing is typed at it."""
    machine = Machine(SINGLE, nonce="kb0001", reset=False)
    machine.start(0.0)
    machine.receive(b"web1 login: root\r\nroot@web1:~# reboot\r\n", 1.0)
    assert machine.deadline is not None
    assert machine.deadline > 500
    assert not [effect for effect in machine.effects() if not hasattr(effect, "kind")]
    machine.receive(b"[   99.000000] reboot: Restarting system\r\n", 2.0)
    assert machine.state is State.FIRMWARE


# ── any line ────────────────────────────────────────────────────────────────────────────────────────────────────

LOADERS = st.sampled_from(
    [
        Grub,
        lambda: Grub(style="hidden", rows=3),
        lambda: Grub(style="countdown", terminals="serial"),
        lambda: Grub(entries={"x": ("insmod a", f"{KERNEL} {LONG}"), "y": DEFAULT}, rows=9),
        lambda: Grub(entries={"x": ("linux /x \\\n\t\tro \\\n\tquiet",)}),
        lambda: Grub(password=("root", "p")),
        UBoot,
        lambda: UBoot(bootargs=LONG),
        SystemdBoot,
        lambda: SystemdBoot(entries={"x": LONG}),
    ]
)


SEEDS = st.integers(0, 1 << 32)
"""A random of Hypothesis' own would draw each byte's fate."""


def wanted(loader: Any) -> str:
    """What may be booted."""
    if isinstance(loader, UBoot):
        return SINGLE.new_command_line(loader.preset)
    if isinstance(loader, SystemdBoot):
        return " ".join([*next(iter(loader.entries.values())).split(), "single", FORCE])
    entry = next(iter(loader.all.values()))
    line = next(line for line in "\n".join(entry).replace("\\\n", "").split("\n") if line.startswith("linux"))
    return SINGLE.new_command_line(" ".join(line.split()[2:]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LOADERS, SEEDS)
def test_it_does_not_matter_how_bytes_were_cut(make: Any, seed: int) -> None:
    """The same is booted, and it is done."""
    random = Random(seed)

    def pieces(data: bytes) -> list[bytes]:
        cuts = sorted({0, len(data), *(random.randrange(len(data)) for _ in range(random.randrange(20)))})
        return [data[a:b] for a, b in pairwise(cuts)]

    loader = make()
    assert done(drive(loader, SINGLE, pieces=pieces, secrets={"loader": "p"}))
    assert loader.guest.booted == [wanted(loader)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LOADERS, SEEDS, st.sampled_from([0.0, 0.001, 0.02, 0.2]), st.sampled_from([0.0, 0.0005, 0.02, 0.2]))
def test_a_bad_line_boots_nothing_that_was_not_wished(
    make: Any, seed: int, drops: float, garbles: float
) -> None:
    """Keys get lost or come twice, bytes get lost or change: it ends by its deadline, and never in a wrong boot.

    What the loader boots by itself, because no key stopped it, is its own.
    """
    random = Random(seed)

    def typed(data: bytes) -> bytes:
        return b"".join(
            b"" if (dice := random.random()) < drops / 2 else bytes([byte]) * (2 if dice < drops else 1)
            for byte in data
        )

    def arrives(data: bytes) -> bytes:
        return bytes(
            random.randrange(256) if random.random() < garbles / 2 else byte
            for byte in data
            if random.random() >= garbles / 2
        )

    loader = make()
    own = loader.preset if isinstance(loader, UBoot) else None
    run = drive(loader, SINGLE, typed=typed, arrives=arrives, secrets={"loader": "p"})
    assert run.seconds < 3000
    for booted in loader.guest.booted:
        if "single" in booted:
            assert booted == wanted(loader)
        else:
            assert own is None or booted == own, "what is booted by itself is its own"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=60), st.floats(0, 300)), max_size=30),
    st.sampled_from([SINGLE, Wishes(), Wishes(stop_at=StopAt.LOADER)]),
)
def test_any_bytes_at_any_time_end_by_a_deadline(events: list[tuple[bytes, float]], wishes: Wishes) -> None:
    """Whatever comes, nothing breaks, and nothing lasts for ever."""
    machine = Machine(wishes, nonce="kb0001")
    machine.start(0.0)
    machine.restarted(0.0)
    now = 0.0
    for data, pause in events:
        now += pause
        machine.receive(data, now)
        machine.tick(now)
        machine.effects()
    for _ in range(500):
        if machine.deadline is None:
            return
        now = max(now, machine.deadline)
        machine.tick(now)
        machine.effects()
    raise AssertionError(machine.state)


# ── captured logs ───────────────────────────────────────────────────────────────────────────────────────────────

LOGS = sorted(FOLDER.glob("*.raw"))


def replay(data: bytes, wishes: Wishes) -> Machine:
    """Feed a log, which obeys no key, and let time go by."""
    machine = Machine(wishes, nonce="kb0001")
    machine.start(0.0)
    machine.restarted(0.0)
    for at in range(0, len(data), 512):
        machine.receive(data[at : at + 512], at / 100_000)
    while machine.deadline is not None:
        machine.effects()
        machine.tick(machine.deadline)
    return machine


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_a_log_that_obeys_no_key_is_no_success(path: Any) -> None:
    """Of none of them it is claimed that a wish was fulfilled which needs the loader, or a shell that answers."""
    for wishes in (SINGLE, Wishes(init="/bin/sh"), Wishes(break_at="top")):
        outcome = replay(path.read_bytes(), wishes).outcome
        assert outcome is not None
        assert outcome.end is End.FAILED
        assert outcome.what
        assert outcome.todo


@pytest.mark.parametrize(
    ("name", "end", "what"),
    [
        ("deb-login", End.DONE, "somebody may log in"),
        ("getty", End.DONE, "a shell is there"),
        ("no-root-no-disk", End.FAILED, "the kernel panicked"),
        ("no-boot-device", End.FAILED, "found nothing to boot"),
        ("deb-rescue", End.FAILED, "rescue or emergency mode"),
        ("deb-no-root", End.FAILED, "the initramfs has stopped"),
        ("dracut-no-root", End.FAILED, ""),
        ("init-died", End.FAILED, "the kernel panicked"),
    ],
)
def test_a_boot_that_is_only_watched(name: str, end: End, what: str) -> None:
    """What became of it is said as it was."""
    outcome = replay((FOLDER / f"{name}.raw").read_bytes(), Wishes()).outcome
    assert outcome is not None
    assert outcome.end is end, outcome
    assert what in outcome.what
