"""Boots from `grub> ` and `grub rescue> `, against GRUBs that are not there; and what names on a disk tell."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loaders_lab import FORCE, PLAIN, Run, drive
from lost_grub_lab import KERNELS, MODULES, ROOT, UUID, LostGrub

from kbridge.boot import kernels
from kbridge.boot.control import End
from kbridge.boot.wishes import StopAt, Wishes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SINGLE = Wishes(single_user=True)
BY_MENU = f"{PLAIN} single {FORCE}"
CONSOLE = "console=ttyS0,115200"
BY_HAND = f"root=UUID={UUID} ro {CONSOLE} single {FORCE}"
CONFIG = "boot/grub/grub.cfg"
WHOLE = (*ROOT, *KERNELS, *MODULES, CONFIG)
ESP = ("EFI/BOOT/BOOTX64.EFI", "EFI/debian/shimx64.efi", "EFI/debian/grub.cfg")


def done(run: Run) -> bool:
    assert run.outcome.end is End.DONE, run.outcome
    return True


def failed(run: Run, what: str, why: str = "", todo: str = "") -> bool:
    assert run.outcome.end is End.FAILED, run.outcome
    assert what in run.outcome.what, run.outcome
    assert why in run.outcome.why, run.outcome
    assert todo in run.outcome.todo, run.outcome
    return True


# ── a configuration ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rescue", [False, True])
@pytest.mark.parametrize("menu", [{}, {"style": "hidden"}, {"style": "countdown"}, {"timeout": -1}])
def test_a_configuration_brings_its_menu(menu: dict[str, Any], rescue: bool) -> None:
    """Shown or not; the menu's recipe goes on from there."""
    loader = LostGrub({"hd0": None, "hd0,gpt1": WHOLE}, rescue=rescue, **menu)
    assert done(drive(loader, SINGLE))
    assert loader.guest.booted == [BY_MENU]
    assert loader.resets == 1


@pytest.mark.parametrize(
    "disks",
    [
        {"hd0": None, "hd0,msdos1": ["grub/grub.cfg"]},
        {"hd0": None, "hd0,gpt1": None, "hd1": None, "hd1,gpt2": [*ROOT, "boot/grub2/grub.cfg"]},
        {"fd0": ["boot/grub/grub.cfg"], "proc": None, "hd0": ["grub2/grub.cfg"]},
        {"hd0": None, "hd0,gpt1": ESP, "hd0,gpt2": ROOT},
        {"cd0": None, "hd0": None, "hd0,gpt15": ["efi/fedora/grub.cfg"]},
        {"lvm/vg0-root": WHOLE, "hd0": None},
    ],
)
def test_it_is_looked_for_where_systems_have_it(disks: Mapping[str, Sequence[str] | None]) -> None:
    """On any device; in an EFI system partition too."""
    assert done(drive(loader := LostGrub(disks), SINGLE))
    assert loader.guest.booted == [BY_MENU]


def test_an_entry_of_the_menu_can_be_wished() -> None:
    """And cannot where no menu is."""
    assert done(drive(loader := LostGrub({"hd0": WHOLE}), Wishes(entry="rescue")))
    assert loader.guest.booted == [f"{PLAIN} quiet"]
    bare = LostGrub({"hd0": (*ROOT, *KERNELS)})
    assert failed(drive(bare, Wishes(entry="2", append="x")), "no menu", "grub.cfg")
    assert not bare.guest.booted


def test_escape_leads_back_to_a_menu_that_was_left() -> None:
    """Where the command line says so; nothing is looked for then."""
    run = drive(loader := LostGrub({"hd0": WHOLE}, nested=True), SINGLE)
    assert done(run)
    assert loader.guest.booted == [BY_MENU]
    assert b"configfile" not in run.keys


def test_a_configuration_that_boots_at_once_is_said_to_do_so() -> None:
    """Its kernel does not have the wished words."""
    run = drive(LostGrub({"hd0": WHOLE}, timeout=0), SINGLE)
    assert failed(run, "boots at once", "timeout=0", "--way stub")


