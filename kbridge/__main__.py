"""``python -m kbridge``: the command line."""

from kbridge.cli import main

main()
