"""Facts for the pages of docs/reference, read off the code."""
