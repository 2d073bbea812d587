"""The feed: what a worker tells the gateway beside its answers, and what the gateway asks of it."""
