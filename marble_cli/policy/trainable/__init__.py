"""The weights that are trained (a LoRA or a whole transformer) and their moving averages."""