def test_the_prompt_can_be_what_is_wished() -> None:
    """Nothing is typed."""
    run = drive(loader := LostGrub({"hd0": WHOLE}), Wishes(stop_at=StopAt.LOADER))
    assert done(run)
    assert b"ls" not in run.keys
    assert not loader.guest.booted


# ── by hand ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rescue", [False, True])
def test_without_a_configuration_the_newest_kernel_is_booted(rescue: bool) -> None:
    """Version 10 is newer than 9; root by its UUID; this line is the console."""
    loader = LostGrub({"hd0": None, "hd0,gpt1": (*ROOT, *KERNELS, *MODULES)}, rescue=rescue)
    run = drive(loader, SINGLE)
    assert done(run)
    assert loader.guest.booted == [BY_HAND]
    assert b"set k='/boot/vmlinuz-6.1.0-10-amd64'" in run.keys
    assert b"initrd /boot/initrd.img-6.1.0-10-amd64" in run.keys


def test_a_configuration_that_is_damaged_is_as_none() -> None:
    """It brings no menu."""
    assert done(drive(loader := LostGrub({"hd0": WHOLE}, empty=True), SINGLE))
    assert loader.guest.booted == [BY_HAND]


@pytest.mark.parametrize(
    ("disks", "wishes", "booted"),
    [
        # /boot on a file system of its own.
        (
            {"hd0": None, "hd0,gpt1": ["vmlinuz-6.8.5-301.fc40.x86_64", "initramfs-6.8.5-301.fc40.x86_64.img"],
             "hd0,gpt2": ROOT},
            SINGLE, BY_HAND,
        ),
        ({"hd0": [*ROOT, "boot/vmlinuz-lts", "boot/initramfs-lts"]}, SINGLE, BY_HAND),
        ({"hd0": [*ROOT, "boot/vmlinuz", "boot/initrd.img"]}, SINGLE, BY_HAND),
        # Without an initramfs, or without a root that is seen, the user names it.
        (
            {"hd0": [*ROOT, "boot/vmlinuz-5.10"]}, Wishes(single_user=True, append="root=/dev/vda1"),
            f"ro {CONSOLE} single {FORCE} root=/dev/vda1",
        ),
        (
            {"hd0": KERNELS}, Wishes(single_user=True, append="root=/dev/vg/root console=ttyS1"),
            f"ro single {FORCE} root=/dev/vg/root console=ttyS1",
        ),
        (
            {"hd0": WHOLE[:-1]}, Wishes(init="/bin/sh", console="hvc0", append="-- -x"),
            f"root=UUID={UUID} ro console=hvc0 init=/bin/sh -- -x",
        ),
        (
            {"hd0": WHOLE[:-1]}, Wishes(append=f"x={'y' * 130} z={'w' * 60}"),
            f"root=UUID={UUID} ro {CONSOLE} x={'y' * 130} z={'w' * 60}",
        ),
    ],
)  # fmt: skip
def test_kernels_of_many_systems(disks: Mapping[str, Sequence[str]], wishes: Wishes, booted: str) -> None:
    """With what each lacks from the user."""
    assert done(drive(loader := LostGrub(disks), wishes))
    assert loader.guest.booted == [booted]


def test_long_answers_do_not_move_the_screen_away() -> None:
    """A folder of more rows than a terminal of 24: where its cursor is GRUB says otherwise then."""
    many = [f"etc/{'x' * 30}{number}" for number in range(3)] + [
        f"folder-of-a-long-name-{n}/x" for n in range(120)
    ]
    loader = LostGrub({"hd0": [*ROOT, *many, *KERNELS]})
    assert done(drive(loader, SINGLE))
    assert loader.guest.booted == [BY_HAND]


