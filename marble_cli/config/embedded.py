"""Name the worlds, a model with its prompts each, that are part of the package.

These are values of `model.path` and `data.root`.
"""

WORLDS = ("tiny", "tiny_edit")
