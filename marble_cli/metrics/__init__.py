"""Where figures go: a JSON-lines file, W&B, the terminal, and pictures. All are handed plain dictionaries."""
