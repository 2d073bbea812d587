"""The base-token tree: a radix cache that holds the base's KV and nothing else."""
