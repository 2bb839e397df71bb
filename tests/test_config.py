"""The configuration: every mistake at once with its place, and nothing but `InvalidConfig` for any bytes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.config import (
    MAX_FILE_BYTES,
    BreakInWay,
    Config,
    ConfigMistake,
    Difference,
    GuestConfig,
    InvalidConfig,
    OnLeave,
    RelayConfig,
    StubDialect,
    StubKind,
    difference,
    load,
    parse,
)
from kbridge.errors import ConfigError
from kbridge.explain import explain
from kbridge.places import default_dirs, find, search_places
from kbridge.transports.endpoints import Serial, Tcp, Telnet, Unix

HERE = Path("/etc/kbridge/kbridge.toml")


def read(text: str, uid: int = 0) -> Config:
    return parse(text.encode(), HERE, {}, uid=uid)


def outcome(data: bytes) -> tuple[Config | None, tuple[ConfigMistake, ...]]:
    """The configuration, or its mistakes; any other exception is the test's failure."""
    try:
        return parse(data, HERE, {}, uid=0), ()
    except InvalidConfig as error:
        return None, error.errors


def mistakes(text: str) -> dict[str, str]:
    with pytest.raises(InvalidConfig) as caught:
        read(text)
    assert caught.value.errors
    for mistake in caught.value.errors:
        assert str(mistake) in str(caught.value)
    return {mistake.path: mistake.message for mistake in caught.value.errors}


def test_an_empty_file_is_a_relay_without_guests() -> None:
    config = read("")
    assert config.guests == {}
    assert config.relay.state_dir == Path("/var/lib/kbridge")
    assert config.relay.runtime_dir == Path("/run/kbridge")
    assert config.relay.debug_dirs == (Path("/usr/lib/debug"),)
    assert config.relay.debuginfod_urls == ()
    assert config.relay.socket_mode == 0o600


def test_servers_of_debug_files() -> None:
    relay = read('[relay]\ndebuginfod_urls = ["https://a.example/", "http://[::1]:8002/x"]').relay
    assert relay.debuginfod_urls == ("https://a.example/", "http://[::1]:8002/x")


def test_a_whole_guest() -> None:
    guest = read("""
        [relay]
        socket_mode = "0660"
        socket_group = "kernel"
        [guests.web1]
        qmp = "unix:/run/vm/web1/qmp.sock"
        console = "telnet:[::1]:4000"
        stub = "tcp:localhost:1234"
        vmlinux = "/usr/lib/debug/boot/../vmlinux"
        debug_dirs = ["/a", "/b"]
        on_leave = "stay"
        stub_timeout_seconds = 3
        ring_bytes = 65536
    """).guests["web1"]
    assert guest == GuestConfig(
        qmp="unix:/run/vm/web1/qmp.sock",
        console="telnet:[::1]:4000",
        stub="tcp:localhost:1234",
        vmlinux="/usr/lib/debug/vmlinux",
        debug_dirs=("/a", "/b"),
        on_leave=OnLeave.STAY,
        stub_timeout_seconds=3,
        ring_bytes=65536,
    )
    assert (guest.qmp, guest.console) == (Unix("/run/vm/web1/qmp.sock"), Telnet("::1", 4000))
    assert guest.stub == Tcp("localhost", 1234)
    with pytest.raises(ValueError, match="frozen"):
        guest.ring_bytes = 3


def test_the_stub_is_started_by_default_where_there_is_a_monitor() -> None:
    guests = read("""
        [guests.a]
        qmp = "unix:/a"
        [guests.b]
        console = "serial:/dev/ttyS0:115200"
        [guests.c]
        console = "pty:/dev/pts/3"
        stub = "unix:/stub"
        [guests.d]
        qmp = "unix:/d"
        stub = "none"
        [guests.e]
    """).guests
    assert [guest.stub for guest in guests.values()] == [
        StubKind.AUTO,
        StubKind.NONE,
        Unix("/stub"),
        StubKind.NONE,
        StubKind.NONE,
    ]
    assert guests["b"].console == Serial("/dev/ttyS0", 115200)


