"""Run rewards in other processes, environments and machines."""
