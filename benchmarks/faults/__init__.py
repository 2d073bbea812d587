"""Faults on a running cluster, one at a time, and what became of every request."""
