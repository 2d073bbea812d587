"""The event stream: what a worker publishes for the gateway, and what the gateway asks of it."""
