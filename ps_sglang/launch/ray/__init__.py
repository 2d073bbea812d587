"""The workers and the gateway of one cluster as actors of Ray: `ps-sglang launch --on ray`.

An actor runs the same `ps-sglang worker` as a person would on its host. Ray chooses the host, and
another one when that is lost.
"""