@pytest.mark.parametrize("length", range(70, 90))
def test_a_kernels_name_is_read_wherever_its_row_ends(length: int) -> None:
    """Its listing is cut at column 79."""
    disks = {"hd0": [*ROOT, f"boot/{'a' * length}", *KERNELS]}
    assert done(drive(loader := LostGrub(disks), SINGLE))
    assert loader.guest.booted == [BY_HAND]


def test_many_devices_are_looked_at_up_to_a_limit() -> None:
    """A hundred disks do not last for ever."""
    disks: dict[str, Sequence[str] | None] = {f"hd{number}": None for number in range(100)}
    disks["hd99,gpt1"] = WHOLE
    run = drive(LostGrub(disks), SINGLE)
    assert failed(run, "no kernel is found", "cannot be read")
    assert run.seconds < 120
    few: dict[str, Sequence[str] | None] = {f"hd{number}": None for number in range(30)}
    few["hd29,gpt1"] = WHOLE
    assert done(drive(LostGrub(few), SINGLE))


# ── words ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("loader", "what", "why", "todo"),
    [
        (LostGrub({"hd0": None}), "no kernel is found", "grub.cfg in /boot/grub", "rescue disk"),
        (LostGrub({}), "no kernel is found", "it has no disks", "rescue disk"),
        (LostGrub({"hd0": KERNELS}), "not what its root", "no device with /etc", "--append root="),
        (LostGrub({"hd0": [*ROOT, "boot/vmlinuz"]}), "not what its root", "no initramfs", "--append root="),
        (LostGrub({"hd0": ROOT}, rescue=True), "files are not found", "/boot/grub2", "grub-install"),
        (LostGrub({"hd0": WHOLE}, dies_at="ls (hd0)/"), "does not answer", "no prompt came", ""),
        (LostGrub({"hd0": WHOLE}, rescue=True, dies_at="ls"), "does not answer", "no prompt came", ""),
        (LostGrub({"hd0": WHOLE[:-1]}, refuses="/boot/vmlinuz-6.1.0-10-amd64"), "cannot load", "not found", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(loader: LostGrub, what: str, why: str, todo: str) -> None:
    """What was looked for and where, and what to do; nothing is booted."""
    assert failed(drive(loader, SINGLE), what, why, todo)
    assert not loader.guest.booted


def test_words_that_cannot_be_typed_are_refused() -> None:
    """GRUB's variables would change them."""
    loader = LostGrub({"hd0": WHOLE[:-1]})
    assert failed(drive(loader, Wishes(append='a="b c"')), "cannot be typed")
    assert failed(drive(loader, Wishes(append="x" * 1300)), "cannot be typed", "characters")
    assert not loader.guest.booted


# ── any line ────────────────────────────────────────────────────────────────────────────────────────────────────

LOADERS = st.sampled_from(
    [
        lambda: LostGrub({"hd0": None, "hd0,gpt1": WHOLE}),
        lambda: LostGrub({"hd0": None, "hd0,gpt1": WHOLE}, rescue=True, style="hidden"),
        lambda: LostGrub({"hd0": None, "hd0,gpt1": WHOLE[:-1]}),
        lambda: LostGrub({"hd0": None, "hd0,gpt1": WHOLE[:-1]}, rescue=True),
    ]
)
SEEDS = st.integers(0, 1 << 32)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LOADERS, SEEDS)
def test_it_does_not_matter_how_bytes_were_cut(make: Any, seed: int) -> None:
    """The same is booted, and it is done."""
    random = Random(seed)

    def pieces(data: bytes) -> list[bytes]:
        cuts = sorted({0, len(data), *(random.randrange(len(data)) for _ in range(random.randrange(20)))})
        return [data[a:b] for a, b in pairwise(cuts)]

    loader = make()
    assert done(drive(loader, SINGLE, pieces=pieces))
    assert loader.guest.booted in ([BY_MENU], [BY_HAND])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LOADERS, SEEDS, st.sampled_from([0.0, 0.001, 0.01, 0.1]), st.sampled_from([0.0, 0.0005, 0.01, 0.1]))
