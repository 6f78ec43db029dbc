"""Where metrics go: metrics.jsonl, the terminal, trackers and pictures. All take plain dictionaries."""
