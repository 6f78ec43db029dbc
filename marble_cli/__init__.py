"""MARBLE: reinforcement-learning fine-tuning of image models on several rewards at once."""

__version__ = "0.1.0"
DISTRIBUTION = "marble-cli"  # its name for pip; `marble` on the package index is another project
