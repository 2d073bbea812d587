"""The gateway beside `sglang-router`, both before the same stand-in engines."""
