"""Rewards that need nothing beyond the core's own dependencies; they enter through entry points like any other."""
