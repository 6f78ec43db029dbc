"""The training loop: DESIGN section 1, once per optimizer step."""
