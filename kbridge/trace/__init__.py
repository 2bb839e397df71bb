"""What passes between debuggers, relay and stub: recorded, taken apart, shown."""
