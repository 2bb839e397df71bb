"""The configuration file: TOML in, one frozen value out, or all of its mistakes at once.

Reading it touches nothing else: no folder is made, no socket looked at (``kbridge doctor`` does that).
``docs/configuration.md`` has the rules; ``kbridge config explain`` prints every key.
"""

from __future__ import annotations

import difflib
import os
import posixpath
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from kbridge.crash.policy import OnCrash
from kbridge.errors import ConfigError
from kbridge.places import default_dirs, is_server
from kbridge.transports.endpoints import (
    MAX_UNIX_PATH_BYTES,
    Endpoint,
    Pty,
    Serial,
    Tcp,
    Unix,
    parse_endpoint,
)

MAX_FILE_BYTES: Final = 1 << 20
MAX_GUESTS: Final = 4096
LONGEST_SOCKET: Final = "gdb-observe"
"""The longest name of a socket in a guest's folder under ``runtime_dir``."""
OWN_SOCKETS: Final = ("gdb", LONGEST_SOCKET, "console")

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,30}")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_MOST_URL: Final = 2048
_MODE: Final = re.compile(r"0?6[0-7]{2}")


@dataclass(frozen=True, slots=True)
class ConfigMistake:
    """One mistake: where in the file (``guests.web1.console``, or a line and column), and what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidConfig(ConfigError):  # it is what the file is
    """A configuration file that cannot be used; ``errors`` are all of its mistakes, in the order of the file."""

    def __init__(self, source: Path, errors: tuple[ConfigMistake, ...]) -> None:
        count = "a mistake" if len(errors) == 1 else f"{len(errors)} mistakes"
        super().__init__(f"{source} has {count}; nothing was started or changed")
        self.source = source
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {mistake}" for mistake in self.errors)])


class StubKind(Enum):
    """How a guest's stub is come by, where it is not an endpoint."""

    AUTO = "auto"
    """Started at run time, through the machine monitor."""
    NONE = "none"
    KGDB = "kgdb"
    """Linux's own, on the console's line, which it shares."""


class StubDialect(Enum):
    """Who speaks at the other end of a stub's connection."""

    AUTO = "auto"
    """``qemu`` where kbridge starts the stub or the guest has a machine monitor, else ``plain``."""
    QEMU = "qemu"
    KGDB = "kgdb"
    """Linux's own, on a serial port."""
    PLAIN = "plain"
    """A stub of which nothing is taken for granted."""


class BreakInWay(Enum):
    """How a running kernel is made to enter kgdb from outside."""

    SYSRQ = "sysrq"
    """BREAK and ``g`` on the console's line, in each of the next four ways that the guest has."""
    SERIAL_BREAK = "serial-break"
    TELNET_BREAK = "telnet-break"
    RFC2217_BREAK = "rfc2217-break"
    MONITOR_BREAK = "monitor-break"
    """BREAK by the machine monitor, ``g`` on the line."""
    NMI = "nmi"
    """A non-maskable interrupt by the machine monitor."""
    PAUSE = "pause"
    """The machine monitor stops the machine: the last resort, for its kernel then answers no debugger."""


class OnLeave(Enum):
    """What becomes of a guest that debuggers stopped, when the last of those that may resume it leaves."""

    RESUME = "resume"
    STAY = "stay"


_WordT = TypeVar("_WordT", bound=Enum)


def _text(value: object, what: str) -> str:
    if isinstance(value, str):
        return value
    # Not TypeError: pydantic takes only ValueError for a mistake of the input.
    raise ValueError(f"{what} is a text in quotes")


def _path(value: object) -> Path:
    value = _text(value, "a path")
    if not value.startswith("/"):
        raise ValueError(f"{value!r} is not an absolute path: it must start with /")
    if not value.isprintable():
        raise ValueError(f"{value!r} has characters that cannot be printed")
    return Path(posixpath.normpath(value))


def _endpoint(value: object) -> Endpoint:
    return parse_endpoint(_text(value, "an endpoint"))


