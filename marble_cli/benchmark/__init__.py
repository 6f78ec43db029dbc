"""Benchmarks: published prompts and rules, drawn and scored the same way for every target."""
