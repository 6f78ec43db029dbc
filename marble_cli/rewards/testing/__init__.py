"""Check rewards against the plugin contract, and create new ones."""
