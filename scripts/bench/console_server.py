"""The server under test in the console benchmarks: kbridge's recorder, lines and readers, and nothing else.

Lines come on stdin, one endpoint a line, ended by an empty line.  Readers connect to ``DIRECTORY/readers``.  With
``detect`` as third argument crashes are looked for too, on all lines that said something, with each sweep.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from twisted.internet import epollreactor

epollreactor.install()

from twisted.internet import reactor  # noqa: E402

from kbridge.console.readers import RingReader  # noqa: E402
from kbridge.console.recorder import Recorder  # noqa: E402
from kbridge.crash.detector import Detector  # noqa: E402
from kbridge.crash.sweep import Follow, Sweep  # noqa: E402
from kbridge.process import raise_descriptor_limit, spare_garbage_collection  # noqa: E402
from kbridge.transports.endpoints import parse_endpoint  # noqa: E402
from kbridge.transports.opening import open_line  # noqa: E402
from kbridge.transports.poller import LinePoller  # noqa: E402
from kbridge.transports.streams import Listener  # noqa: E402


class Watch:
    """A detector of what comes on a line from now on, asked as `CrashWatch` asks it."""

    def __init__(self, recorder: Recorder, sweep: Sweep) -> None:
        self.ring = recorder.ring
        self.offset = self.ring.head
        self.feed = Detector().feed
        self.follow = Follow(sweep, recorder, self.look)

    def look(self) -> None:
        head = self.ring.head
        data = self.ring.read(self.offset, head - self.offset)
        assert data is not None, "a line is looked at before its ring is full"
        self.feed(data)
        self.offset = head


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
        sweep = Sweep(reactor)
        for recorder in recorders:
            Watch(recorder, sweep)
    spare_garbage_collection()
    reactor.callWhenRunning(print, "ready", flush=True)
    reactor.run()


main()
