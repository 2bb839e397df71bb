"""Where ``kbridge`` begins: loads the command line without looking for garbage among what is loaded.

Nothing that is loaded is garbage, and to look for it takes a fifth of the time until a command runs.
"""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command line."""
    gc.disable()
    from kbridge.cli import main as run  # noqa: PLC0415 (this is what takes the time)

    gc.freeze()
    gc.enable()
    run()
