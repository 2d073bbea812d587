"""The HTTP routes: what a client can ask for."""
