"""A reward for image editing: how much of the picture is kept."""
