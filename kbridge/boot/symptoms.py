"""The table of what goes wrong in a boot: the words on the console, what they mean, what to try.

To add a row: put it where its line is to be taken (the first row that matches a line has it), and a log that shows
it into ``tests/data/console`` with what is expected of it (``docs/boot.md``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kbridge.boot.states import State


class Weight(StrEnum):
    """What a symptom means for the boot."""

    FATAL = "fatal"
    """It cannot go on; a claim that waits until it stands, for programs try again in other ways."""
    HUNG = "hung"
    """It does not go on."""
    WARNING = "warning"
    """It went on, with something missing."""
    NOTE = "note"
    """It was asked for, or asks for something."""


@dataclass(frozen=True, slots=True)
class Symptom:
    """One row of the table."""

    name: str
    weight: Weight
    what: str
    """A sentence without its full stop."""
    lines: re.Pattern[str] | None
    """Matches a line that proves it, at its beginning, behind time stamp and blanks."""
    cures: tuple[str, ...]
    refuted_by: frozenset[State] = frozenset()
    """States that show, when they come later, that it was got over."""
    absent: re.Pattern[str] | None = None
    """A line that would disprove it, had it come before; so it is claimed only of a boot whose kernel is seen from its
    beginning, without gaps."""
    silent_in: frozenset[State] = frozenset()
    """With ``silent_seconds``: the states in which silence proves it, by the last line there is."""
    silent_seconds: float = 0.0
    final: bool = False
    """Whether the line is the last word, after which nothing need show that the boot stands."""
    after: re.Pattern[str] | None = None
    """A line that must have come for silence to prove it."""


_OVER_LOADER: Final = frozenset(
    {
        State.KERNEL,
        State.INITRAMFS,
        State.SYSTEMD,
        State.LOGIN,
        State.SHELL,
        State.PANIC,
        State.KDB,
    }
)
_OVER_FIRMWARE: Final = _OVER_LOADER | {
    State.LOADER,
    State.COUNTDOWN,
    State.MENU,
    State.EDITOR,
    State.COMMAND,
}
_OVER_INITRAMFS: Final = frozenset({State.SYSTEMD})
_UP: Final = frozenset({State.LOGIN})

_DISK: Final = re.compile(
    r"(?:sd \S+ \[sd[a-z]+\] .*blocks|virtio_blk virtio\d+: \[vd[a-z]+\]"
    r"|(?:sd|vd|xvd)[a-z]+:(?: (?:sd|vd|xvd)[a-z]+\d+)|nvme\d+n\d+:|blkfront: xvd[a-z]+|mmcblk\d+: )"
)
"""A kernel has found a disk."""


_PANIC: Final = r"(?:---\[ end )?Kernel panic - not syncing: "
"""It is said before the trace and after it."""


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


_ROOT_MISSING: Final = _any(
    r"ALERT! +\S.* does not exist",
    r"Gave up waiting for root (?:file system )?device",
    r"VFS: Cannot open root device ",
    _PANIC + r"VFS: Unable to mount root fs",
    r"(?:dracut-initqueue(?:\[\d+\])?: )?Warning: dracut-initqueue(?:\[\d+\])?: timeout, still waiting",
    r"(?:dracut-initqueue(?:\[\d+\])?: )?Warning: /dev/\S+ does not exist",
    r"mount: mounting \S+ on /(?:root|sysroot)\S* failed",
)

SYMPTOMS: Final = (
    Symptom(
        "no-boot-device",
        Weight.FATAL,
        "the firmware found nothing to boot from",
        _any(
            r"No bootable device\.",
            r"BdsDxe: No bootable option or device was found",
            r"Boot failed: (?:not a bootable disk|could not read the boot disk)",
            r"No bootable medium found",
        ),
        (
            "see that the disk is attached to the machine and first in its boot order",
            "a disk made for UEFI does not boot under BIOS, nor the other way round: try the other firmware",
            "look at the disk from the host: a partition table, and an EFI system partition or boot code in it",
        ),
        refuted_by=_OVER_FIRMWARE,
    ),
    Symptom(
        "refused-by-secure-boot",
        Weight.FATAL,
        "Secure Boot refused what was to be started",
        _any(
            r"BdsDxe: failed to (?:load|start) .*: (?:Access Denied|Security Violation)",
            r"error: (?:\S+\.c:\d+:)?(?:bad shim signature|prohibited by secure boot policy)",
            r"Verification failed: \(0x1A\) Security Violation",
        ),
        (
            "switch Secure Boot off for this machine, or sign what it starts",
            "install the distribution's signed shim, boot loader and kernel, all of one release",
        ),
        refuted_by=_OVER_LOADER,
    ),
    Symptom(
        "loader-failed",
        Weight.FATAL,
        "the boot loader cannot load what it is told to",
        _any(
            r"error: (?:\S+\.c:\d+:)?(?:no such (?:device|partition|disk)|unknown filesystem|file [`'].*' not found"
            r"|disk [`'].*' not found|you need to load the kernel first|invalid (?:magic|sector|arch|file)"
            r"|symbol [`'].*' not found|attempt to read or write outside|premature end of file|out of memory)",
            r"Entering rescue mode\.\.\.",
            r"Bad Linux ARM64 Image magic!",
            r"Wrong Image (?:Format|Type) for \w+ command",
            r"## Error: Can't|\*\* (?:Invalid partition|No partition table|Unrecognized filesystem type)",
        ),
        (
            "at GRUB's prompt: `ls` shows the disks it has, `set` the place where it looks for its files",
            "boot by hand: `linux /boot/vmlinuz-… root=…`, `initrd /boot/initrd.img-…`, `boot`",
            "when it runs: `grub-install` and `update-grub`; a kernel's package may have been removed half way",
        ),
        refuted_by=_OVER_LOADER,
    ),
    Symptom(
        "hypervisor-drivers-missing",
        Weight.FATAL,
        "no root file system, and no line shows a disk found: most likely the drivers of this hypervisor are missing",
        _ROOT_MISSING,
        (
            "put them in the initramfs: virtio_pci, virtio_blk, virtio_scsi (KVM), hv_vmbus, hv_storvsc (Hyper-V)",
            "AWS and Azure also have nvme, Xen has xen-blkfront",
            "Debian, Ubuntu: MODULES=most in /etc/initramfs-tools/initramfs.conf, then `update-initramfs -u -k all`",
            "Fedora, Red Hat, SUSE: `dracut --no-hostonly --regenerate-all --force`",
            "boot an older kernel from the loader's menu, whose initramfs has them",
            "no initramfs at all? The boot loader's entry needs its `initrd` line",
            "see that the machine has a disk, on a controller that the kernel knows",
        ),
        refuted_by=_OVER_INITRAMFS,
        absent=_DISK,
    ),
    Symptom(
        "root-not-found",
        Weight.FATAL,
        "the root file system that the kernel was told is not there",
        _ROOT_MISSING,
        (
            "compare root= on the kernel's command line with the disks it found; in an initramfs' shell: `blkid`",
            "change root= in the loader's editor; make it last in /etc/default/grub and /etc/fstab",
            "LVM, RAID or an encrypted root: their tools must be in the initramfs",
        ),
        refuted_by=_OVER_INITRAMFS,
    ),
    Symptom(
        "init-missing",
        Weight.FATAL,
        "the root file system is there, but nothing in it that can be started as init",
        _any(
            _PANIC + r"No (?:working )?init found",
            _PANIC + r"Requested init \S+ failed",
            r"Target filesystem doesn't have requested /",
            r"No init found\. Try passing init= bootarg",
            r"run-init: .*: No such file or directory",
            r"switch_root: (?:can't execute|failed to execute) ",
            r"(?:systemd\[1\]: )?Failed to switch root: Specified switch root path .*os-release",
        ),
        (
            "take init= off the kernel's command line, or give one that exists: init=/bin/sh",
            "see that root= is the right partition: /boot by itself has no init",
            "a merged /usr on a file system of its own must be mounted by the initramfs",
            "from the host or a rescue system: is /sbin/init there, and its library loader in /lib64?",
        ),
        refuted_by=_OVER_INITRAMFS,
    ),
    Symptom(
        "initramfs-damaged",
        Weight.WARNING,
        "the kernel cannot unpack its initramfs",
        _any(
            r"Initramfs unpacking failed: ",
            r"rootfs image is not initramfs",
            r"RAMDISK: .*(?:invalid|incomplete)",
        ),
        (
            "make it anew: `update-initramfs -u -k all` or `dracut --regenerate-all --force`",
            "see that /boot is not full, and that the kernel can unpack that compression",
        ),
    ),
    Symptom(
        "file-system-needs-fsck",
        Weight.FATAL,
        "a file system is damaged, and its check needs somebody to answer",
        _any(
            r"\S+: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY",
            r"UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY",
            r"The root filesystem on \S+ requires a manual fsck",
            r"fsck (?:exited with status code|failed with (?:exit status|error code)) (?:4|6|8|12)\b",
            r"\[FAILED\] Failed to start .*(?:systemd-fsck|File System Check on )",
            r"EXT4-fs error \(device ",
            r"XFS \(\S+\): (?:Corruption|metadata I/O error|log mount/recovery failed)",
            r"BTRFS(?: error| critical) \(device ",
        ),
        (
            "in the shell that it leaves you: `fsck -y` of the file system it names, unmounted; XFS: `xfs_repair`",
            "once, from the kernel's command line: fsck.mode=force fsck.repair=yes",
            "I/O errors beside it: look at the disk on the host before you let fsck write",
        ),
        refuted_by=_UP,
    ),
    Symptom(
        "emergency-mode",
        Weight.FATAL,
        "systemd gave up and offers an emergency shell",
        _any(
            r"You are in emergency mode",
            r"Reached target (?:emergency\.target|Emergency Mode)",
            r"\[  OK  \] Reached target (?:emergency\.target|Emergency Mode)",
        ),
        (
            "`systemctl --failed` and `journalctl -xb` say which unit it was: mostly a mount of /etc/fstab",
            "a line of /etc/fstab whose disk is gone: remove it, or add nofail,x-systemd.device-timeout=5s",
        ),
        refuted_by=frozenset({State.LOGIN}),
    ),
    Symptom(
        "root-locked",
        Weight.WARNING,
        "root is locked: rescue and emergency mode open no shell",
        _any(r"Cannot open access to console, the root account is locked"),
        (
            "`kbridge boot GUEST --single-user` has systemd open one all the same (SYSTEMD_SULOGIN_FORCE=1)",
            "boot with init=/bin/sh, which asks nobody",
        ),
    ),
    Symptom(
        "systemd-froze",
        Weight.FATAL,
        "systemd stopped itself",
        _any(
            r"systemd\[1\]: (?:Freezing execution|Failed to load SELinux policy|Caught <\w+>)",
            r"\[!!!!!!\] ",
        ),
        (
            "SELinux: boot once with selinux=0 or enforcing=0, then relabel (`touch /.autorelabel`)",
            "boot with init=/bin/sh and look at what it names",
        ),
        final=True,
    ),
    Symptom(
        "no-memory-left",
        Weight.FATAL,
        "memory ran out, and there was nothing to kill for it",
        _any(
            _PANIC + r"(?:Out of memory|System is deadlocked on memory)",
            r"Out of memory and no killable processes",
        ),
        (
            "give the machine more memory",
            "a smaller initramfs, or none: it takes its unpacked size, and for a while its packed size beside that",
        ),
    ),
    Symptom(
        "out-of-memory",
        Weight.WARNING,
        "memory ran out, and the kernel killed programs",
        _any(
            r"Out of memory: (?:Killed|Kill) process",
            r"\S+ invoked oom-killer",
            r"oom-kill:constraint=",
        ),
        (
            "give the machine more memory",
            "a crashkernel= or hugepages= that takes most of it: make it smaller on the kernel's command line",
        ),
    ),
    Symptom(
        "init-died",
        Weight.FATAL,
        "init ended, and without it the kernel does not run",
        _any(_PANIC + r"Attempted to kill init!"),
        (
            "exitcode= in that line: 0x…00 is its exit status, 0x0000000b a crash; the lines before say of what",
            "boot with init=/bin/sh, or an initramfs breakpoint (break=, rd.break), and start it by hand",
        ),
    ),
    Symptom(
        "panic",
        Weight.FATAL,
        "the kernel panicked",
        _any(_PANIC),
        (
            "`kbridge log GUEST --symbols` explains the trace with source lines",
            "boot an older kernel from the loader's menu",
            "while it stands: `kbridge gdb GUEST` looks at it as it died",
        ),
    ),
    Symptom(
        "oops",
        Weight.WARNING,
        "the kernel met a fault of its own",
        _any(
            r"BUG: unable to handle ",
            r"BUG: kernel NULL pointer dereference",
            r"Oops: \S",
            r"general protection fault",
            r"kernel BUG at ",
            r"Unable to handle kernel ",
            r"Internal error: ",
        ),
        ("`kbridge log GUEST --symbols` explains it with source lines", "boot an older kernel"),
    ),
    Symptom(
        "provisioning-failed",
        Weight.WARNING,
        "the agent that sets the machine up for its cloud failed",
        _any(
            r"\[FAILED\] Failed to start .*(?:cloud-(?:init|config|final)|[Cc]loud-init|waagent|walinuxagent)",
            r"\[FAILED\] Failed to start .*(?:Azure Linux Agent|google-(?:guest|startup)|amazon-ssm|ignition)",
            r"cloud-init\[\d+\]: .*(?:Traceback|ERROR|CRITICAL|[Ff]ailed|Can not apply stage|Used fallback datasource)",
            r"Cloud-init v\. .*Datasource DataSourceNone",
            r"(?:\d{4}[-/]\d\d[-/]\d\d\S*(?: \S+)? )?ERROR (?:ExtHandler|Daemon) ",
            r"ignition\[\d+\]: .*(?:CRITICAL|failed)",
        ),
        (
            "log in, and read /var/log/cloud-init.log and cloud-init-output.log, or /var/log/waagent.log",
            "no data source: is the cloud's metadata (169.254.169.254, the seed disk, the config drive) there?",
            "users and keys are made by it: without it boot to a shell by the loader's editor (init=/bin/sh)",
        ),
    ),
    Symptom(
        "unit-failed",
        Weight.WARNING,
        "units failed",
        _any(
            r"\[FAILED\] Failed to \w+ ",
            r"\[DEPEND\] Dependency failed for ",
            r"\[ TIME \] Timed out ",
            r"systemd\[1\]: Failed to (?:start|mount) ",
            r"systemd\[1\]: Timed out waiting for device ",
        ),
        (
            "`systemctl status UNIT` and `journalctl -b -u UNIT` in the guest",
            "systemd.mask=UNIT on the kernel's command line boots once without it",
        ),
    ),
    Symptom(
        "disk-full",
        Weight.WARNING,
        "a file system is full",
        _any(r".{0,120}No space left on device"),
        ("make room from a rescue shell, or grow the disk and its file system",),
    ),
    Symptom(
        "disk-errors",
        Weight.WARNING,
        "a disk answers with errors",
        _any(
            r"(?:blk_update_request: )?I/O error, dev \w+, sector",
            r"Buffer I/O error on dev",
            r"nvme \S+: I/O .* timeout",
        ),
        ("look at the disk on the host: its image, its store, and how full that is",),
    ),
    Symptom(
        "passphrase-asked",
        Weight.NOTE,
        "an encrypted disk waits for its passphrase",
        _any(r"Please (?:enter passphrase|unlock disk) ", r"Enter passphrase for "),
        ("type it with `kbridge console GUEST`",),
        refuted_by=_UP | _OVER_INITRAMFS,
    ),
    Symptom(
        "initramfs-shell",
        Weight.NOTE,
        "the initramfs was told to stop at a shell, by break= or rd.break on the kernel's command line, or gave up",
        _any(
            r"Spawning shell within the initramfs",
            r"(?:dracut-[\w-]+\[\d+\]: )?Warning: Break ",
            r"Entering emergency mode\. Exit the shell to continue",
        ),
        ("go on with `exit`", "take break= or rd.break off the kernel's command line"),
        refuted_by=_OVER_INITRAMFS,
    ),
    Symptom(
        "rescue-mode",
        Weight.NOTE,
        "it was booted to rescue mode",
        _any(r"You are in rescue mode"),
        ("`systemctl default` goes on", "take single or systemd.unit=rescue.target off the command line"),
    ),
    Symptom(
        "console-silent",
        Weight.HUNG,
        "the boot loader started the kernel, and the serial line has been silent since: no console on it, or a kernel"
        " that died before it had one",
        None,
        (
            "put console=ttyS0,115200 (arm64: ttyAMA0) last on the kernel's command line, in the loader's editor",
            "to see a kernel that dies early: earlycon or earlyprintk=ttyS0,115200 beside it",
            "the guest may be well: try its network, or the screen",
        ),
        silent_in=frozenset({State.LOADER}),
        silent_seconds=30.0,
        after=_any(
            r"Loading (?:Linux|initial ramdisk) ",
            r"Booting (?:a command list|`)",
            r"EFI stub: ",
            r"Starting kernel \.\.\.",
        ),
    ),
    Symptom(
        "loader-silent",
        Weight.HUNG,
        "the boot loader began, and then fell silent: it waits where the serial line does not show it, or hangs",
        None,
        (
            'GRUB: GRUB_TERMINAL="console serial" and GRUB_SERIAL_COMMAND in /etc/default/grub, then `update-grub`',
            "look at the machine's screen",
        ),
        silent_in=frozenset({State.LOADER}),
        silent_seconds=60.0,
    ),
    Symptom(
        "nothing-on-the-line",
        Weight.HUNG,
        "nothing at all came on the serial line since the machine was reset: nothing in this guest writes to it",
        None,
        (
            "is the line that kbridge reads the machine's first serial port?",
            "put console=ttyS0,115200 (arm64: ttyAMA0) on the kernel's command line, from the screen or on the disk",
            'GRUB: GRUB_TERMINAL="console serial" in /etc/default/grub; firmware: its serial console',
        ),
        silent_in=frozenset({State.UNKNOWN}),
        silent_seconds=60.0,
    ),
    Symptom(
        "lockup",
        Weight.HUNG,
        "tasks or processors do not get on",
        _any(
            r"INFO: task \S+ blocked for more than \d+ seconds",
            r"watchdog: BUG: soft lockup",
            r"(?:NMI watchdog: )?Watchdog detected hard LOCKUP",
            r"rcu: INFO: rcu_\w+ .*stall",
        ),
        (
            "`kbridge break GUEST --sysrq w` prints the tasks that wait, `l` what the processors do",
            "`kbridge gdb GUEST` stops it where it is",
            "a host with too little CPU, or storage that does not answer, looks the same",
        ),
        refuted_by=_UP,
    ),
    Symptom(
        "start-job-waits",
        Weight.HUNG,
        "systemd waits for a unit that does not come up",
        _any(r"\[[ *]{4,6}\]? ?(?:\(\d+ of \d+\) )?A start job is running for .*\((?:\d+h ?)?\d+min "),
        (
            "a device of /etc/fstab that is gone: nofail, or x-systemd.device-timeout=5s",
            "systemd.mask=UNIT on the kernel's command line boots once without it",
        ),
        refuted_by=_UP,
    ),
    Symptom(
        "hung",
        Weight.HUNG,
        "nothing came for minutes, and the boot was not done",
        None,
        (
            "`kbridge ls`: is the machine paused, or a debugger at it?",
            "`kbridge break GUEST --sysrq w`, or `kbridge gdb GUEST`: where does it stand?",
        ),
        silent_in=frozenset(
            {State.FIRMWARE, State.LOADER, State.KERNEL, State.INITRAMFS, State.SYSTEMD, State.FAILED}
        ),
        silent_seconds=300.0,
    ),
)
"""The first row that matches a line has it; in reports the first fatal row that stands is the verdict."""
