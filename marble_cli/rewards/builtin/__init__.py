"""Rewards without further dependencies; they are found by their entry points, as plugins are."""