def test_a_bad_line_boots_nothing_that_was_not_wished(
    make: Any, seed: int, drops: float, garbles: float
) -> None:
    """Keys get lost or come twice, bytes get lost or change: it ends by its deadline, and never in a wrong boot."""
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
    run = drive(loader, SINGLE, typed=typed, arrives=arrives)
    assert run.seconds < 3000
    # What a menu boots by itself, because no key stopped it, is its own.
    assert set(loader.guest.booted) <= {BY_MENU, BY_HAND, f"{PLAIN} quiet"}


# ── what names tell ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_that_a_real_grub_gave_is_read() -> None:
    """Of GRUB 2.06 on Debian: rows that end in the midst of a name, and one that ends with a blank."""
    rows = [
        "System.map-6.1.0-56-cloud-amd64 config-6.1.0-56-cloud-amd64 grub/ initrd-dracut",
        ".img initrd.img initrd.img-6.1.0-56-cloud-amd64 vmlinuz vmlinuz-6.1.0-56-cloud-",
        "amd64 boot.scr",
    ]
    found = kernels.names(rows)
    assert {"initrd-dracut.img", "vmlinuz-6.1.0-56-cloud-amd64", "grub/", "boot.scr"} <= found
    assert kernels.kernels("hd0,msdos1", "boot", found)[0] == kernels.Kernel(
        "hd0,msdos1", "/boot/vmlinuz-6.1.0-56-cloud-amd64", "/boot/initrd.img-6.1.0-56-cloud-amd64"
    )
    rows = [
        "lost+found/ bin boot/ dev/ etc/ home/ initrd.img initrd.img.old lib lib64 media",
        "/ mnt/ opt/ proc/ root/ run/ sbin srv/ sys/ tmp/ usr/ var/ vmlinuz vmlinuz.old",
    ]
    assert {"media/", "mnt/", "vmlinuz"} <= kernels.names(rows)
    assert kernels.is_root(kernels.names(rows))


def test_devices_are_looked_at_in_an_order() -> None:
    """Parts in place of the whole disk, by number; optical disks last, floppies never."""
    rows = ["(proc) (cd0) (hd10) (hd10,gpt1) (hd2) (hd2,msdos5) (hd2,msdos1) (fd0) (md/0) (lvm/vg-root)"]
    assert kernels.devices(rows) == ["hd2,msdos1", "hd2,msdos5", "hd10,gpt1", "lvm/vg-root", "md/0", "cd0"]


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["vmlinuz-6.9", "vmlinuz-6.10", "initramfs-6.9.img", "initramfs-6.10.img"], "/vmlinuz-6.10"),
        (["vmlinuz-6.1", "vmlinuz-6.1-rc4", "initrd-6.1", "initrd-6.1-rc4"], "/vmlinuz-6.1"),
        (["vmlinuz-0-rescue-ab", "initramfs-0-rescue-ab.img", "vmlinuz-5"], "/vmlinuz-5"),
        (["vmlinuz-6.2", "vmlinuz-6.1", "initrd.img-6.1"], "/vmlinuz-6.1"),
        (["vmlinuz-6.1.old", "vmlinuz.old", "vmlinuz-5.sig", "vmlinuz-4"], "/vmlinuz-4"),
    ],
)
def test_the_first_kernel_is_the_newest_that_boots(names: list[str], first: str) -> None:
    """Numbers count as numbers; one without an initramfs, and a rescue kernel, come behind."""
    assert kernels.kernels("hd0", "", frozenset(names))[0].path == first


@given(st.lists(st.text("()/hd0,gptvmlinuz-6. *\u00e9\u0663", max_size=100), max_size=10))
def test_any_answer_is_read(rows: list[str]) -> None:
    """Nothing breaks."""
    found = kernels.names(rows)
    kernels.devices(rows)
    kernels.kernels("hd0", "boot", found)
    kernels.is_root(found)
    assert kernels.has_modules(found) in (True, False)
