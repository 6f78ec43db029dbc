"""Rewards: the plugin API, the registry of installed plugins, and the scorer that runs them."""
