"""The states of a boot: captured logs whole, in pieces, truncated and damaged; texts that only look like it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from boot_lab import DAMAGE, NOISE, PROMPT_MATTERS, Log, damaged, logs, recognise, short
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.boot.states import Recogniser, State

if TYPE_CHECKING:
    from kbridge.boot.states import Change

LOGS = logs()
each_log = pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
any_log = st.sampled_from(LOGS)


def states(changes: list[Change]) -> list[State]:
    """Return the states in order without what is unknown, each once where it is entered again."""
    known = [each.state for each in changes if each.state is not State.UNKNOWN]
    return [state for place, state in enumerate(known) if not place or known[place - 1] is not state]


def is_within(part: list[State], whole: list[State]) -> bool:
    """Whether ``part`` is ``whole`` with some left out."""
    rest = iter(whole)
    return all(state in rest for state in part)


@each_log
def test_a_log_gives_its_states(log: Log) -> None:
    assert short(recognise(log.data)) == log.states


@each_log
def test_byte_by_byte_it_gives_the_same(log: Log) -> None:
    recogniser = Recogniser()
    changes = []
    for at in range(len(log.data)):
        found = recogniser.feed(log.data[at : at + 1])
        # And no later than it is sure.
        assert all(change.end == at + 1 for change in found)
        changes += found
    assert short(changes) == log.states


@given(any_log, st.lists(st.integers(0, 60_000), max_size=30))
@settings(max_examples=100, deadline=None)
def test_split_at_random_it_gives_the_same(log: Log, cuts: list[int]) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(log.data)), len(log.data)]
    assert short(recognise(*(log.data[begin:end] for begin, end in pairwise(places)))) == log.states


@given(any_log, st.integers(0, 60_000))
@settings(max_examples=60, deadline=None)
def test_cut_off_at_its_end_it_claims_what_was_sure_by_then(log: Log, end: int) -> None:
    assert short(recognise(log.data[:end])) == [each for each in log.states if each[3] <= end]


@given(any_log, st.integers(0, 60_000))
@settings(max_examples=60, deadline=None)
def test_cut_off_at_its_beginning_it_claims_nothing_else(log: Log, begin: int) -> None:
    whole = recognise(log.data)
    for change in recognise(log.data[begin:]):
        at = change.offset + begin
        if change.state is not State.UNKNOWN:
            # What the whole log shows there, or has shown since: a screen is drawn in parts.
            near = [each.state for each in whole if each.offset <= at + 1]
            assert change.state in near
    assert is_within(states(recognise(log.data[begin:])), states(whole))


@given(any_log.filter(lambda log: log.name not in PROMPT_MATTERS), DAMAGE)
@settings(max_examples=300, deadline=None)
def test_damaged_it_claims_no_state_that_was_not_there(
    log: Log, damage: list[tuple[int, int, bytes]]
) -> None:
    found = states(recognise(damaged(log.data, damage)))
    assert is_within(found, states(recognise(log.data)))


@given(st.lists(NOISE, max_size=40).map(b"".join))
@settings(max_examples=200)
def test_of_noise_it_claims_nothing(data: bytes) -> None:
    assert recognise(data) == []


# ── what is not captured here ───────────────────────────────────────────────────────────────────────────────────


def seen(data: bytes) -> list[tuple[State, str]]:
    return [(each.state, each.program) for each in recognise(data)]


def test_a_hidden_grub_menu_counts_down() -> None:
    data = b"Welcome to GRUB!\n\r\x1b[4;1H3    \x1b[4;1H2    \x1b[4;1H\r\n\r\nLoading Linux 6.1.0 ...\n\r"
    assert seen(data) == [(State.LOADER, "GRUB"), (State.COUNTDOWN, "GRUB"), (State.LOADER, "GRUB")]


def test_grubs_command_line() -> None:
    data = (
        b"\x1b[H\x1b[J\x1b[1;1H\x1b[2;24HGNU GRUB  version 2.12\r\n\n"
        b"   Minimal BASH-like line editing is supported. For the first word, TAB\r\n\n\ngrub> ls\r\n(hd0) \r\ngrub> "
    )
    assert seen(data) == [(State.LOADER, "GRUB"), (State.COMMAND, "GRUB")]
    assert seen(b"error: no such partition.\r\nEntering rescue mode...\r\ngrub rescue> ") == [
        (State.COMMAND, "GRUB rescue")
    ]


def test_systemd_boots_countdown_that_is_stopped() -> None:
    data = b"\x1b[2J\x1b[24;30HBoot in 3 s.\x1b[27;1H\x1b[24;30H            \x1b[27;1H"
    assert seen(data) == [(State.COUNTDOWN, "systemd-boot"), (State.MENU, "systemd-boot")]


def test_grubs_password() -> None:
    assert seen(b"Welcome to GRUB!\r\nEnter username: ") == [(State.LOADER, "GRUB"), (State.LOGIN, "GRUB")]


def test_systemd_boots_menu_and_countdown() -> None:
    data = (
        b'BdsDxe: starting Boot0002 "Linux" from HD(1,GPT)\r\n\x1b[2J\x1b[10;30H=> Debian GNU/Linux 12'
        b"\x1b[11;30H   Reboot Into Firmware Interface\x1b[24;30HBoot in 3 s.\x1b[24;30HBoot in 2 s.\x1b[24;30H"
    )
    assert seen(data) == [
        (State.FIRMWARE, "UEFI"),
        (State.MENU, "systemd-boot"),
        (State.COUNTDOWN, "systemd-boot"),
    ]


def test_the_efi_shell() -> None:
    data = (
        b"\x1b[2J\x1b[01;01HUEFI Interactive Shell v2.2\r\nEDK II\r\nMapping table\r\n"
        b"Press ESC in 5 seconds to skip startup.nsh or any other key to continue.\r"
        b"Press ESC in 4 seconds to skip startup.nsh or any other key to continue.\r\nShell> fs0:\r\nFS0:\\> "
    )
    assert seen(data) == [
        (State.FIRMWARE, "EFI shell"),
        (State.COUNTDOWN, "EFI shell"),
        (State.COMMAND, "EFI shell"),
    ]


def test_firmware_that_gives_up() -> None:
    data = b'BdsDxe: failed to load Boot0001 "UEFI QEMU" from PciRoot(0x0): Not Found\r\n'
    assert seen(data) == [(State.FIRMWARE, "UEFI")]
    data += b"BdsDxe: No bootable option or device was found.\r\n"
    assert seen(data)[-1] == (State.FAILED, "UEFI")


def test_dracuts_initramfs_is_no_system() -> None:
    data = (
        b"[    1.9] x\r\n[    1.900000] Run /init as init process\r\n"
        b"[    2.000000] systemd[1]: systemd 255 running in system mode (+PAM)\r\n"
        b"[    2.100000] systemd[1]: Running in initrd.\r\n\r\n"
        b"Welcome to \x1b[0;34mFedora Linux 40 (Server Edition) dracut-101-1.fc40 (Initramfs)\x1b[0m!\r\n\r\n"
        b"[    3.000000] systemd[1]: Queued start job for default target initrd.target.\r\n"
        b"Press Enter for maintenance\r\n(or press Control-D to continue): \r\nswitch_root:/# "
    )
    assert [state for state, _ in seen(data)] == [State.INITRAMFS, State.INITRAMFS, State.LOGIN, State.SHELL]
    booted = data + b"exit\r\n[    9.000000] x\r\n"
    assert seen(booted) == seen(data)


def test_a_login_and_its_end() -> None:
    data = b"\r\nDebian GNU/Linux 12 web1 ttyS0\r\n\r\nweb1 login: root\r\nPassword: \r\nroot@web1:~# poweroff\r\n"
    assert seen(data) == [(State.LOGIN, "getty"), (State.SHELL, "")]
    data += b"[  OK  ] Reached target poweroff.target - System Power Off.\r\n[   99.123456] reboot: Power down\r\n"
    assert seen(data)[2:] == [(State.OFF, "")]


BOOT = b"[    0.000000] Linux version 6.1.0 (x@y) (gcc) #1\r\n[    1.000000] Run /init as init process\r\n"


def test_a_shell_that_prints_a_boot_is_not_one() -> None:
    shell = b"root@web1:~# "
    assert seen(shell + b"dmesg\r\n" + BOOT) == [(State.SHELL, ""), (State.UNKNOWN, "")]
    panic = b"[    4.115834] Kernel panic - not syncing: old\r\n"
    assert seen(shell + b"cat log\r\n" + BOOT + panic + shell) == [
        (State.SHELL, ""),
        (State.UNKNOWN, ""),
        (State.SHELL, ""),
    ]


def test_a_shell_whose_guest_is_reset_is_left() -> None:
    shell = b"root@web1:~# "
    assert seen(shell + BOOT)[1:] == [(State.KERNEL, "Linux"), (State.INITRAMFS, "/init")]
    rebooted = shell + b"reboot -f\r\n[   50.000001] reboot: Restarting system\r\n" + BOOT
    assert [state for state, _ in seen(rebooted)] == [
        State.SHELL,
        State.FIRMWARE,
        State.KERNEL,
        State.INITRAMFS,
    ]


def test_a_kernel_that_speaks_twice_boots_once() -> None:
    # With earlycon the console that comes later begins with all that was said.
    assert seen(BOOT[:52] + BOOT) == seen(BOOT)


def test_a_shell_as_init() -> None:
    data = BOOT[:52] + b"[    1.500000] Run /bin/sh as init process\r\n# "
    assert seen(data) == [(State.KERNEL, "Linux"), (State.SHELL, "")]
    assert seen(BOOT[:52] + b"# a comment\r\n") == [(State.KERNEL, "Linux")]


def test_kernel_text_in_a_prompts_line_leaves_the_shell_alone() -> None:
    data = b"root@web1:~# [   15.195501] kvm: Nested Virtualization enabled\r\n" + BOOT
    assert [state for state, _ in seen(data)] == [State.SHELL, State.KERNEL, State.INITRAMFS]


def test_typed_text_that_the_kernel_parted_from_its_prompt_is_typed_all_the_same() -> None:
    data = (
        b"root@web1:~# [   15.195501] kvm: Nested Virtualization enabled\r\ndmesg\r\n"
        + BOOT
        + b"root@web1:~# "
    )
    assert [state for state, _ in seen(data)] == [State.SHELL, State.UNKNOWN, State.SHELL]
    parted = b"root@web1:~# dm[   15.195501] kvm: Nested Virtualization enabled\r\nesg\r\n" + BOOT
    assert [state for state, _ in seen(parted)] == [State.SHELL, State.UNKNOWN]
    echoed = b"root@web1:~# echo '[    0.000000] Linux version 6.1.0 (x@y)'\r\n"
    assert [state for state, _ in seen(echoed)] == [State.SHELL]


def test_a_guest_that_somebody_else_reboots_boots() -> None:
    stops = (
        b"[  OK  ] Stopped target multi-user.target - Multi-User System.\r\n"
        b"         Stopping cron.service - Regular background program processing daemon...\r\n"
    )
    quiet = b"web1 login: " + b"\r\n" + stops + BOOT
    assert [state for state, _ in seen(quiet)] == [State.LOGIN, State.KERNEL, State.INITRAMFS]
    asked = b"root@web1:~# reboot\r\nBroadcast message\r\n" + stops + b"Welcome to GRUB!\r\n" + BOOT
    assert [state for state, _ in seen(asked)] == [State.SHELL, State.LOADER, State.KERNEL, State.INITRAMFS]


def test_after_a_reset_it_begins_anew_at_the_offset_given() -> None:
    recogniser = Recogniser()
    recogniser.feed(b"root@web1:~# dmesg\r\n")
    recogniser.reset(1000)
    assert recogniser.state is State.UNKNOWN
    assert [(each.state, each.offset) for each in recogniser.feed(BOOT)] == [
        (State.KERNEL, 1000),
        (State.INITRAMFS, 1000 + BOOT.index(b"[    1.0")),
    ]
