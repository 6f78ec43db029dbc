"""Policies: image models that turn a prompt and noise into a picture, and the weights that are trained."""
