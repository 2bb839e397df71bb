"""GDB's Remote Serial Protocol, without I/O.

Nothing in this package opens a socket, starts a thread or reads a clock: bytes and times come in as
arguments, bytes and effects come out as results.  ``docs/architecture.md`` draws how the files fit together.
"""
