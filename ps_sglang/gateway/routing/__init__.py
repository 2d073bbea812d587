"""Which workers a request goes to."""
