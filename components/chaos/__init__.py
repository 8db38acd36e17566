"""Faults on a running system, load with known answers beside them, and a verdict: `busway chaos` and the soak test."""