def test_the_stub_is_taken_for_qemus_where_there_is_a_monitor_unless_the_file_says_otherwise() -> None:
    guests = read("""
        [guests.a]
        qmp = "unix:/a"
        [guests.b]
        stub = "unix:/b"
        [guests.c]
        qmp = "unix:/c"
        stub = "unix:/c2"
        [guests.d]
        qmp = "unix:/d"
        console = "unix:/d1"
        stub = "unix:/d2"
        stub_kind = "kgdb"
        [guests.e]
        stub = "tcp:h:1"
        stub_kind = "qemu"
        [guests.f]
        qmp = "unix:/f"
        stub = "unix:/f2"
        stub_kind = "plain"
    """).guests
    assert [guest.dialect for guest in guests.values()] == [
        StubDialect.QEMU,
        StubDialect.PLAIN,
        StubDialect.QEMU,
        StubDialect.KGDB,
        StubDialect.QEMU,
        StubDialect.PLAIN,
    ]
    assert guests["d"].break_in == (BreakInWay.SYSRQ,)


ON_LINE = "console = 'serial:/dev/ttyS0:9600'\nstub = 'kgdb'\n"


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("qmp = 'unix:/q'\nstub_kind = 'kgbd'", "stub_kind", "did you mean 'kgdb'?"),
        ("qmp = 'unix:/q'\nstub_kind = 3", "stub_kind", "'auto', 'qemu', 'kgdb' or 'plain'"),
        ("qmp = 'unix:/q'\nconsole = 'unix:/c'\nstub_kind = 'kgdb'", "stub_kind", 'not what "auto" starts'),
        ("stub_kind = 'plain'", "stub_kind", "has no stub"),
        ("qmp = 'unix:/q'\nstub = 'kgdb'", "stub", "name one in console"),
        ("console = 'unix:/c'\nstub = 'kgdb'", "break_in", "which unix:/c cannot carry"),
        ("console = 'telnet:h:1'\nstub = 'kgdb'\nstub_kind = 'plain'", "stub_kind", "is not what"),
        ("stub = 'unix:/k'\nstub_kind = 'kgdb'", "break_in", "name one in console, or set break_in = []"),
        (
            "stub = 'unix:/k'\nconsole = 'unix:/c'\nstub_kind = 'kgdb'",
            "break_in",
            "which unix:/c cannot carry",
        ),
        ("stub = 'unix:/k'\nstub_kind = 'kgdb'\nbreak_in = ['nmi']", "break_in", "name one in qmp"),
        (f"{ON_LINE}break_in = ['telnet-break']", "break_in", "goes over a telnet: or rfc2217: console"),
        (f"{ON_LINE}break_in = ['rfc2217-break']", "break_in", "goes over a rfc2217: console"),
        (f"{ON_LINE}qmp = 'unix:/q'\nbreak_in = ['monitor-break']", "break_in", "over a unix: or tcp:"),
        (
            "console = 'telnet:h:1'\nstub = 'kgdb'\nbreak_in = ['monitor-break']",
            "break_in",
            "sent by the machine",
        ),
        (f"{ON_LINE}break_in = ['sysrq', 'pause']", "break_in", '"pause" is done by the machine monitor'),
        (f"{ON_LINE}qmp = 'unix:/q'\nbreak_in = ['pause', 'sysrq']", "break_in", "is the last resort"),
        ("break_in = ['nmi', 'sysrk']", "break_in[1]", "did you mean 'sysrq'?"),
        ("break_in = 'nmi'", "break_in", "it is 'nmi'"),
    ],
)
def test_what_a_kind_of_stub_needs_is_said(text: str, key: str, message: str) -> None:
    found = mistakes(f"[guests.a]\n{text}")
    assert found.keys() == {f"guests.a.{key}"}
    assert message in found[f"guests.a.{key}"]


@pytest.mark.parametrize(
    "text",
    [
        "break_in = []",
        "console = 'telnet:h:1'",
        "console = 'rfc2217:h:1'",
        "console = 'serial:/dev/ttyS0:9600'",
        "console = 'unix:/c'\nqmp = 'unix:/q'",
        "qmp = 'unix:/q'\nbreak_in = ['nmi']",
        "console = 'telnet:h:1'\nqmp = 'unix:/q'\nbreak_in = ['monitor-break', 'nmi', 'telnet-break', 'pause']",
        "console = 'rfc2217:h:1'\nbreak_in = ['telnet-break', 'rfc2217-break']",
        "console = 'serial:/dev/ttyS0:9600'\nbreak_in = ['serial-break']",
        "console = 'pty:/dev/pts/1'\nqmp = 'unix:/q'\nbreak_in = ['nmi', 'sysrq']",
    ],
)
def test_kgdb_with_a_way_in_or_none_is_valid(text: str) -> None:
    guest = read(f"[guests.a]\nstub = 'unix:/k'\nstub_kind = 'kgdb'\n{text}").guests["a"]
    assert guest.dialect is StubDialect.KGDB


