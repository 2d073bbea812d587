"""Sessions of agents over one growing context: the workload, its clients, and what is counted."""