def _monitor(value: object) -> Unix | Tcp:
    endpoint = _endpoint(value)
    if isinstance(endpoint, Unix | Tcp):
        return endpoint
    raise ValueError(f"QEMU's monitor is at unix:/path or tcp:host:port, not at {endpoint}")


def _stub(value: object) -> StubKind | Tcp | Unix:
    words = [kind.value for kind in StubKind]
    if value in words:
        return StubKind(value)
    if not isinstance(value, str) or ":" not in value:
        near = difflib.get_close_matches(str(value), words, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"a stub is 'auto', 'none', 'kgdb' or an endpoint such as 'unix:/path'{hint}")
    endpoint = parse_endpoint(value)
    if isinstance(endpoint, Unix | Tcp):
        return endpoint
    raise ValueError(f"a stub is at unix:/path or tcp:host:port, not at {endpoint}")


def _word(value: object, words: type[_WordT], what: str) -> _WordT:
    known = [word.value for word in words]
    if value in known:
        return words(value)
    near = difflib.get_close_matches(str(value), known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(repr(word) for word in known[:-1])
    raise ValueError(f"{what} is {listed} or {known[-1]!r}{hint}")


def _server(value: object) -> str:
    value = _text(value, "the address of a debuginfod server")
    if len(value) > _MOST_URL or not is_server(value) or not value.isprintable() or " " in value:
        raise ValueError(
            f"{value[:80]!r} is no address of a server: it is like 'https://debuginfod.debian.net'"
        )
    return value


def _dialect(value: object) -> StubDialect:
    return _word(value, StubDialect, "the kind of a stub")


def _way(value: object) -> BreakInWay:
    return _word(value, BreakInWay, "a way to break in")


def _hook_url(value: object) -> str:
    value = _text(value, "the address of a hook")
    if len(value) > _MOST_URL or not is_server(value) or not value.isprintable() or " " in value:
        raise ValueError(
            f"{value[:80]!r} is no address of http or https, such as 'https://crashes.example/hook'"
        )
    return value


def _mode(value: object) -> int:
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise ValueError('a mode is a text of three octal digits after 0, its owner\'s a 6: "0600" or "0660"')
    mode = int(value, 8)
    if mode & 0o111 or mode & 0o007:
        raise ValueError(
            f'{value} would let every user of this host control the guests: use socket_group and "0660"'
            if mode & 0o007
            else f"{value}: a socket is never executed"
        )
    return mode


_ModelT = TypeVar("_ModelT", bound=BaseModel)
_Path = Annotated[Path, PlainValidator(_path)]
_Model = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class RelayConfig(BaseModel):
    """The ``[relay]`` table."""

    model_config = _Model

    state_dir: _Path = Field(
        description="What must outlive the relay: console rings, time lines, journals. Made if absent, mode 0700.",
        examples=["/var/lib/kbridge"],
    )
    runtime_dir: _Path = Field(
        description="The sockets: `control`, and a folder for each guest. Made if absent; its owner is admin.",
        examples=["/run/kbridge"],
    )
    debug_dirs: tuple[_Path, ...] = Field(
        default=(Path("/usr/lib/debug"),),
        strict=False,
        description="Folders that are searched for debug files by build-id, for all guests.",
        examples=[["/usr/lib/debug"]],
    )
    debuginfod_urls: tuple[Annotated[str, PlainValidator(_server)], ...] = Field(
        default=(),
        strict=False,
        max_length=16,
        description="debuginfod servers, asked in this order for the file of a kernel that no folder has. None are "
        "asked unless they stand here; DEBUGINFOD_URLS is gdb's.",
        examples=[["https://debuginfod.debian.net"]],
    )
    debuginfod_bytes: int = Field(
        default=8 << 30,
        ge=1 << 20,
        le=1 << 44,
        description="How much of what servers sent is kept, in state_dir/debuginfod; what was not used for longest "
        "makes room.",
        examples=[8 << 30],
    )
    socket_mode: Annotated[int, PlainValidator(_mode)] = Field(
        default=0o600,
        description="Permissions of all sockets. Whoever may write to one controls the guests.",
        examples=["0600"],
    )
    socket_group: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description='Group that the sockets are given to; of use with socket_mode = "0660".',
        examples=["kbridge"],
    )


