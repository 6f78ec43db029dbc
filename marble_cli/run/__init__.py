"""The life of a run: build, train, resume, record."""
