"""The training loop: docs/algorithm.md, once per optimizer step."""
