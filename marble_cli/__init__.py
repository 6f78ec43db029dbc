"""MARBLE: reinforcement-learning fine-tuning of image models on several rewards at once."""

__version__ = "0.1.0"
