"""Moments as people write them: ``10m`` ago, today at ``14:30``, or a whole ISO 8601 time."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

_AGO: Final = re.compile(r"(\d{1,9})\s*([smhd])(?:\s*ago)?")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_CLOCK: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")


def parse_moment(text: str, now: datetime) -> datetime:
    """Return the moment that ``text`` means at ``now``, which knows its time zone.

    A time of day that is yet to come today is yesterday's; a time without a zone is in that of ``now``.
    Raises ``ValueError`` with the forms there are.
    """
    text = text.strip()
    try:
        return _parse(text, now)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time: write 10m, 2h or 1d (ago), 14:30, or 2026-11-22T14:30"
        ) from None


def _parse(text: str, now: datetime) -> datetime:
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return now - timedelta(**{_UNITS[ago.group(2)]: int(ago.group(1))})
    clock = _CLOCK.fullmatch(text)
    if clock is not None:
        hour, minute, second = (int(part or 0) for part in clock.groups())
        moment = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
        return moment if moment <= now else moment - timedelta(days=1)
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=now.tzinfo)
