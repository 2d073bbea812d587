"""Benchmarks: each prints its figures and saves them as JSON with the environment."""
