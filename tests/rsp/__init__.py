"""Test support for the Remote Serial Protocol, written apart from `gdbstubs`: nothing here uses its code.

framing     what the rules of framing say, one byte at a time
stub        a stub like QEMU's, with its quirks
debugger    a small debugger, synchronous
goldens     recordings of real debuggers and a real stub
"""
