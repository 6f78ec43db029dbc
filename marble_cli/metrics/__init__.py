"""Where metrics go: metrics.jsonl, W&B, the terminal and pictures. All take plain dictionaries."""
