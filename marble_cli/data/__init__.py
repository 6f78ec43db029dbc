"""Prompts: read them from files and datasets, and choose those of each step."""
