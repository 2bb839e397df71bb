"""Scripts that wait for a guest's words, send keys and branch."""
