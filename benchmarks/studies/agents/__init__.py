"""Agent workloads in which several decoders take turns over one growing context."""
