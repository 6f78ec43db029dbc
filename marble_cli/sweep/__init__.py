"""A sweep: its cells, the file that records them, and what became of each."""
