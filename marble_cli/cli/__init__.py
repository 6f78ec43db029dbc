"""The command line: one file a command; nothing heavy is imported at the top."""
