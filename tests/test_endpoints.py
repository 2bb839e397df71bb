from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.transports.endpoints import (
    MAX_BAUD,
    Endpoint,
    Pty,
    Rfc2217,
    Serial,
    Tcp,
    Telnet,
    Unix,
    parse_endpoint,
)

paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20).map(
    "/".__add__
)
hosts = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
ports = st.integers(1, 65535)
bauds = st.integers(1, MAX_BAUD)
endpoints: st.SearchStrategy[Endpoint] = st.one_of(
    st.builds(Unix, paths),
    st.builds(Tcp, hosts, ports),
    st.builds(Pty, paths),
    st.builds(Serial, paths, bauds),
    st.builds(Telnet, hosts, ports),
    st.builds(Rfc2217, hosts, ports, st.none() | bauds),
)


@given(endpoints)
def test_text_and_value_are_each_others_inverse(endpoint: Endpoint) -> None:
    assert parse_endpoint(str(endpoint)) == endpoint


@given(
    st.text(max_size=60)
    | st.from_regex(r"(unix|tcp|pty|serial|telnet|rfc2217):[\[\]/a-f0-9:.%]{0,30}", fullmatch=True)
)
def test_anything_else_is_a_value_error_that_names_the_forms(text: str) -> None:
    said = ""
    try:
        said = str(parse_endpoint(text))
    except ValueError as error:
        said = str(error)
    assert said == text or "the forms are unix:/path, " in said


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("unix:/run/vm/web1/serial.sock", Unix("/run/vm/web1/serial.sock")),
        ("unix:/a:b", Unix("/a:b")),
        ("tcp:[::1]:4000", Tcp("::1", 4000)),
        ("tcp:[fe80::1%eth0]:4000", Tcp("fe80::1%eth0", 4000)),
        ("serial:/dev/serial/by-id/usb-1:2:115200", Serial("/dev/serial/by-id/usb-1:2", 115200)),
        ("rfc2217:console.example:2001", Rfc2217("console.example", 2001)),
        ("rfc2217:[::1]:2001:9600", Rfc2217("::1", 2001, 9600)),
    ],
)
def test_forms(text: str, value: Endpoint) -> None:
    assert parse_endpoint(text) == value
    assert str(value) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("/run/x.sock", "no kind before a colon"),
        ("unxi:/x", "there is no kind 'unxi'"),
        ("unix:run/x", "must start with /"),
        ("unix:/" + "x" * 107, "108 bytes long; 107 fit"),
        ("unix:/a\0b", "zero byte"),
        ("tcp:host", "the port is missing"),
        ("tcp:host:99999", "1 to 65535"),
        ("tcp:host:http", "not a number"),
        ("tcp:host:+80", "not a number"),
        ("tcp:host:80:9", "something after the port"),
        ("tcp:::1:4000", "an IPv6 address stands in brackets"),
        ("tcp:[host]:80", "only an IPv6 address"),
        ("tcp:ho st:80", "no name or address"),
        ("serial:/dev/ttyS0", "needs its speed"),
        ("serial:/dev/ttyS0:0", "the speed must be"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(ValueError, match="is no endpoint") as caught:
        parse_endpoint(text)
    assert why in str(caught.value)
