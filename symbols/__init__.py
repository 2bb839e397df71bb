"""Kernel symbols, given bytes: no I/O, no network.

Code that needs guest memory is a generator that yields batches of ``Read(address, length)`` and is sent the
bytes, so that one algorithm serves a live session, a mapped file and a core file.
"""