class GuestConfig(BaseModel):
    """A ``[guests.NAME]`` table; what is absent, the guest does not have."""

    model_config = _Model

    qmp: Annotated[Unix | Tcp, PlainValidator(_monitor)] | None = Field(
        default=None,
        description="QEMU's machine monitor (-qmp unix:PATH,server=on,wait=off), one that no other program uses.",
        examples=["unix:/run/vm/web1/qmp.sock"],
    )
    console: Annotated[Endpoint, PlainValidator(_endpoint)] | None = Field(
        default=None,
        description="The serial line: unix:/path, tcp:host:port, pty:/dev/pts/N, serial:/dev/ttyS0:115200, "
        "telnet:host:port or rfc2217:host:port.",
        examples=["unix:/run/vm/web1/serial.sock"],
    )
    stub: Annotated[StubKind | Tcp | Unix, PlainValidator(_stub)] = Field(
        description='The GDB stub: "auto" (started when needed, through qmp), "none", "kgdb" (Linux\'s own, on the '
        "console's line, which it shares), or unix:/path or tcp:host:port of one that no debugger is connected to.",
        examples=["auto"],
    )
    stub_kind: Annotated[StubDialect, PlainValidator(_dialect)] = Field(
        default=StubDialect.AUTO,
        description='Who speaks at the stub: "qemu", "kgdb" (Linux\'s own, on a serial port that carries nothing '
        'else), "plain" (anything else that speaks the protocol), or "auto": qemu where qmp is given, else plain.',
        examples=["auto"],
    )
    break_in: tuple[Annotated[BreakInWay, PlainValidator(_way)], ...] = Field(
        default=(BreakInWay.SYSRQ,),
        strict=False,
        description="How a running kernel is made to enter kgdb, in this order, each checked before the next: "
        '"sysrq" (BREAK and g on the console, in each way that it has: "serial-break", "telnet-break", '
        '"rfc2217-break", "monitor-break", which can also be named and ordered), "nmi" (by qmp; an x86 kernel takes '
        'it as a panic, if at all), "pause" (by qmp, last: the machine stands and answers no debugger). Of use with '
        "kgdb only.",
        examples=[["sysrq"]],
    )
    vmlinux: _Path | None = Field(
        default=None,
        description="The kernel's file with symbols; found by build-id where it can be.",
        examples=["/usr/lib/debug/boot/vmlinux-6.1"],
    )
    debug_dirs: tuple[_Path, ...] = Field(
        default=(),
        strict=False,
        description="Folders that are searched for debug files before the relay's.",
        examples=[["/srv/debug/web1"]],
    )
    on_leave: OnLeave = Field(
        default=OnLeave.RESUME,
        strict=False,
        description='What the last controller leaves behind: "resume" (the guest runs again if it ran before '
        'debuggers stopped it) or "stay" (as it is).',
        examples=["resume"],
    )
    stub_timeout_seconds: float = Field(
        default=10.0,
        ge=0.1,
        le=600,
        allow_inf_nan=False,
        description="How long a stub may take for an answer before debuggers are told that it is lost.",
        examples=[10.0],
    )
    ring_bytes: int = Field(
        default=4 << 20,
        ge=1 << 16,
        le=1 << 34,
        description="How much of the console is kept; the file has this size from the start.",
        examples=[4 << 20],
    )
    timeline_bytes: int = Field(
        default=4 << 20,
        ge=1 << 16,
        le=1 << 34,
        description="Size at which a file of the time line is closed and the next begun.",
        examples=[4 << 20],
    )
    packets_ring_bytes: int = Field(
        default=4 << 20,
        ge=0,
        le=1 << 30,
        description="How much is kept of what debuggers and stub said to each other, memory contents included; the "
        "file is made when a debugger comes. 0: nothing.",
        examples=[4 << 20],
    )
    crash_capture: bool = Field(
        default=True,
        description="Whether a crash of the guest is noticed and its evidence kept, in state_dir/crashes.",
        examples=[True],
    )
    crash_warnings: bool = Field(
        default=False,
        description="Whether what the kernel only warns of (WARNING, and what its checkers find) is a crash too: the "
        "guest is paused while the evidence is taken, a second or two, and goes on.",
        examples=[True],
    )
    on_crash: OnCrash = Field(
        default=OnCrash.LEAVE,
        strict=False,
        description='What becomes of a guest that died, once its evidence is taken: "leave" (it stays as it died, for '
        'a debugger), "resume", "reset" or "off". One that a debugger controls is left alone.',
        examples=["leave"],
    )
    crash_quiet_seconds: float = Field(
        default=1.0,
        ge=0.05,
        le=600,
        allow_inf_nan=False,
        description="After how long without text a report that the kernel has not closed is taken to be at its end.",
        examples=[1.0],
    )
    crash_silence_seconds: float = Field(
        default=0.0,
        ge=0,
        le=604800,
        allow_inf_nan=False,
        description="A guest that runs and whose console says nothing for so long counts as crashed. 0: never.",
        examples=[600.0],
    )
    crash_full: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="How many crashes of one title are kept in full within an hour; more of them are counted only.",
        examples=[3],
    )
    crash_keep: int = Field(
        default=20,
        ge=1,
        le=10000,
        description="How many crashes are kept; the oldest goes first, and likewise with the next two.",
        examples=[20],
    )
    crash_keep_days: float = Field(
        default=90.0,
        gt=0,
        le=36500,
        allow_inf_nan=False,
        description="How long a crash is kept, in days.",
        examples=[90.0],
    )
    crash_keep_bytes: int = Field(
        default=16 << 30,
        ge=1 << 20,
        le=1 << 50,
        description="How much all crashes of the guest may take together.",
        examples=[16 << 30],
    )
    crash_free_bytes: int = Field(
        default=1 << 30,
        ge=0,
        le=1 << 50,
        description="How much of the disk a crash must leave free: older crashes make room, else it is kept without "
        "its memory image.",
        examples=[1 << 30],
    )
    crash_image: bool = Field(
        default=True,
        description="Whether the memory of a guest that died is kept too. It holds all of the guest's data.",
        examples=[True],
    )
    crash_image_bytes: int = Field(
        default=8 << 30,
        ge=1 << 20,
        le=1 << 50,
        description="How large the file of one image may be; it is compressed.",
        examples=[8 << 30],
    )
    crash_image_recipients: tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...] = Field(
        default=(),
        strict=False,
        max_length=16,
        description="Public keys of `age` that images are encrypted to.",
        examples=[["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"]],
    )
    crash_command: tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...] = Field(
        default=(),
        strict=False,
        max_length=64,
        description="A program that is run for each crash, with its arguments; the path of report.json comes after "
        "them.",
        examples=[["/usr/local/bin/crashed", "--tell"]],
    )
    crash_url: Annotated[str, PlainValidator(_hook_url)] | None = Field(
        default=None,
        description="Where report.json of each crash is sent to, by POST.",
        examples=["https://crashes.example/hook"],
    )
    crash_url_key: _Path | None = Field(
        default=None,
        description="A file with the key by which what is sent there is signed (HMAC-SHA256).",
        examples=["/etc/kbridge/hook.key"],
    )

    @property
    def dialect(self) -> StubDialect:
        """Who speaks at the stub, with ``AUTO`` decided.

        A machine monitor is QEMU's, and so is then the stub beside it, unless the file says otherwise.
        """
        if self.stub is StubKind.KGDB:
            return StubDialect.KGDB
        if self.stub_kind is not StubDialect.AUTO:
            return self.stub_kind
        return StubDialect.PLAIN if self.qmp is None else StubDialect.QEMU


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration that is valid in itself; whether what it names exists is not known."""

    source: Path
    relay: RelayConfig
    guests: Mapping[str, GuestConfig] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """What became of a configuration: names of guests, and the keys of ``[relay]`` that changed."""

    appeared: tuple[str, ...]
    gone: tuple[str, ...]
    changed: tuple[str, ...]
    relay_keys: tuple[str, ...]


def difference(old: Config, new: Config) -> Difference:
    """Tell what a reload has to do; a guest in none of the three lists is to be left alone."""
    both = [name for name in new.guests if name in old.guests]
    return Difference(
        appeared=tuple(name for name in new.guests if name not in old.guests),
        gone=tuple(name for name in old.guests if name not in new.guests),
        changed=tuple(name for name in both if old.guests[name] != new.guests[name]),
        relay_keys=tuple(
            key for key in RelayConfig.model_fields if getattr(old.relay, key) != getattr(new.relay, key)
        ),
    )


def load(path: Path, env: Mapping[str, str], *, uid: int | None = None) -> Config:
    """Read the configuration in ``path``; ``InvalidConfig`` with all of its mistakes, if it has any.

    ``env`` (for the XDG folders) and ``uid`` (the process's own if not given) only decide defaults.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidConfig(path, (ConfigMistake("", f"it cannot be read: {error.strerror}"),)) from None
    return parse(data, path, env, uid=uid)


def parse(data: bytes, source: Path, env: Mapping[str, str], *, uid: int | None = None) -> Config:
    """Read a configuration from its bytes, as ``load`` does; ``source`` is for texts."""
    document = _read_toml(data, source)
    mistakes = [_unknown(key, key, ("relay", "guests")) for key in document if key not in {"relay", "guests"}]
    relay = _relay(document.get("relay", {}), env, os.geteuid() if uid is None else uid, mistakes)
    guests = _guests(document.get("guests", {}), mistakes)
    if relay is not None:
        mistakes += _socket_paths(relay, guests)
    if mistakes or relay is None:
        raise InvalidConfig(source, tuple(mistakes))
    return Config(source, relay, {name: guest for name, guest in guests.items() if guest is not None})


def _read_toml(data: bytes, source: Path) -> dict[str, Any]:
    mistake: ConfigMistake
    if len(data) > MAX_FILE_BYTES:
        mistake = ConfigMistake("", f"it is larger than {MAX_FILE_BYTES} bytes")
        raise InvalidConfig(source, (mistake,))
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        mistake = ConfigMistake(f"line {line}", "it is not UTF-8 text")
    except tomllib.TOMLDecodeError as error:
        text, _, place = str(error).partition(" (at ")
        mistake = ConfigMistake(_place(place.rstrip(")"), data), f"{text} (this is not TOML)")
    except RecursionError:
        mistake = ConfigMistake("", "its values are nested too deeply")
    except ValueError as error:
        # tomllib lets a date that does not exist, or a number of thousands of digits, through as it came.
        mistake = ConfigMistake("", f"a value cannot be: {error}")
    raise InvalidConfig(source, (mistake,)) from None


def _place(place: str, data: bytes) -> str:
    if place.startswith("line"):
        return place
    # tomllib says "end of document": an open bracket or quote swallowed the rest.
    last = data.rpartition(b"\n")[2]
    lines = data.count(b"\n") + 1
    return f"line {lines}, column {len(last.decode()) + 1}"


def _relay(
    table: object, env: Mapping[str, str], uid: int, mistakes: list[ConfigMistake]
) -> RelayConfig | None:
    if not isinstance(table, dict):
        mistakes.append(ConfigMistake("relay", "it must be a table: [relay]"))
        return None
    state, runtime = default_dirs(env, uid=uid)
    filled = {"state_dir": str(state), "runtime_dir": str(runtime), **table}
    return _validated(RelayConfig, filled, "relay", mistakes)


def _guests(tables: object, mistakes: list[ConfigMistake]) -> dict[str, GuestConfig | None]:
    if not isinstance(tables, dict):
        mistakes.append(ConfigMistake("guests", "it must hold a table for each guest: [guests.web1]"))
        return {}
    if len(tables) > MAX_GUESTS:
        mistakes.append(
            ConfigMistake("guests", f"it has {len(tables)} guests; at most {MAX_GUESTS} are served")
        )
        return {}
    guests: dict[str, GuestConfig | None] = {}
    users: dict[Endpoint, str] = {}
    for name, table in tables.items():
        path = f"guests.{_key(name)}"
        if not _NAME.fullmatch(name):
            mistakes.append(
                ConfigMistake(
                    path,
                    "a name has 1 to 31 of a-z, 0-9, dot, underscore and dash, and starts with a letter or digit",
                )
            )
        elif name == "control":
            mistakes.append(ConfigMistake(path, 'no guest may be called "control": the API\'s socket is'))
        if not isinstance(table, dict):
            mistakes.append(ConfigMistake(path, f"it must be a table: [{path}]"))
            continue
        filled = {"stub": "auto" if "qmp" in table else "none", **table}
        guests[name] = _validated(GuestConfig, filled, path, mistakes)
        mistakes += _needs(filled, path)
        mistakes += _shared(table, path, users)
    return guests


def _validated(
    model: type[_ModelT], table: dict[str, Any], path: str, mistakes: list[ConfigMistake]
) -> _ModelT | None:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        mistakes += [_mistake(model, path, dict(each)) for each in error.errors(include_url=False)]
        return None


def _mistake(model: type[BaseModel], path: str, error: dict[str, Any]) -> ConfigMistake:
    at = path
    for part in error["loc"]:
        at += f"[{part}]" if isinstance(part, int) else f".{_key(str(part))}"
    if error["type"] == "extra_forbidden":
        return _unknown(at, str(error["loc"][0]), tuple(model.model_fields))
    message = str(error["msg"])
    if error["type"] == "value_error":
        return ConfigMistake(at, message.removeprefix("Value error, "))
    shown = repr(error["input"])
    shown = shown if len(shown) <= 60 else shown[:60] + "…"
    return ConfigMistake(at, f"{message[:1].lower()}{message[1:]}; it is {shown}")


def _unknown(at: str, key: str, known: tuple[str, ...]) -> ConfigMistake:
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean `{near[0]}`?" if near else f"the keys are {', '.join(known)}"
    return ConfigMistake(at, f"there is no such key; {hint}")


def _needs(table: Mapping[str, Any], path: str) -> list[ConfigMistake]:
    """What a stub needs of the same guest, judged by what is written: also when that is wrong itself."""
    mistakes = []
    if table["stub"] == "auto" and "qmp" not in table:
        mistakes.append(
            ConfigMistake(f"{path}.stub", '"auto" starts the stub through the monitor: name one in qmp')
        )
    kind = table.get("stub_kind", "auto")
    if table["stub"] == "kgdb":
        if "console" not in table:
            mistakes.append(
                ConfigMistake(f"{path}.stub", '"kgdb" is on the console\'s line: name one in console')
            )
        if kind not in ("auto", "kgdb"):
            mistakes.append(
                ConfigMistake(f"{path}.stub_kind", f'"{kind}" is not what "kgdb" on the console\'s line is')
            )
        kind = "kgdb"
    if kind in ("kgdb", "plain") and table["stub"] == "auto":
        mistakes.append(
            ConfigMistake(
                f"{path}.stub_kind",
                f'"{kind}" is not what "auto" starts, which is QEMU\'s: name the stub\'s socket in stub',
            )
        )
    if kind in ("qemu", "kgdb", "plain") and table["stub"] == "none":
        mistakes.append(ConfigMistake(f"{path}.stub_kind", "the guest has no stub: name its socket in stub"))
    if kind == "kgdb" and (table["stub"] != "kgdb" or "console" in table):
        mistakes += _ways_in(table, path)
    return mistakes


def _ways_in(table: Mapping[str, Any], path: str) -> list[ConfigMistake]:
    """What the ways into kgdb need of the same guest."""
    ways = table.get("break_in", ["sysrq"])
    mistakes = []
    if not isinstance(ways, list):
        return []
    console = str(table.get("console", ""))
    if "sysrq" in ways:
        if not console:
            mistakes.append(
                ConfigMistake(
                    f"{path}.break_in",
                    '"sysrq" is BREAK and g on the console: name one in console, or set break_in = []',
                )
            )
        elif "qmp" not in table and console.startswith(("unix:", "tcp:", "pty:")):
            mistakes.append(
                ConfigMistake(
                    f"{path}.break_in",
                    f'"sysrq" needs BREAK, which {console} cannot carry: name the machine\'s monitor in qmp, or a '
                    "telnet:, rfc2217: or serial: console, or set break_in = []",
                )
            )
    for way, kinds in _CONSOLES_OF.items():
        if way in ways and not console.startswith(kinds):
            needed = " or ".join(kinds)
            mistakes.append(
                ConfigMistake(
                    f"{path}.break_in", f'"{way}" goes over a {needed} console: name one in console'
                )
            )
    for way, what in _MONITOR_DOES.items():
        if way in ways and "qmp" not in table:
            mistakes.append(
                ConfigMistake(
                    f"{path}.break_in", f'"{way}" is {what} by the machine monitor: name one in qmp'
                )
            )
    if "pause" in ways[:-1]:
        mistakes.append(
            ConfigMistake(
                f"{path}.break_in",
                '"pause" is the last resort: what comes after it would be sent to a machine that stands',
            )
        )
    return mistakes


_CONSOLES_OF: Final = {
    "serial-break": ("serial:",),
    "telnet-break": ("telnet:", "rfc2217:"),
    "rfc2217-break": ("rfc2217:",),
    "monitor-break": ("unix:", "tcp:", "pty:", "telnet:"),
}
"""The kinds of console on which each way sends BREAK; the monitor knows those only that QEMU itself serves."""
_MONITOR_DOES: Final = {"monitor-break": "sent", "nmi": "injected", "pause": "done"}


def _shared(table: Mapping[str, Any], path: str, users: dict[Endpoint, str]) -> list[ConfigMistake]:
    """What is used twice: each of these serves one client."""
    mistakes = []
    for key in ("qmp", "console", "stub"):
        value = table.get(key)
        try:
            endpoint = _normal(parse_endpoint(value)) if isinstance(value, str) else None
        except ValueError:
            continue
        if endpoint is None:
            continue
        at = f"{path}.{key}"
        if endpoint in users:
            mistakes.append(
                ConfigMistake(at, f"{endpoint} is already {users[endpoint]}, and serves one client")
            )
        else:
            users[endpoint] = at
    return mistakes


def _normal(endpoint: Endpoint) -> Endpoint:
    match endpoint:
        case Unix(path):
            return Unix(posixpath.normpath(path))
        case Pty(path):
            return Pty(posixpath.normpath(path))
        case Serial(device, _):
            return Pty(posixpath.normpath(device))
        case _:
            return endpoint


def _socket_paths(relay: RelayConfig, guests: Mapping[str, GuestConfig | None]) -> list[ConfigMistake]:
    mistakes = []
    own = {str(relay.runtime_dir / "control")}
    for name in guests:
        own |= {str(relay.runtime_dir / name / socket) for socket in OWN_SOCKETS}
        length = len(os.fsencode(relay.runtime_dir / name / LONGEST_SOCKET))
        if length > MAX_UNIX_PATH_BYTES:
            mistakes.append(
                ConfigMistake(
                    f"guests.{_key(name)}",
                    f"{relay.runtime_dir / name / LONGEST_SOCKET} would have {length} bytes, and a socket's path "
                    f"at most {MAX_UNIX_PATH_BYTES}: shorten relay.runtime_dir or the name",
                )
            )
    for name, guest in guests.items():
        for key in ("qmp", "console", "stub") if guest is not None else ():
            endpoint = getattr(guest, key)
            if isinstance(endpoint, Unix) and posixpath.normpath(endpoint.path) in own:
                mistakes.append(
                    ConfigMistake(
                        f"guests.{_key(name)}.{key}", f"{endpoint} is a socket that kbridge itself makes"
                    )
                )
    return mistakes


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else '"' + name.encode("unicode_escape").decode() + '"'
