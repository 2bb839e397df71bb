"""Which kbridge this is; the same as in ``pyproject.toml``, which a test sees to."""

from typing import Final

VERSION: Final = "0.1.0"
