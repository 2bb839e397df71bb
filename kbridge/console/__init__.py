"""The console's record: ring, index, time line, and those who read them."""
