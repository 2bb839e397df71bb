"""What is left of a guest that died: its detection, its memory, its report."""
