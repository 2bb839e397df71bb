"""Starts the relay with a serial driver that has a wire: `wire_lab.py`'s, beside a pseudo terminal.

A pseudo terminal takes BREAK and carries it nowhere, and kbridge says so.  Here it is told on a socket, from where a
serial port's driver would put it on the wire; all else of the relay is as it is.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kbridge.start import main
from kbridge.transports import uart

_BESIDE = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def _update_break_state(port: uart._KeptInput) -> None:
    _BESIDE.sendto(b"begins" if port._break_state else b"ends", os.environ["KBRIDGE_BREAKS"])


uart._KeptInput._update_break_state = _update_break_state  # type: ignore[method-assign]
uart.is_pseudo_terminal = lambda fd: False
main()
