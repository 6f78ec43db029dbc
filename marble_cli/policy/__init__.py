"""Policies: image models seen as prompt -> velocity -> picture, with their LoRA adapters."""
