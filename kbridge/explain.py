"""What ``kbridge config explain`` prints: every key with its meaning, type and default, as TOML that loads."""

from __future__ import annotations

import json
import textwrap
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbridge.config import GuestConfig, RelayConfig
from kbridge.places import default_dirs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

_WIDTH = 92
_HEAD = """\
# kbridge's configuration: every key, what it is, its default, and an example.
# It is looked for in: --config FILE, KBRIDGE_CONFIG, $XDG_CONFIG_HOME/kbridge/kbridge.toml
# (~/.config/…; not for root), /etc/kbridge/kbridge.toml.
"""
_GUEST = """\
# One table for each guest. A name is [a-z0-9][a-z0-9._-]{0,30}, and not "control".
# Every key may be left out: what is absent, the guest does not have.
"""
_TYPES = {
    "state_dir": "path",
    "runtime_dir": "path",
    "vmlinux": "path",
    "debug_dirs": "list of paths",
    "debuginfod_urls": "list of addresses",
    "debuginfod_bytes": "bytes",
    "socket_mode": "text, octal",
    "socket_group": "text",
    "qmp": "endpoint",
    "console": "endpoint",
    "stub": "word or endpoint",
    "stub_kind": "word",
    "break_in": "list of words",
    "on_leave": "word",
    "stub_timeout_seconds": "seconds",
    "ring_bytes": "bytes",
    "timeline_bytes": "bytes",
    "packets_ring_bytes": "bytes",
    "crash_capture": "true or false",
    "crash_warnings": "true or false",
    "on_crash": "word",
    "crash_quiet_seconds": "seconds",
    "crash_silence_seconds": "seconds",
    "crash_full": "number",
    "crash_keep": "number",
    "crash_keep_days": "days",
    "crash_keep_bytes": "bytes",
    "crash_free_bytes": "bytes",
    "crash_image": "true or false",
    "crash_image_bytes": "bytes",
    "crash_image_recipients": "list of texts",
    "crash_command": "list of texts",
    "crash_url": "address",
    "crash_url_key": "path",
}


def explain(env: Mapping[str, str], *, uid: int) -> str:
    """Give the annotated example, with the defaults that hold for this user."""
    state, runtime = default_dirs(env, uid=uid)
    fixed = {
        "state_dir": json.dumps(str(state)),
        "runtime_dir": json.dumps(str(runtime)),
        "stub": '"auto" with qmp, else "none"',
    }
    parts = [
        _HEAD,
        "[relay]",
        *_keys(RelayConfig, fixed),
        _GUEST + "[guests.web1]",
        *_keys(GuestConfig, fixed),
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


def _keys(model: type[BaseModel], fixed: Mapping[str, str]) -> list[str]:
    return [_one(name, info, fixed.get(name)) for name, info in model.model_fields.items()]


def _one(name: str, info: FieldInfo, fixed: str | None) -> str:
    default = fixed or _toml(info.default, mode=name == "socket_mode")
    assert info.examples
    lines = textwrap.wrap(info.description or "", _WIDTH)
    lines.append(f"{_TYPES[name]}; default: {default}")
    return "\n".join([*(f"# {line}" for line in lines), f"{name} = {_toml(info.examples[0])}", ""])


def _toml(value: Any, *, mode: bool = False) -> str:  # any default of any key
    match value:
        case None:
            return "none"
        case Enum():
            return json.dumps(value.value)
        case Path():
            return json.dumps(str(value))
        case tuple() | list():
            return "[" + ", ".join(_toml(each) for each in value) + "]"
        case int() if mode:
            return f'"{value:04o}"'
        case _:
            return json.dumps(value)
