"""Machine monitors: what runs a guest, and how it is asked."""
