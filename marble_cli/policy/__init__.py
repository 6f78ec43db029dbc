"""Policies: image models that turn a prompt and noise into a picture, and the weights that are trained."""

from marble_cli.notices import drop_notices

drop_notices()
