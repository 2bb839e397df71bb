"""The commands of ``kbridge``, one a file; ``kbridge.cli`` loads the one that is asked for."""
