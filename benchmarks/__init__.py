"""What a request and a connection cost: see README.md."""
