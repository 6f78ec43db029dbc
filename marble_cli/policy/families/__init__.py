"""The supported model families, one file per family."""
