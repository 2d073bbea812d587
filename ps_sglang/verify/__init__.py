"""Compare a running cluster's greedy output with the Hugging Face reference.

`ps-sglang verify --help`, or `ps-sglang verify --demo` for the demo cluster.
"""
