"""Examples: what is in a directory of its own is started by one line of ``README.md``."""
