"""A read of guest memory by a short debugger's session: it stops the guest for a moment, and lets it go.

For guests without a machine monitor.  It blocks.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from gdbstubs.wire import Framer, frame
from kbridge.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_SECONDS: Final = 10.0
MAX_PACKET_BYTES: Final = 16384
MAX_PACKETS: Final = 64
"""So many words to the user may come before an answer."""


def read_by_stub(path: str, address: int, length: int) -> bytes:
    """Return ``length`` bytes of virtual memory, none where nothing is mapped; raises ``GuestError``.

    The session ends with a detach, so that the guest runs again if it ran.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stub:
        stub.settimeout(ANSWER_SECONDS)
        try:
            stub.connect(path)
            packets = _packets(stub)
            stopped = _ask(stub, packets, b"?")
            if not stopped.startswith((b"T", b"S")):
                raise GuestError("the stub did not stop the guest", why=stopped.decode("latin-1"))
            answer = _ask(stub, packets, b"m%x,%x" % (address, length))
            _ask(stub, packets, b"D")
        except OSError as error:
            raise GuestError(
                f"the stub at {path} does not answer", why=error.strerror or str(error)
            ) from error
    if answer.startswith(b"E") and len(answer) % 2:
        return b""
    try:
        return bytes.fromhex(answer.decode("ascii"))
    except ValueError as error:
        raise GuestError("the stub's answer to a read of memory is not understood", why=str(error)) from error


def _ask(stub: socket.socket, packets: Iterator[bytes], payload: bytes) -> bytes:
    stub.sendall(frame(payload))
    for _ in range(MAX_PACKETS):
        answer = next(packets)
        # Words to the user are no answer; "OK" is one to a detach.
        if not answer.startswith(b"O") or answer == b"OK":
            return answer
    raise GuestError("the stub talks without answering")


def _packets(stub: socket.socket) -> Iterator[bytes]:
    framer = Framer(MAX_PACKET_BYTES)
    while data := stub.recv(MAX_PACKET_BYTES):
        for event in framer.feed(data):
            if isinstance(event, bytes):
                _acknowledge(stub)
                yield event
    raise GuestError(
        "the stub closed the connection", todo="is another debugger attached? `kbridge ls` shows it"
    )


def _acknowledge(stub: socket.socket) -> None:
    try:
        stub.sendall(b"+")
    except BrokenPipeError:
        # A stub that was told to detach closes after its answer, which we have.
        return
