"""Explain what the balance did in a run."""
