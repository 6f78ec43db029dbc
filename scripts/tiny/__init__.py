"""The embedded `tiny` model: the pictures and prompts of its world, and its training from scratch."""
