"""Live through a run: build, train, resume, record."""
