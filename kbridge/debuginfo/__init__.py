"""Which kernel a guest runs, where its files are, and what its debuggers are served of them."""
