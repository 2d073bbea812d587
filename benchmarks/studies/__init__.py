"""Studies: what takes hours. Each has its page beside it."""
