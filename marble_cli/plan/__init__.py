"""Plan a run before anything is loaded."""
