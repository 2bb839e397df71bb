"""The kernel command line that a wish makes of another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.boot.wishes import MAX_COMMAND_LINE, STAGES, Goal, StopAt, Wishes
from kbridge.errors import KbridgeError

FORCE = "systemd.setenv=SYSTEMD_SULOGIN_FORCE=1"
OLD = "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro console=tty0 console=ttyS0,115200 quiet"
KEPT = "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro console=tty0 console=ttyS0,115200"


@pytest.mark.parametrize(
    ("wishes", "old", "new"),
    [
        (Wishes(), OLD, OLD),
        (Wishes(single_user=True), OLD, f"{KEPT} single {FORCE}"),
        (Wishes(emergency=True), OLD, f"{KEPT} emergency {FORCE}"),
        (Wishes(init="/bin/sh"), OLD, f"{KEPT} init=/bin/sh"),
        (Wishes(break_at="premount"), OLD, f"{KEPT} break=premount rd.break=pre-mount {FORCE}"),
        (Wishes(stop_at=StopAt.INITRAMFS), OLD, f"{KEPT} break=premount rd.break=pre-mount {FORCE}"),
        (Wishes(append="nokaslr  debug"), OLD, f"{OLD} nokaslr debug"),
        (Wishes(append="nokaslr", stop_at=StopAt.KERNEL), OLD, f"{OLD} nokaslr"),
        # What stands in the way goes, and what is there stays.
        (Wishes(single_user=True), "a systemd.unit=multi-user.target 3 single b", f"a single b {FORCE}"),
        (Wishes(init="/bin/sh"), "init=/sbin/init b", "b init=/bin/sh"),
        (Wishes(break_at="init"), "rd.break b", f"b break=init rd.break=pre-pivot {FORCE}"),
        # The shell must speak where we listen.
        (Wishes(init="/bin/sh", console="ttyS0"), "ro", "ro init=/bin/sh console=ttyS0"),
        (Wishes(init="/bin/sh", console="ttyS0"), "console=tty0", "console=tty0 init=/bin/sh console=ttyS0"),
        (Wishes(init="/bin/sh", console="ttyS0"), "console=hvc0", "console=hvc0 init=/bin/sh"),
        (Wishes(init="/bin/sh"), "ro", "ro init=/bin/sh"),
        (
            Wishes(init="/bin/sh"),
            "console=ttyS1,9600 console=tty0",
            "console=ttyS1,9600 console=tty0 init=/bin/sh console=ttyS1,9600",
        ),
        (Wishes(append="debug", console="ttyS0"), "ro", "ro debug"),
        # What is init's stays behind, quotes stay whole.
        (Wishes(single_user=True), 'dyndbg="a b" -- 5 x', f'dyndbg="a b" single {FORCE} -- 5 x'),
        (Wishes(init="/bin/sh", append="-- -x"), "ro", "ro init=/bin/sh -- -x"),
        (Wishes(append="-- -x"), "ro -- 5", "ro -- 5 -x"),
        (Wishes(append='dyndbg="file a.c +p"'), "", 'dyndbg="file a.c +p"'),
        (Wishes(single_user=True), "", f"single {FORCE}"),
    ],
)
def test_what_becomes_of_a_command_line(wishes: Wishes, old: str, new: str) -> None:
    """Words go to the end, or before what is init's; what stands in the way goes."""
    assert wishes.new_command_line(old) == new
    assert wishes.new_command_line(new) == new, "a second time changes nothing"


def test_what_came_and_went_is_said() -> None:
    """The words themselves, for who shows or types them."""
    changed = Wishes(single_user=True, append="debug").change(OLD)
    assert changed.added == ("single", FORCE, "debug")
    assert changed.removed == ("quiet",)


@pytest.mark.parametrize(
    ("wishes", "goal", "edits"),
    [
        (Wishes(), Goal.UP, False),
        (Wishes(append="  "), Goal.UP, False),
        (Wishes(append="debug"), Goal.UP, True),
        (Wishes(entry="2"), Goal.UP, False),
        (Wishes(single_user=True), Goal.SHELL, True),
        (Wishes(init="/bin/sh"), Goal.SHELL, True),
        (Wishes(init="/bin/sh", stop_at=StopAt.KERNEL), Goal.KERNEL, True),
        (Wishes(break_at="top"), Goal.INITRAMFS, True),
        (Wishes(stop_at=StopAt.LOADER, entry="2"), Goal.LOADER, False),
        (Wishes(stop_at=StopAt.FIRMWARE), Goal.FIRMWARE, False),
    ],
)
def test_what_counts_as_done(wishes: Wishes, goal: Goal, edits: bool) -> None:
    """A wish says where the boot is to end."""
    assert (wishes.goal, wishes.edits) == (goal, edits)


@pytest.mark.parametrize(
    ("given_wishes", "words"),
    [
        ({"single_user": True, "emergency": True}, "--single-user and --emergency exclude each other"),
        ({"init": "/bin/sh", "break_at": "top"}, "--init and --break exclude each other"),
        ({"break_at": "nowhere"}, "stages are top, modules"),
        ({"init": "sh"}, "one path and no arguments"),
        ({"init": "/bin/sh -c x"}, "one path and no arguments"),
        ({"append": "a\rb"}, "cannot be typed"),
        ({"append": "ü"}, "cannot be typed"),
        ({"stop_at": StopAt.LOADER, "append": "x"}, "--stop-at loader excludes --append"),
        ({"stop_at": StopAt.FIRMWARE, "single_user": True}, "--stop-at firmware excludes --single-user"),
        ({"stop_at": StopAt.INITRAMFS, "single_user": True}, "it stops before init"),
    ],
)
def test_what_cannot_be(given_wishes: dict[str, object], words: str) -> None:
    """It is said at once, before a machine is reset."""
    with pytest.raises(KbridgeError, match=words.replace("(", r"\(")):
        Wishes(**given_wishes)  # type: ignore[arg-type]


def test_a_line_that_no_kernel_takes_is_refused() -> None:
    """A kernel would drop the end of it, which is what was wished."""
    with pytest.raises(KbridgeError, match="a kernel takes 2047"):
        Wishes(single_user=True).change("x" * MAX_COMMAND_LINE)


OWN = st.lists(
    st.sampled_from(
        [
            "ro",
            "quiet",
            "single",
            "console=tty0",
            "console=ttyS0",
            "init=/a",
            "--",
            "3",
            'a="b c"',
            '"',
            "break",
        ]
    ),
    max_size=8,
).map(" ".join)
WISHES = st.sampled_from(
    [
        Wishes(single_user=True),
        Wishes(emergency=True, append="x -- y"),
        Wishes(init="/bin/sh", console="ttyS0"),
        Wishes(append="a a"),
        *(Wishes(break_at=stage) for stage in STAGES),
    ]
)


@given(OWN, WISHES)
def test_any_line_is_changed_once(old: str, wishes: Wishes) -> None:
    """Changing is done when it is done, and what was not said to go is still there in its order."""
    changed = wishes.change(old)
    assert wishes.new_command_line(changed.text) == changed.text
    if '"' not in old.replace('a="b c"', ""):
        left = changed.text.split()
        assert all(word in left for word in old.split() if word not in (*changed.removed, "--"))
