"""Keys of one group that contradict each other, a file per group."""
