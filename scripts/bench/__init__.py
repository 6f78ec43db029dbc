"""Benchmarks: what a step, a run and a solver cost, each beside its alternative in the same run."""
