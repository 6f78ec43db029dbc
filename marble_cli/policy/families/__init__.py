"""Wrap one family of diffusers pipelines per file."""
