"""What people and tools connect to: RSP, console and HTTP sockets."""