def test_all_mistakes_come_at_once_each_with_its_place() -> None:
    found = mistakes(
        """
        title = "x"
        [relay]
        statedir = "/x"
        runtime_dir = "run"
        socket_mode = "0666"
        debug_dirs = ["/a", 3, "b"]
        [guests.Web1]
        qmp = "pty:/dev/pts/1"
        consol = "unix:/x"
        on_leave = "rest"
        ring_bytes = "4096"
        stub_timeout_seconds = nan
        [guests.control]
        [guests.b]
        stub = "atuo"
        console = "unix:relative"
        vmlinux = 3
        [guests]
        c = 5
        [guests."x y"]
        ring_bytes = 1
    """.replace("[guests]\n        c = 5", "")
    )
    assert found.keys() == {
        "title",
        "relay.statedir",
        "relay.runtime_dir",
        "relay.socket_mode",
        "relay.debug_dirs[1]",
        "relay.debug_dirs[2]",
        "guests.Web1",
        "guests.Web1.qmp",
        "guests.Web1.consol",
        "guests.Web1.on_leave",
        "guests.Web1.ring_bytes",
        "guests.Web1.stub_timeout_seconds",
        "guests.control",
        "guests.b.stub",
        "guests.b.console",
        "guests.b.vmlinux",
        'guests."x y"',
        'guests."x y".ring_bytes',
    }
    assert "did you mean `state_dir`?" in found["relay.statedir"]
    assert "did you mean `console`?" in found["guests.Web1.consol"]
    assert "did you mean 'auto'?" in found["guests.b.stub"]
    assert "the keys are relay, guests" in found["title"]
    assert "must start with /" in found["relay.runtime_dir"]
    assert "it is '4096'" in found["guests.Web1.ring_bytes"]
    assert "'resume' or 'stay'" in found["guests.Web1.on_leave"]
    assert "the forms are unix:/path" in found["guests.b.console"]


def test_the_text_says_that_nothing_was_started_and_how_many_mistakes_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        read("a = 1\nb = 2")
    lines = str(caught.value).split("\n")
    assert lines[0] == "/etc/kbridge/kbridge.toml has 2 mistakes; nothing was started or changed"
    assert lines[1].startswith("  a: there is no such key")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("relay = 3", "relay", "must be a table"),
        ("guests = 3", "guests", "a table for each guest"),
        ("guests.a = 3", "guests.a", "must be a table: [guests.a]"),
        ("[guest.a]", "guest", "did you mean `guests`?"),
        ("[guests.a]\nstub = 'auto'", "guests.a.stub", "name one in qmp"),
        ("[guests.a]\nstub = 'pty:/dev/pts/1'", "guests.a.stub", "not at pty:/dev/pts/1"),
        ("[guests.a]\nstub = 3", "guests.a.stub", "'auto', 'none', 'kgdb' or an endpoint"),
        ("[guests.a]\nqmp = []", "guests.a.qmp", "text in quotes"),
        ("[guests.-a]", "guests.-a", "starts with a letter or digit"),
        (f"[guests.{'a' * 32}]", f"guests.{'a' * 32}", "1 to 31"),
        ("[relay]\ndebuginfod_urls = ['ftp://a']", "relay.debuginfod_urls[0]", "no address of a server"),
        ("[relay]\ndebuginfod_urls = ['https://a', 'http://a b']", "relay.debuginfod_urls[1]", "no address"),
        ("[relay]\ndebuginfod_urls = ['https:///a']", "relay.debuginfod_urls[0]", "no address"),
        ("[relay]\ndebuginfod_urls = ['http://a:99999']", "relay.debuginfod_urls[0]", "no address"),
        ("[relay]\ndebuginfod_bytes = 1", "relay.debuginfod_bytes", "greater than"),
        ("[relay]\nsocket_mode = 384", "relay.socket_mode", "octal"),
        ("[relay]\nsocket_mode = '0700'", "relay.socket_mode", "octal"),
        ("[relay]\nsocket_mode = '0670'", "relay.socket_mode", "never executed"),
        ("[relay]\nsocket_group = ''", "relay.socket_group", "at least 1 character"),
        ("[guests.a]\nring_bytes = true", "guests.a.ring_bytes", "valid integer"),
        ("[guests.a]\nvmlinux = '/a\\u0000'", "guests.a.vmlinux", ""),
        ('[guests.a]\nvmlinux = "/a\\u0000"', "guests.a.vmlinux", "cannot be printed"),
        ("a = 1\nx = [1, 2", "line 2, column 10", "not TOML"),
        ("a = 1\na = 2", "line 2, column", "verwrite"),
        ("x = 2026-02-31", "line 1", "nvalid date"),
        ("x = " + "9" * 5000, "", "cannot be"),
        ("x = " + "[" * 100_000, "", "nested too deeply"),
    ],
)
def test_a_single_mistake(text: str, path: str, message: str) -> None:
    if "\\u0000'" in text:
        # A literal string in TOML takes the backslash as it is: this one is a valid, if odd, path.
        assert str(read(text).guests["a"].vmlinux) == "/a\\u0000"
        return
    found = mistakes(text)
    assert len(found) == 1
    [(where, what)] = found.items()
    assert where.startswith(path)
    assert message in what


