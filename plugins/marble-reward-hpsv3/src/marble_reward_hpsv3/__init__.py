"""The HPSv3 reward."""
