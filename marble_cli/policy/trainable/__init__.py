"""The weights that are trained (a LoRA or a whole network) and their moving averages."""
