"""The server under test in the console benchmarks: kbridge's recorder, lines and readers, and nothing else.

Lines come on stdin, one endpoint a line, ended by an empty line.  Readers connect to ``DIRECTORY/readers``.  With
``detect`` as third argument crashes are looked for too, on all lines each ``LOOK_SECONDS``.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from twisted.internet import epollreactor

epollreactor.install()

from twisted.internet import reactor, task  # noqa: E402

from kbridge.console.readers import RingReader  # noqa: E402
from kbridge.console.recorder import Recorder  # noqa: E402
from kbridge.crash.detector import Detector  # noqa: E402
from kbridge.process import raise_descriptor_limit, spare_garbage_collection  # noqa: E402
from kbridge.transports.endpoints import parse_endpoint  # noqa: E402
from kbridge.transports.opening import open_line  # noqa: E402
from kbridge.transports.poller import LinePoller  # noqa: E402
from kbridge.transports.streams import Listener  # noqa: E402

LOOK_SECONDS = 0.04


def look(recorders: list[Recorder]) -> None:
    """Feed what comes on each line to a detector of its own, from now on."""
    follows = [[recorder.ring, recorder.ring.head, Detector().feed] for recorder in recorders]

    def turn() -> None:
        for follow in follows:
            ring, offset, feed = follow
            head = ring.head
            if head != offset:
                feed(ring.read(offset, head - offset))
                follow[1] = head

    task.LoopingCall(turn).start(LOOK_SECONDS)


def main() -> None:
    directory = Path(sys.argv[1])
    ring_bytes = int(sys.argv[2])
    raise_descriptor_limit()
    poller = LinePoller(reactor)
    recorders = []
    lines = []
    for number, text in enumerate(iter(sys.stdin.readline, "\n")):
        recorder = Recorder(directory / f"line{number}", ring_bytes)
        if not recorder.recording:
            sys.exit(recorder.status)
        recorders.append(recorder)
        lines.append(open_line(reactor, poller, parse_endpoint(text.strip()), recorder))
    readers = []

    def serve(sock: socket.socket) -> None:
        readers.append(RingReader(reactor, sock, recorders[0]))
        print("reader", flush=True)

    Listener(reactor, directory / "readers", serve)
    if "detect" in sys.argv[3:]:
        look(recorders)
    spare_garbage_collection()
    reactor.callWhenRunning(print, "ready", flush=True)
    reactor.run()


main()
