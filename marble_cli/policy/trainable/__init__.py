"""Hold what is trained: a LoRA or whole transformers, and their moving average."""
