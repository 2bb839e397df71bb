"""The test guests: building and starting them, with nothing but Python's own library.

It works before the virtual environment exists, so it imports neither kbridge nor anything installed.
"""
