"""Examples, each in a directory of its own and started by one line of ``README.md``."""
