"""Opens the line that an endpoint names: the one place that knows every transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from kbridge.transports.endpoints import Pty, Rfc2217, Serial, Tcp, Telnet, Unix
from kbridge.transports.lines import Line
from kbridge.transports.pty import PtyTransport
from kbridge.transports.rfc2217 import Rfc2217Transport
from kbridge.transports.sockets import TcpTransport, UnixTransport
from kbridge.transports.telnet import TelnetTransport
from kbridge.transports.uart import SerialTransport

if TYPE_CHECKING:
    from kbridge.transports.channels import Transport
    from kbridge.transports.endpoints import Endpoint
    from kbridge.transports.lines import ConsoleLine, Sink
    from kbridge.transports.poller import LinePoller, LineReactor


def open_line(reactor: LineReactor, poller: LinePoller, endpoint: Endpoint, sink: Sink) -> ConsoleLine:
    """Begin to open ``endpoint`` and read all it sends into ``sink``; returns at once, and never raises.

    What cannot be opened is tried again until ``close``.
    """
    line = Line(reactor, poller, endpoint, _transport(reactor, poller, endpoint), sink)
    line.start()
    return line


def _transport(reactor: LineReactor, poller: LinePoller, endpoint: Endpoint) -> Transport:
    match endpoint:
        case Unix(path):
            return UnixTransport(path)
        case Tcp(host, port):
            return TcpTransport(poller, reactor.nameResolver, host, port)
        case Pty(path):
            return PtyTransport(path)
        case Serial(device, baud):
            return SerialTransport(device, baud)
        case Telnet(host, port):
            return TelnetTransport(TcpTransport(poller, reactor.nameResolver, host, port))
        case Rfc2217(host, port, speed):
            return Rfc2217Transport(TcpTransport(poller, reactor.nameResolver, host, port), speed)
        case _:
            assert_never(endpoint)
