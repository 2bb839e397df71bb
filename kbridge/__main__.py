"""``python -m kbridge``: the command line."""

from kbridge.start import main

main()
