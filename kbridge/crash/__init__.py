"""Crashes of guests: noticed, captured, explained, kept."""
