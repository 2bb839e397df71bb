"""kbridge puts a debugger on a virtual machine that nobody can log in to.

The Twisted application: everything that touches a socket, a file, a clock or a process lives here.
``docs/architecture.md`` draws how the files fit together.
"""