def test_syntax_errors_have_line_and_column() -> None:
    [place] = mistakes("[relay]\nstate_dir = /var\n")
    assert place == "line 2, column 13"


def test_bytes_that_are_no_text_and_files_that_are_too_large() -> None:
    with pytest.raises(InvalidConfig, match="line 3: it is not UTF-8"):
        parse(b"\n\n# \xff", HERE, {})
    with pytest.raises(InvalidConfig, match="larger than"):
        parse(b"#" * (MAX_FILE_BYTES + 1), HERE, {})


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("unix:/run/x", "unix:/run/../run/x"),
        ("tcp:h:1", "tcp:h:1"),
        ("pty:/dev/pts/3", "serial:/dev/pts/3:9600"),
    ],
)
def test_one_line_of_two_guests_is_an_error(one: str, two: str) -> None:
    found = mistakes(f"[guests.a]\nconsole = '{one}'\n[guests.b]\nconsole = '{two}'")
    assert found.keys() == {"guests.b.console"}
    assert "already guests.a.console" in found["guests.b.console"]


def test_what_serves_one_client_is_used_once_even_in_one_guest_or_in_one_that_is_wrong() -> None:
    found = mistakes("[guests.a]\nx = 1\nqmp = 'unix:/q'\nconsole = 'unix:/q'\nstub = 'unix:/q'")
    assert found.keys() == {"guests.a.x", "guests.a.console", "guests.a.stub"}
    assert "serves one client" in found["guests.a.stub"]


def test_kbridges_own_sockets_are_no_guests_line() -> None:
    text = (
        "[guests.a]\nconsole = 'unix:/run/kbridge/b/console'\n[guests.b]\nqmp = 'unix:/run/kbridge/control'"
    )
    assert mistakes(text).keys() == {"guests.a.console", "guests.b.qmp"}


def test_a_runtime_folder_too_long_for_its_sockets() -> None:
    # gdb-observe and two slashes and the name: 107 bytes fit, 108 do not.
    fits = "/" + "r" * (107 - len("/a/gdb-observe") - 1)
    read(f"[relay]\nruntime_dir = '{fits}'\n[guests.a]")
    found = mistakes(f"[relay]\nruntime_dir = '{fits}'\n[guests.a]\n[guests.ab]")
    assert found.keys() == {"guests.ab"}
    assert "108 bytes" in found["guests.ab"]


def test_the_difference_of_two_configurations() -> None:
    old = read("[guests.a]\n[guests.b]\nring_bytes = 65536\n[guests.c]\nqmp = 'unix:/c'")
    new = read(
        "[relay]\nsocket_mode = '0660'\n[guests.d]\n[guests.c]\nqmp = 'unix:/c'\nstub = 'auto'\n"
        "[guests.b]\nring_bytes = 65537"
    )
    assert difference(old, new) == Difference(("d",), ("a",), ("b",), ("socket_mode",))
    assert difference(new, new) == Difference((), (), (), ())


