"""Asks a person whether the pen may be taken from who has it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from kbridge.control import guest_path
from kbridge.errors import GuestError

if TYPE_CHECKING:
    from kbridge.control import Control, Refused


def ask_for_pen(api: Control, guest: str, refusal: Refused) -> None:
    """Return when a person at a terminal lets the pen be taken.

    Raises ``refusal`` where the pen was not its reason, ``GuestError`` where nobody can be asked or says yes.
    """
    if refusal.kind != "pen-held":
        raise refusal
    console = api.get(guest_path(guest))["console"] or {}
    held = f"{console.get('pen') or 'somebody'} holds the pen of {guest}"
    if not sys.stdin.isatty():
        raise GuestError(held, todo="ask them to leave, or take it by --force") from refusal
    if not click.confirm(f"{held}: take it?", err=True):
        raise GuestError(held, todo="ask them to leave") from refusal
