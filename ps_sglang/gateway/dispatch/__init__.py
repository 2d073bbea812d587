"""Requests on their way to the two workers of each sample, and what follows a turn."""
