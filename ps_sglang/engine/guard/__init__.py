"""No request ends a worker: what a client sends is checked, and what still fails ends alone."""
