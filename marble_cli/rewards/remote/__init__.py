"""Rewards over HTTP: what travels, who answers, who asks."""
