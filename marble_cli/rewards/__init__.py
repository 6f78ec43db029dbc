"""The plugin API of rewards, the registry of installed plugins, and the scorer that calls them."""
