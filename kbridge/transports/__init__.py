"""Ways to reach a line or a stub: descriptors that the reactor watches."""
