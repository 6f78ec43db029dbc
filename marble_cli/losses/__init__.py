"""Losses: pure functions from velocities and optimality to differentiable numbers."""
