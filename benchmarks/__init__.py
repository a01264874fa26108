"""Benchmark of requests, connections and events; see README.md."""
