"""Compose, type and check the configuration of a run."""