def test_folders_by_default() -> None:
    home = {"HOME": "/home/ann"}
    assert default_dirs({"XDG_RUNTIME_DIR": "/run/user/0"}, uid=0) == (
        Path("/var/lib/kbridge"),
        Path("/run/kbridge"),
    )
    assert default_dirs({**home, "XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "/s"}, uid=7) == (
        Path("/s/kbridge"),
        Path("/run/user/7/kbridge"),
    )
    state = Path("/home/ann/.local/state/kbridge")
    assert default_dirs(home, uid=7) == (state, state / "run")
    assert default_dirs({**home, "XDG_RUNTIME_DIR": "relative"}, uid=7) == (state, state / "run")


def test_where_the_file_is_looked_for(tmp_path: Path) -> None:
    env = {"HOME": "/home/ann", "XDG_CONFIG_HOME": str(tmp_path)}
    system = Path("/etc/kbridge/kbridge.toml")
    assert search_places(env, uid=0) == (system,)
    assert search_places(env, uid=7) == (tmp_path / "kbridge/kbridge.toml", system)
    assert search_places({"HOME": "/home/ann"}, uid=7)[0] == Path("/home/ann/.config/kbridge/kbridge.toml")
    assert find("x.toml", {**env, "KBRIDGE_CONFIG": "y.toml"}, uid=7) == Path("x.toml")
    assert find(None, {**env, "KBRIDGE_CONFIG": "y.toml"}, uid=7) == Path("y.toml")
    (tmp_path / "kbridge").mkdir()
    (tmp_path / "kbridge/kbridge.toml").write_text("")
    assert find(None, env, uid=7) == tmp_path / "kbridge/kbridge.toml"


@pytest.mark.skipif(Path("/etc/kbridge/kbridge.toml").exists(), reason="this machine has a configuration")
def test_no_file_at_all_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"looked for .* and /etc/kbridge/kbridge\.toml; write one"):
        find(None, {"XDG_CONFIG_HOME": str(tmp_path)}, uid=7)


def test_load_reads_the_file_and_touches_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "kbridge.toml"
    file.write_text(f"[relay]\nstate_dir = '{tmp_path}/state'\nruntime_dir = '{tmp_path}/run'\n[guests.a]\n")
    config = load(file, {})
    assert config.source == file
    assert list(config.guests) == ["a"]
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(InvalidConfig, match=r"has a mistake.*\n  it cannot be read: No such file"):
        load(tmp_path / "none.toml", {})
    with pytest.raises(InvalidConfig, match="cannot be read: Is a directory"):
        load(tmp_path, {})


@pytest.mark.parametrize("uid", [0, 1000])
def test_what_explain_prints_loads_and_names_every_key_with_its_default(uid: int) -> None:
    text = explain({"HOME": "/home/ann"}, uid=uid)
    config = parse(text.encode(), HERE, {}, uid=uid)
    assert list(config.guests) == ["web1"]
    tables = tomllib.loads(text)
    assert tables["relay"].keys() == RelayConfig.model_fields.keys()
    assert tables["guests"]["web1"].keys() == GuestConfig.model_fields.keys()
    keys = len(RelayConfig.model_fields) + len(GuestConfig.model_fields)
    assert text.count("; default: ") == keys
    assert max(map(len, text.splitlines())) <= 100
    state, _ = default_dirs({"HOME": "/home/ann"}, uid=uid)
    assert f'default: "{state}"' in text
    assert 'default: "0600"' in text


@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_its_mistakes(data: bytes) -> None:
    config, found = outcome(data)
    assert (config is None) == bool(found)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
values = st.recursive(
    leaves | st.sampled_from(["unix:/a", "auto", "kgdb", "tcp:h:1", "/x", "0600", "serial:/d:9600"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
guest_tables = st.dictionaries(st.sampled_from([*GuestConfig.model_fields, "qpm", ""]), values, max_size=6)


def toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case dict():
            return "{" + ", ".join(f"{toml(str(key))} = {toml(each)}" for key, each in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case str():
            return (
                '"'
                + "".join(f"\\U{ord(c):08x}" if not 0xD800 <= ord(c) < 0xE000 else "?" for c in value)
                + '"'
            )
        case float():
            return repr(value) if value == value and abs(value) != float("inf") else "nan"
        case None:
            return "1979-05-27"
        case _:
            return repr(value)


@given(
    st.dictionaries(st.sampled_from([*RelayConfig.model_fields, "x"]), values, max_size=5),
    st.lists(guest_tables, max_size=3),
)
def test_any_values_are_a_configuration_or_its_mistakes(
    relay: dict[str, object], guests: list[object]
) -> None:
    text = f"relay = {toml(relay)}\nguests = {toml({f'g{n}': guest for n, guest in enumerate(guests)})}\n"
    tomllib.loads(text)
    config, found = outcome(text.encode())
    assert all(mistake.path.startswith(("relay", "guests")) for mistake in found)
    assert (config is None) == bool(found)
    if config is not None:
        assert len(config.guests) == len(guests)


def test_the_documentation_shows_what_explain_prints() -> None:
    page = Path(__file__).parent.parent / "docs/configuration.md"
    assert f"```toml\n{explain({'HOME': '/root'}, uid=0)}```" in page.read_text("utf-8")
