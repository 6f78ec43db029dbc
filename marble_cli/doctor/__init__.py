"""Examine a machine: what is installed, and whether its GPU computes what the CPU does."""
