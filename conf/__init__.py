"""Configuration files, packed into the wheel as `marble_cli.conf`."""
