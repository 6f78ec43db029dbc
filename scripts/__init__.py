"""Programs to run from the root of the repository, as `python -m scripts.NAME`."""
