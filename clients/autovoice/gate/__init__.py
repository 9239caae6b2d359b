"""The gate: a release is tried in servers of its own before any serving process loads it."""
