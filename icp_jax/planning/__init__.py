"""Estimate a run's memory, FLOPs, bytes moved and time before it starts."""
