"""`ps-sglang keys`: who may use a gateway."""
