"""Packets made by a grammar: what debuggers send, right and wrong, out of a source of chance.

`chance` is a `random.Random`, or Hypothesis's stand-in for one.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from gdbstubs.wire import escape
from rsp.stub import packet

ADDRESSES = (0x1000, 0x1008, 0x2000, 0x1FFF0, 0xFFFFF, 0x100000, 0, 0xFFFFFFFFFFFFFFFF)
THREADS = (b"0", b"1", b"2", b"-1", b"p1.1", b"p1.-1", b"3f")
RESUMES = (b"vCont;c", b"vCont;s:1;c", b"vCont;s:2;c", b"c", b"s", b"C05", b"S05", b"vCont;C05:1;c")
RANGES = (b"vCont;r1000,1008:1", b"vCont;r1000,1000:1;c", b"vCont;r1000,1040:2;c")
BACKWARDS = (b"bs", b"bc")


def _address(chance: Random) -> bytes:
    return b"%x" % chance.choice(ADDRESSES)


def _breakpoint(chance: Random) -> bytes:
    kind, address = chance.randrange(5), chance.choice(ADDRESSES[:5])
    return b"%d,%x,%x" % (kind, address, chance.choice((1, 4, 8)))


def _chosen(*payloads: bytes) -> Callable[[Random], bytes]:
    return lambda chance: chance.choice(payloads)


def _read(chance: Random) -> bytes:
    return b"%c%s,%x" % (chance.choice(b"mx"), _address(chance), chance.choice((0, 1, 8, 64, 2100, 9000)))


def _write(chance: Random) -> bytes:
    data = bytes(chance.randrange(256) for _ in range(chance.randrange(5)))
    return b"M%s,%x:%s" % (_address(chance), len(data), data.hex().encode())


def _object(chance: Random) -> bytes:
    kind, annex = chance.choice(
        ((b"features", b"target.xml"), (b"features", b"no.xml"), (b"threads", b""), (b"auxv", b""))
    )
    where = (chance.choice((0, 16, 9999)), chance.choice((0, 8, 4096)))
    return b"qXfer:%s:read:%s:%x,%x" % (kind, annex, *where)


def _sweep(chance: Random) -> bytes:
    where = (_address(chance), chance.choice((0, 4, 0x1000, 0x20000)))
    if chance.randrange(2):
        return b"qCRC:%s,%x" % where
    return b"qSearch:memory:%s;%x;" % where + escape(chance.choice((b"\x00", b"zz;", b"$#}*", bytes(40))))


_REQUESTS: tuple[Callable[[Random], bytes], ...] = (
    _chosen(b"qSupported:multiprocess+;swbreak+;hwbreak+", b"qC", b"qAttached", b"qSymbol::"),
    _chosen(b"?", b"vCont?", b"vMustReplyEmpty", b"qTStatus", b"QEnableErrorStrings"),
    lambda chance: b"Hg" + chance.choice(THREADS),
    lambda chance: b"Hc" + chance.choice(THREADS),
    _chosen(b"g"),
    lambda chance: b"p%x" % chance.randrange(12),
    _read,
    _read,
    _write,
    lambda chance: b"Z" + _breakpoint(chance),
    lambda chance: b"Z" + _breakpoint(chance),
    lambda chance: b"z" + _breakpoint(chance),
    _object,
    _sweep,
    _chosen(b"qHostInfo", b"qProcessInfo", b"QNonStop:0", b"QNonStop:1"),
    _chosen(b"qfThreadInfo", b"qsThreadInfo", b"qThreadExtraInfo,1", b"T1", b"T9"),
    _chosen(b"P0=0000000000000000", b"G" + b"00" * 64, b"qRcmd,68656c70", b"vKill;1"),
)


def request(chance: Random) -> bytes:
    """A request that a debugger may send while the guest stands still, and that is answered once."""
    return chance.choice(_REQUESTS)(chance)


def resume(chance: Random) -> bytes:
    return chance.choice(RESUMES)


def any_resume(chance: Random) -> bytes:
    """A resume, which may be over a range or backwards."""
    return chance.choice((*RESUMES, *RANGES, *BACKWARDS))


def mutated(chance: Random, data: bytes) -> bytes:
    """Damage bytes in one of the ways in which bytes get damaged."""
    out = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(out) + 1)
        match chance.randrange(6):
            case 0:
                out[place:place] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 5)))
            case 1:
                del out[place : place + chance.randrange(1, 6)]
            case 2 if place < len(out):
                out[place] ^= 1 << chance.randrange(8)
            case 3:
                out[place:place] = out[place : place + chance.randrange(1, 20)]
            case 4 if place < len(out):
                out[place] = chance.choice(b"$#+-*}%\x03:;,=-0fF\x00\xff")
            case _:
                out[place:place] = chance.choice(
                    (b"$", b"#", b"$#00", b"-", b"ffffffffffffffffff", b"*~", b"}")
                )
    return bytes(out)


def wrong_request(chance: Random) -> bytes:
    """A request with its arguments damaged, in a packet that is whole."""
    payload = mutated(chance, request(chance) if chance.randrange(4) else any_resume(chance))
    return packet(bytes(byte for byte in payload if byte not in b"$#"))


def garbage(chance: Random) -> bytes:
    """Bytes that no debugger sends."""
    match chance.randrange(4):
        case 0:
            return bytes(chance.randrange(256) for _ in range(chance.randrange(1, 40)))
        case 1:
            return mutated(chance, packet(request(chance)) + packet(resume(chance)))
        case 2:
            return chance.choice((b"$", b"#", b"+", b"-", b"%", b"\x03", b"$#", b"$a")) * chance.randrange(
                1, 60
            )
        case _:
            return wrong_request(chance)


def is_resume(payload: bytes) -> bool:
    return payload in RESUMES
