"""Tying processes together, so that no guest outlives whoever wanted it."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import stat
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 5.0
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Have the kernel send us `number` when `parent`, a process id, ends; at once if it ended already.

    The kernel watches the *thread* that started us (prctl(2), PR_SET_PDEATHSIG).
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def child_setup(*, detach: bool = False, ending: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """What a new process does before its program is loaded; it gets `ending` when we are gone, unless detached."""
    starter = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if not detach:
            die_with_parent(ending, starter)

    return prepare


def lifeline() -> int | None:
    """Standard input, if its end means that our starter is gone: an open pipe or socket.

    A terminal, a file and /dev/null tell nothing, nor does a pipe that was closed before we began.
    """
    try:
        descriptor = sys.stdin.fileno() if sys.stdin else -1
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return None
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    for _, events in poll.poll(0):
        if events & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
            return None
    return descriptor


def wait(process: subprocess.Popen[bytes], line: int | None) -> bool:
    """Wait until the process ends (True), or until a signal or the end of `line` asks for that (False).

    SIGTERM, SIGINT and SIGHUP must be blocked already, so that none is lost before we get here.
    """
    asked = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    poll = select.poll()
    child = os.pidfd_open(process.pid)
    signals, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer)
    for number in asked:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, asked)
    try:
        poll.register(child, select.POLLIN)
        poll.register(signals, select.POLLIN)
        if line is not None:
            poll.register(line, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == child:
                    return True
                if descriptor == signals:
                    return False
                if not os.read(descriptor, 4096):
                    return False
    finally:
        signal.set_wakeup_fd(-1)
        for descriptor in (child, signals, writer):
            os.close(descriptor)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, kindly first."""
    deadline = time.monotonic() + _STOP_SECONDS
    process.terminate()
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if process.poll() is None:
        process.kill()
    process.wait()
