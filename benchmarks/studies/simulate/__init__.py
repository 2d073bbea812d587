"""Serving systems simulated: real routing decisions, modelled step times."""
