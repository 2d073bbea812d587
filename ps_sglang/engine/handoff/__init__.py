"""The handoff: the base computes a prompt's first n-1 tokens, the decoder takes over."""
