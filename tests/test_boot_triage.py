"""Triage: captured logs, the table's rows one by one, and records with times, resets and gaps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from boot_lab import DAMAGE, PROMPT_MATTERS, Log, damaged, diagnose, logs, names
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.boot.states import State
from kbridge.boot.symptoms import SYMPTOMS, Symptom
from kbridge.boot.triage import MAX_LINES, Triage, Verdict

if TYPE_CHECKING:
    from kbridge.boot.triage import Report

LOGS = logs()
SECOND = 1_000_000_000
START = 1_790_000_000 * SECOND


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_a_log_gives_its_verdict(log: Log) -> None:
    report = diagnose(log.data)
    assert {
        "verdict": report.verdict.value,
        "reached": report.reached.value,
        "release": report.release,
        "boots": report.boots,
        "findings": [each.symptom.name for each in report.findings if not each.refuted],
        "got_over": [each.symptom.name for each in report.findings if each.refuted],
    } == log.triage
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", log.data).decode("utf-8", "replace")
    for finding in report.findings:
        assert all(line.text[:60] in plain for line in finding.lines)


def test_a_boot_by_the_kernels_clock() -> None:
    report = diagnose(next(log.data for log in LOGS if log.name == "deb-rescue"))
    stages = [(stage.state, stage.program, stage.seconds) for stage in report.stages]
    assert stages[:3] == [
        (State.KERNEL, "Linux", pytest.approx(2.434590)),
        (State.INITRAMFS, "initramfs-tools", pytest.approx(4.971808 - 2.434590, abs=0.3)),
        (State.SYSTEMD, "systemd", pytest.approx(9.1, abs=0.3)),
    ]
    assert all(stage.by_kernel for stage in report.stages)
    assert report.command_line == "root=/dev/vda1 ro console=ttyS0 systemd.unit=rescue.target"


CUTS = st.tuples(st.sampled_from(LOGS), st.integers(0, 60_000))


@given(CUTS)
@settings(max_examples=60, deadline=None)
def test_cut_off_it_claims_no_failure_that_has_not_come(cut: tuple[Log, int]) -> None:
    log, end = cut
    report = diagnose(log.data[:end])
    claimed = [state for state, _, _, sure in log.states if sure <= end]
    assert report.reached == (claimed[-1] if claimed else State.UNKNOWN)
    if not claimed:
        assert report.verdict in (Verdict.UNKNOWN, log.triage["verdict"])
    whole = diagnose(log.data)
    assert names(report) <= names(whole)
    if report.reached in (State.FIRMWARE, State.LOADER, State.KERNEL, State.INITRAMFS, State.SYSTEMD):
        assert report.verdict is Verdict.UNKNOWN


@given(st.sampled_from(LOGS).filter(lambda log: log.name not in PROMPT_MATTERS), DAMAGE)
@settings(max_examples=100, deadline=None)
def test_damaged_it_finds_nothing_that_was_not_there(log: Log, damage: list[tuple[int, int, bytes]]) -> None:
    data = damaged(log.data, damage)
    report, whole = diagnose(data), diagnose(log.data)
    # Without the lines of its disks, or of its begin, a kernel that finds no root looks like the other one that does.
    same = {"hypervisor-drivers-missing": "root-not-found"}
    assert {same.get(each, each) for each in names(report)} <= {same.get(each, each) for each in names(whole)}
    if report.verdict in (Verdict.FAILED, Verdict.HUNG):
        assert whole.verdict is report.verdict or "panic" in log.name


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────

KERNEL = "[    0.000000] Linux version 6.1.0-test (x@y) (gcc) #1\r\n"
INITRAMFS = KERNEL + "[    1.900000] Run /init as init process\r\nLoading, please wait...\r\n"
DISK = "[    1.500000] sd 0:0:0:0: [sda] 62914560 512-byte logical blocks: (32.2 GB/30.0 GiB)\r\n"
ROOT = KERNEL + DISK + INITRAMFS.removeprefix(KERNEL)
SYSTEM = ROOT + "Welcome to Debian GNU/Linux 12 (bookworm)!\r\n"
LOGIN = "\r\nDebian GNU/Linux 12 web1 ttyS0\r\n\r\nweb1 login: "

# Lines as the programs print them: SeaBIOS 1.16, EDK II 2022.11, GRUB 2.06 and 2.12, Linux 6.1, initramfs-tools 0.142,
# dracut 059, e2fsprogs 1.47, systemd 252, cloud-init 22.4.
EXAMPLES = [
    ("no-boot-device", "SeaBIOS (version 1.16.2)\r\n", "Boot failed: not a bootable disk"),
    ("no-boot-device", "", "BdsDxe: No bootable option or device was found."),
    (
        "refused-by-secure-boot",
        "",
        'BdsDxe: failed to load Boot0001 "UEFI QEMU HARDDISK" from PciRoot(0x0)/Pci(0x4,0x0): Access Denied',
    ),
    (
        "refused-by-secure-boot",
        "Welcome to GRUB!\r\n",
        "error: ../../grub-core/kern/efi/sb.c:183:bad shim signature.",
    ),
    ("loader-failed", "Welcome to GRUB!\r\n", "error: no such device: 3c4f6b1e-8d2a-4f0e-9d7b-0c1d2e3f4a5b."),
    (
        "loader-failed",
        "Welcome to GRUB!\r\n",
        "error: ../../grub-core/fs/fshelp.c:257:file `/boot/vmlinuz' not found.",
    ),
    ("loader-failed", "U-Boot 2023.01 (Jun 22 2026)\r\n", "Bad Linux ARM64 Image magic!"),
    (
        "hypervisor-drivers-missing",
        INITRAMFS,
        "ALERT!  UUID=3c4f6b1e-8d2a does not exist.  Dropping to a shell!",
    ),
    ("root-not-found", ROOT, "ALERT!  /dev/vdb1 does not exist.  Dropping to a shell!"),
    ("root-not-found", ROOT, "Gave up waiting for root file system device.  Common problems:"),
    (
        "root-not-found",
        ROOT,
        "[  191.123456] dracut-initqueue[412]: Warning: dracut-initqueue: timeout, still waiting for following hooks:",
    ),
    (
        "init-missing",
        ROOT,
        "[    2.1] x\r\n[    2.123456] Kernel panic - not syncing: No working init found.  Try passing",
    ),
    ("init-missing", ROOT, "Target filesystem doesn't have requested /sbin/init."),
    ("init-missing", ROOT, "run-init: can't execute '/sbin/nope': No such file or directory"),
    (
        "initramfs-damaged",
        KERNEL,
        "[    1.123456] Initramfs unpacking failed: invalid magic at start of compressed archive",
    ),
    ("file-system-needs-fsck", ROOT, "/dev/sda1: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY."),
    ("file-system-needs-fsck", ROOT, "fsck exited with status code 4"),
    (
        "file-system-needs-fsck",
        SYSTEM,
        "[\x1b[0;1;31mFAILED\x1b[0m] Failed to start \x1b[0;1;39msystemd-fsck@dev-sdb1.service\x1b[0m - Check.",
    ),
    ("root-locked", SYSTEM, "Cannot open access to console, the root account is locked."),
    ("emergency-mode", SYSTEM, 'You are in emergency mode. After logging in, type "journalctl -xb" to view'),
    ("systemd-froze", SYSTEM, "[    5.123456] systemd[1]: Freezing execution."),
    ("no-memory-left", KERNEL, "[    0.123456] Kernel panic - not syncing: System is deadlocked on memory"),
    ("out-of-memory", SYSTEM, "[   60.123456] Out of memory: Killed process 512 (apt-get) total-vm:91234kB"),
    (
        "init-died",
        SYSTEM,
        "[    9.123456] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b",
    ),
    ("panic", SYSTEM, "[    9.123456] Kernel panic - not syncing: Fatal exception in interrupt"),
    ("oops", SYSTEM, "[    9.123456] BUG: kernel NULL pointer dereference, address: 0000000000000010"),
    (
        "provisioning-failed",
        SYSTEM,
        "[\x1b[0;1;31mFAILED\x1b[0m] Failed to start \x1b[0;1;39mcloud-init.service\x1b[0m - Initial cloud-init job.",
    ),
    (
        "provisioning-failed",
        SYSTEM,
        "[   20.123456] cloud-init[612]: Can not apply stage final, no datasource found!",
    ),
    (
        "unit-failed",
        SYSTEM,
        "[\x1b[0;1;31mFAILED\x1b[0m] Failed to start \x1b[0;1;39mnginx.service\x1b[0m - A web server.",
    ),
    (
        "unit-failed",
        SYSTEM,
        "[\x1b[0;1;33mDEPEND\x1b[0m] Dependency failed for \x1b[0;1;39mdata.mount\x1b[0m - /data.",
    ),
    ("disk-full", SYSTEM, "systemd-tmpfiles[300]: Failed to write file: No space left on device"),
    ("disk-errors", SYSTEM, "[    9.123456] I/O error, dev sda, sector 2048 op 0x0:(READ) flags 0x80700"),
    ("passphrase-asked", ROOT, "Please unlock disk sda3_crypt: "),
    ("initramfs-shell", INITRAMFS, "Spawning shell within the initramfs"),
    ("initramfs-shell", INITRAMFS, "[   27.858583] dracut-pre-pivot[255]: Warning: Break before switch_root"),
    ("initramfs-shell", INITRAMFS, "Entering emergency mode. Exit the shell to continue."),
    ("rescue-mode", SYSTEM, 'You are in rescue mode. After logging in, type "journalctl -xb" to view'),
    ("lockup", SYSTEM, "[  242.123456] INFO: task jbd2/sda1-8:199 blocked for more than 120 seconds."),
    ("lockup", SYSTEM, "[   42.123456] rcu: INFO: rcu_preempt self-detected stall on CPU"),
    (
        "start-job-waits",
        SYSTEM,
        "[\x1b[0;31m*     \x1b[0m] A start job is running for /dev/disk/by-uuid/3c4f (1min 2s / 1min 30s)",
    ),
]


@pytest.mark.parametrize(("name", "before", "line"), EXAMPLES)
def test_a_row_takes_its_line(name: str, before: str, line: str) -> None:
    assert names(diagnose(before.encode())) == set()
    report = diagnose((before + line + "\r\n").encode())
    assert names(report) == {name}
    (finding,) = report.findings
    assert finding.symptom.cures
    assert not finding.refuted
    assert (
        finding.lines[0].text in (before + line).replace("\x1b[0m", "").replace("\x1b[0;1;31m", "")
        or "\x1b" in line
    )


def test_every_row_has_an_example() -> None:
    shown = {name for name, _, _ in EXAMPLES} | {
        "console-silent",
        "loader-silent",
        "nothing-on-the-line",
        "hung",
    }
    assert shown == {symptom.name for symptom in SYMPTOMS}


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda symptom: symptom.name)
def test_a_row_is_written_as_the_others(symptom: Symptom) -> None:
    assert not symptom.what.endswith(".")
    assert symptom.cures
    assert all(not cure.endswith(".") for cure in symptom.cures)
    assert (symptom.lines is None) is bool(symptom.silent_in)


def test_what_a_boot_got_over_is_no_failure() -> None:
    waits = "[\x1b[0;31m*     \x1b[0m] A start job is running for /dev/x (1min 2s / 1min 30s)\r"
    report = diagnose((SYSTEM + waits + LOGIN).encode())
    assert (report.verdict, report.reached, report.program) == (Verdict.UP, State.LOGIN, "getty")
    assert [(each.symptom.name, each.refuted) for each in report.findings] == [("start-job-waits", True)]
    alert = "ALERT!  /dev/vdb1 does not exist.  Dropping to a shell!\r\n(initramfs) "
    assert (
        diagnose((ROOT + alert).encode()).words
        == "the root file system that the kernel was told is not there"
    )
    over = diagnose((ROOT + alert + "\r\n" + SYSTEM.removeprefix(ROOT) + LOGIN).encode())
    assert over.verdict is Verdict.UP


def test_what_a_command_prints_is_no_failure() -> None:
    shell = SYSTEM + "root@web1:~# "
    old = (
        KERNEL + "[    9.123456] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\r\n"
    )
    report = diagnose((shell + "cat /var/log/old\r\n" + old + "root@web1:~# ").encode())
    assert (report.verdict, report.reached, names(report)) == (Verdict.UP, State.SHELL, set())
    crash = "[   99.123456] Kernel panic - not syncing: sysrq triggered crash\r\n"
    end = "[   99.223456] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\r\n"
    report = diagnose((shell + "echo c > /proc/sysrq-trigger\r\n" + crash + end).encode())
    assert (report.verdict, report.reached, names(report)) == (Verdict.FAILED, State.PANIC, {"panic"})


def test_drivers_are_missing_only_where_the_whole_kernel_was_heard() -> None:
    alert = b"ALERT!  /dev/sda1 does not exist.  Dropping to a shell!\r\n"
    assert names(diagnose(INITRAMFS.encode() + alert)) == {"hypervisor-drivers-missing"}
    assert names(diagnose(ROOT.encode() + alert)) == {"root-not-found"}
    assert names(diagnose(INITRAMFS.removeprefix(KERNEL).encode() + alert)) == {"root-not-found"}
    triage = timed((0, KERNEL))
    triage.gap(len(KERNEL) + 500, "relay stopped")
    triage.text(len(KERNEL) + 500, START, INITRAMFS.removeprefix(KERNEL).encode() + alert)
    assert names(triage.report()) == {"root-not-found"}


def test_a_failure_that_may_be_got_over_is_none_before_the_boot_stands() -> None:
    text = ROOT + "Target filesystem doesn't have requested /nope.\r\n"
    report = diagnose(text.encode())
    assert (report.verdict, names(report)) == (Verdict.UNKNOWN, {"init-missing"})
    assert report.words.startswith(
        "the root file system is there, but nothing in it that can be started as init; but"
    )
    assert diagnose(text.encode() + b"(initramfs) ").verdict is Verdict.FAILED
    assert timed((0, text)).report(now_ns=START + 31 * SECOND).verdict is Verdict.FAILED
    assert timed((0, text)).report(now_ns=START + 29 * SECOND).verdict is Verdict.UNKNOWN
    froze = SYSTEM + "[    5.123456] systemd[1]: Freezing execution.\r\n"
    assert diagnose(froze.encode()).verdict is Verdict.FAILED


def test_an_emergency_shell_is_not_up() -> None:
    text = SYSTEM + (
        "You are in emergency mode. After logging in, type\r\nGive root password for maintenance\r\n"
        "(or press Control-D to continue): \r\nroot@web1:~# "
    )
    assert diagnose(text.encode()).verdict is Verdict.FAILED


def test_many_lines_are_counted_and_few_kept() -> None:
    line = "[    9.123456] I/O error, dev sda, sector 2048 op 0x0:(READ)\r\n"
    (finding,) = diagnose((SYSTEM + line * 1000).encode()).findings
    assert (finding.count, len(finding.lines)) == (1000, MAX_LINES)


# ── records with times ──────────────────────────────────────────────────────────────────────────────────────────


def timed(*pieces: tuple[float, str]) -> Triage:
    """Return a triage that was told pieces, each with its second."""
    triage = Triage()
    offset = 0
    for second, text in pieces:
        triage.text(offset, START + int(second * SECOND), text.encode())
        offset += len(text.encode())
    return triage


def seconds(report: Report) -> list[tuple[State, float | None]]:
    return [(stage.state, stage.seconds) for stage in report.stages]


def test_stages_last_as_the_record_tells() -> None:
    report = timed(
        (0, "SeaBIOS (version 1)\r\n"), (2, KERNEL), (5, INITRAMFS.removeprefix(KERNEL)), (9.5, LOGIN)
    ).report()
    assert seconds(report) == [
        (State.FIRMWARE, 2.0),
        (State.KERNEL, 3.0),
        (State.INITRAMFS, 4.5),
        (State.LOGIN, 0.0),
    ]
    assert not any(stage.by_kernel for stage in report.stages)
    assert (report.begin_ns, report.end_ns) == (START, START + int(9.5 * SECOND))


@pytest.mark.parametrize(
    ("text", "silent", "verdict", "name"),
    [
        (
            "Welcome to GRUB!\r\nBooting `Debian'\r\n\r\nLoading initial ramdisk ...\r\n",
            29,
            Verdict.UNKNOWN,
            None,
        ),
        (
            "Welcome to GRUB!\r\nBooting `Debian'\r\n\r\nLoading initial ramdisk ...\r\n",
            31,
            Verdict.HUNG,
            "console-silent",
        ),
        ("Welcome to GRUB!\r\n", 59, Verdict.UNKNOWN, None),
        ("Welcome to GRUB!\r\n", 61, Verdict.HUNG, "loader-silent"),
        ("some text\r\n", 10_000, Verdict.UNKNOWN, None),
        (SYSTEM, 200, Verdict.UNKNOWN, None),
        (SYSTEM, 301, Verdict.HUNG, "hung"),
        (SYSTEM + LOGIN, 100_000, Verdict.UP, None),
    ],
)
def test_silence_tells_where_a_boot_goes_on(
    text: str, silent: float, verdict: Verdict, name: str | None
) -> None:
    triage = timed((0, text))
    report = triage.report(now_ns=START + int(silent * SECOND))
    assert report.verdict is verdict
    assert names(report) == ({name} if name else set())
    # Of a record that has ended nobody knows what came next.
    assert triage.report().verdict is (Verdict.UP if verdict is Verdict.UP else Verdict.UNKNOWN)


def test_a_reset_begins_a_boot() -> None:
    triage = timed((0, SYSTEM + LOGIN))
    end = len((SYSTEM + LOGIN).encode())
    triage.event("machine.reset", end, START + 60 * SECOND, {"guest": False})
    report = triage.report()
    assert (report.verdict, report.begun_by, report.boots) == (Verdict.UNKNOWN, "machine.reset", 2)
    assert report.stages == ()
    triage.text(end, START + 61 * SECOND, KERNEL.encode())
    report = triage.report()
    assert (report.reached, report.begin_ns, report.begin_offset) == (State.KERNEL, START + 60 * SECOND, end)
    assert seconds(report) == [(State.KERNEL, 0.0)]


def test_a_boot_without_a_word() -> None:
    triage = timed((0, SYSTEM + LOGIN))
    end = len((SYSTEM + LOGIN).encode())
    triage.event("machine.reset", end, START + 60 * SECOND, {"guest": False})
    assert names(triage.report(now_ns=START + 119 * SECOND)) == set()
    report = triage.report(now_ns=START + 121 * SECOND)
    assert (report.verdict, names(report)) == (Verdict.HUNG, {"nothing-on-the-line"})
    assert triage.report().verdict is Verdict.UNKNOWN


def test_a_relay_that_was_restarted_begins_none() -> None:
    triage = timed((0, SYSTEM))
    end = len(SYSTEM.encode())
    triage.gap(end, "relay stopped")
    triage.event("machine.found", end, START + 5 * SECOND, {})
    triage.text(end, START + 6 * SECOND, LOGIN.encode())
    report = triage.report()
    assert [state for state, _ in seconds(report)] == [
        State.KERNEL,
        State.INITRAMFS,
        State.SYSTEMD,
        State.LOGIN,
    ]
    assert report.gaps == ((end, "relay stopped"),)
    triage.gap(end + 100, "line lost")
    triage.text(end + 100, START + 9 * SECOND, KERNEL.encode())
    assert [state for state, _ in seconds(triage.report())] == [State.KERNEL]


def test_the_monitor_tells_of_an_end_that_the_console_does_not() -> None:
    for kind, verdict, state in (
        ("machine.shutdown", Verdict.OFF, State.OFF),
        ("machine.panic", Verdict.FAILED, State.PANIC),
    ):
        triage = timed((0, SYSTEM))
        triage.event(kind, len(SYSTEM), START + SECOND, {})
        report = triage.report()
        assert (report.verdict, report.reached) == (verdict, state)


def test_nothing_at_all_is_unknown() -> None:
    report = Triage().report(now_ns=START)
    assert (report.verdict, report.reached, report.stages) == (Verdict.UNKNOWN, State.UNKNOWN, ())
