"""A corpus becomes a table of requests: pure functions from probed headers to plan rows."""
